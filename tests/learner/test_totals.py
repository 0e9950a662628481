"""Means of a step's per-token values, on a group of one."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learner.totals import StepTotals

NAN = math.nan


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def totals(*micro_batches: dict[str, list[float]]) -> StepTotals:
    """Count tokens that all stand first in their responses."""
    found = StepTotals(torch.device("cpu"))
    for values in micro_batches:
        first = torch.zeros(len(values["loss"]), dtype=torch.int64)
        found.add({name: torch.tensor(column) for name, column in values.items()}, first)
    return found


def test_a_metric_is_averaged_over_the_tokens_that_have_it(group: None) -> None:
    loss, metrics = totals(
        {"loss": [1.0, 2.0], "rollout_logprob_gap": [NAN, NAN], "entropy": [1.0, 3.0]},
        {"loss": [3.0], "rollout_logprob_gap": [0.5], "entropy": [5.0]},
        {"loss": [], "rollout_logprob_gap": [], "entropy": []},
    ).reduce(4)
    assert loss == 1.5
    assert metrics == {"entropy": 3.0, "rollout_logprob_gap_mean": 0.5, "rollout_logprob_gap_max": 0.5}


def test_a_metric_that_no_token_has_is_left_out(group: None) -> None:
    _, metrics = totals({"loss": [1.0], "rollout_logprob_gap": [NAN]}).reduce(1)
    assert metrics == {}


def test_the_loss_is_not_excused() -> None:
    assert totals({"loss": [1.0], "rollout_logprob_gap": [NAN]}).loss_is_finite
    assert not totals({"loss": [1.0, NAN], "rollout_logprob_gap": [0.0, 0.0]}).loss_is_finite


def test_buckets_begin_at_powers_of_two(group: None) -> None:
    found = StepTotals(torch.device("cpu"))
    positions = torch.tensor([0, 1, 2, 3, 4, 7, 8, 2**30 - 1, 2**30, 5])
    values = torch.tensor([1.0, 2.0, 3.0, 5.0, 8.0, 16.0, 32.0, 64.0, 128.0, NAN])
    found.add({"loss": values, "rollout_logprob_gap": torch.zeros(10), "overlap_ratio": values}, positions)
    metrics = found.reduce(10)[1]
    assert {name: value for name, value in metrics.items() if "/" in name} == {
        "overlap_ratio/tokens_0_1": 1.0,
        "overlap_ratio/tokens_1_2": 2.0,
        "overlap_ratio/tokens_2_4": 4.0,
        "overlap_ratio/tokens_4_8": 12.0,
        "overlap_ratio/tokens_8_16": 32.0,
        f"overlap_ratio/tokens_{2**29}_{2**30}": 64.0,
        f"overlap_ratio/tokens_{2**30}_{2**31}": 128.0,
    }


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5000), st.floats(-10, 10)), min_size=1, max_size=60), st.integers(0, 60))
def test_bucket_means_reassemble_to_the_whole(group: None, tokens: list[tuple[int, float]], cut: int) -> None:
    """However the tokens are spread over micro-batches."""
    found, counts = StepTotals(torch.device("cpu")), Counter(position.bit_length() for position, _ in tokens)
    for part in (tokens[:cut], tokens[cut:]):
        values = torch.tensor([value for _, value in part], dtype=torch.float64)
        per_token = {"loss": values, "rollout_logprob_gap": values, "entropy_gap": values}
        found.add(per_token, torch.tensor([position for position, _ in part], dtype=torch.int64))
    metrics = found.reduce(1)[1]
    means = {digits: metrics[f"entropy_gap/tokens_{2**digits // 2}_{2**digits}"] for digits in counts}
    assert len(means) == sum(name.startswith("entropy_gap/") for name in metrics)
    whole = sum(means[digits] * count for digits, count in counts.items()) / len(tokens)
    assert metrics["entropy_gap"] == pytest.approx(whole, abs=1e-12)
