"""What is computed before a run: the run's own requests, each once, and nothing that cannot be known."""

import asyncio
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from orchestration.config.compose import register_schema
from orchestration.pipeline.sources import TrajectorySource
from orchestration.precompute import precompute
from orchestration.prepare.inputs import Prepared, prepare
from orchestration.prepare.teachers import make_request_builder
from orchestration.runs.precomputing import completions_to_score
from scoring.backends.cached import CacheStats, in_words
from tests.factories import configured
from tutelage.cluster import Session
from tutelage.records.prompt import with_ids

OFFLINE = [
    "objective=teacher_topk_forward_kl", "objective.k=5", "objective.sequences.on_policy_fraction=0",
    "objective.sequences.other_source=dataset", "data.train.completion_column=completion", "pipeline.batch_size=4",
    "sampling.max_tokens=3", "scoring.cache_dir=scores",
]  # fmt: skip


@pytest.fixture
def overrides(tmp_path: Path, tiny_tied: Path, tiny_untied: Path) -> list[str]:
    rows = "".join(f'{{"prompt": "What is {i}?", "completion": "{i} {i} and {i} again"}}\n' for i in range(6))
    (tmp_path / "prompts.jsonl").write_text(rows)
    return [
        f"student.model={tiny_tied}", f"teacher.model={tiny_untied}", "teacher.context='Count.'",
        f"data.train.path={tmp_path}/prompts.jsonl", f"data.heldout.path={tmp_path}/prompts.jsonl",
        "rollout.max_model_len=256", *OFFLINE,
    ]  # fmt: skip


@pytest.mark.parametrize(("steps", "share", "expected"), [(1, "0", 4), (5, "0", 6), (5, "0.5", None), (1, "1", 0)])
def test_each_completion_that_the_run_comes_by_once(
    overrides: list[str], steps: int, share: str, expected: int | None
) -> None:
    config = configured(*overrides, f"pipeline.steps={steps}", f"objective.sequences.on_policy_fraction={share}")
    prepared = prepare(config) if share != "1" else prepare(configured(*overrides))
    found = asyncio.run(completions_to_score(config, prepared))
    keys = [trajectory.prompt_id for trajectory in found]
    assert len(set(keys)) == len(keys)
    assert len(keys) == expected if expected is not None else 0 < len(keys) <= 6
    run = asyncio.run(rolled_out(config, prepared))
    assert {key: ids.tolist() for key, ids in run.items()} == {t.prompt_id: t.response_ids.tolist() for t in found}


async def rolled_out(config: object, prepared: Prepared) -> dict[str, np.ndarray]:
    """What the slots of the run that are not the student's bring, as its stage gets them."""
    source = TrajectorySource(config, prepared.train, 0, None, None)  # type: ignore[arg-type]
    pipeline = config.pipeline  # type: ignore[attr-defined]
    slots = source.foreign(range(pipeline.steps * pipeline.batch_size))
    return {t.prompt_id: t.response_ids async for t in source.roll_out(slots)}


def test_the_requests_ask_what_the_objective_and_the_monitors_need(overrides: list[str]) -> None:
    config = configured(*overrides, "learner.overlap_k=9")
    prepared = prepare(config)
    trajectory, *_ = asyncio.run(completions_to_score(config, prepared))
    item = with_ids(prepared.train)[trajectory.prompt_id]
    builder = make_request_builder(config, prepared)
    request = builder.build("teacher", item.teacher_ids, trajectory).request
    np.testing.assert_array_equal(request.prompt_ids, item.teacher_ids)
    np.testing.assert_array_equal(request.response_ids, trajectory.response_ids)
    assert len(request.response_ids) == 3  # cut as the run cuts it
    assert (request.top_k, request.entropy, request.hidden_states) == (9, True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective.sequences.on_policy_fraction=1"], "only the data's completions are known"),
        (
            ["objective.sequences.other_source=teacher"],
            "objective.sequences.other_source=teacher: with on_policy_fraction=0",
        ),
        (["scoring.cache_dir=null"], "scoring.cache_dir=null"),
        (["teacher.backend=cache"], "computes nothing"),
        (["stage=cold_start", "objective=supervised"], "stage=cold_start: no teacher's scores"),
        (["+recipe.stages=[{name: a}]"], "recipe.stages"),
    ],
)
def test_what_cannot_be_known_before_is_refused(
    overrides: list[str], changes: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = {change.split("=")[0].lstrip("+") for change in changes}
    kept = [override for override in overrides if override.split("=")[0] not in changed]
    with pytest.raises(SystemExit) as refusal, Session() as session:
        run(kept, changes, session)
    assert refusal.value.code == 1
    assert message in capsys.readouterr().err


def test_a_dry_run_counts_and_starts_nothing(overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with Session() as session:
        assert run(overrides, ["dry_run=true", "pipeline.steps=9"], session) == 0
    assert "6 completions of 18 tokens" in capsys.readouterr().out


def run(overrides: list[str], changes: list[str], session: Session) -> int:
    register_schema()
    every = [*overrides, *changes]
    (preset,) = [override.split("=")[1] for override in every if override.startswith("objective=")]
    with initialize_config_module(version_base="1.3", config_module="conf"):
        composed = compose("config", overrides=[each.lstrip("+") for each in every])
    return precompute(composed, preset, session)


def test_hits_and_misses_in_words() -> None:
    assert in_words(CacheStats(hits=3, misses=1)) == "kept scores: 3 of 4 requests were there already, 1 were not"
    assert "2 files could not be read, 1 could not be written" in in_words(CacheStats(0, 2, 2, 1))
