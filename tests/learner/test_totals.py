"""Means of a step's per-token values, on a group of one."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from learner.totals import StepTotals

NAN = math.nan


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def totals(*micro_batches: dict[str, list[float]]) -> StepTotals:
    found = StepTotals(torch.device("cpu"))
    for values in micro_batches:
        found.add({name: torch.tensor(column) for name, column in values.items()})
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
