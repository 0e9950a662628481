"""`python -m orchestration.launch` from outside, as a user runs it, on tiny models and real engines."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from diagnostics.metrics import unknown_metric
from rollout.config import RolloutConfig
from rollout.engine import RolloutEngine
from tests.integration.launching import Launched, Series, descendants, left_in_session
from tutelage.settings import DType

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

SUMMARY_FIELDS = {
    "status", "steps", "wall_seconds", "stage_seconds", "tokens", "tokens_per_second", "evaluation", "gap_recovery",
    "counts", "restarts", "alarms", "remedies",
}  # fmt: skip
EVALUATION_FIELDS = {
    "accuracy", "reverse_kl", "forward_kl", "overlap_ratio", "mean_response_tokens", "truncated_share", "n_prompts",
}  # fmt: skip
REPEATABLE = ("pipeline.max_staleness=0", "pipeline.steps=6", "checkpoint.every=2", "scoring.max_tokens_per_forward=1")

EVERYTHING = ("evaluation.teacher=true", "tracking=offline")


@pytest.fixture(scope="module")
def uninterrupted(launch: Callable[..., Launched], tmp_path_factory: pytest.TempPathFactory) -> Launched:
    run = launch(tmp_path_factory.mktemp("uninterrupted") / "run", *REPEATABLE, *EVERYTHING)
    assert run.wait() == 0, run.text()
    return run


def test_a_run_leaves_what_it_promises(uninterrupted: Launched) -> None:
    folder, summary = uninterrupted.run_dir, uninterrupted.summary()
    assert set(summary) == SUMMARY_FIELDS
    assert summary["status"] == "completed" and summary["steps"] == 6
    for role in ("student_before", "student_after", "teacher"):
        assert set(summary["evaluation"][role]) >= EVALUATION_FIELDS
    assert summary["evaluation"]["teacher"]["reverse_kl"] is None
    assert summary["evaluation"]["student_after"]["reverse_kl"] < summary["evaluation"]["student_before"]["reverse_kl"]
    assert set(summary["stage_seconds"]) == {"rollout", "scoring", "learning", "weight_sync", "waiting"}
    assert summary["tokens"]["trained"] == summary["tokens"]["scored"] == summary["tokens"]["rollout"] > 0
    for name in (
        "config.yaml",
        "versions.json",
        "run.log",
        "metrics.jsonl",
        "report.html",
        "final/README.md",
    ):
        assert (folder / name).is_file(), name
    preflight = json.loads((folder / "preflight.json").read_text())
    assert {check["status"] for check in preflight["checks"]} <= {"pass", "warn"} and preflight["seconds"] > 0
    assert "canary: new weights" in {check["name"] for check in preflight["checks"]}
    assert uninterrupted.steps() == [1, 2, 3, 4, 5, 6]
    assert not list(folder.rglob("*.partial"))


def test_every_number_can_be_watched_by_an_alarm(uninterrupted: Launched) -> None:
    names = {name for row in uninterrupted.rows() for name in row if "/" in name}
    ends = {name for name in names if name.endswith(("/low", "/high"))}  # of intervals
    assert [name for name in sorted(names - ends) if unknown_metric(name) is not None] == []


def test_the_engine_and_the_learner_agree_through_the_whole_run(uninterrupted: Launched) -> None:
    gaps = [row["health/rollout_logprob_gap_max"] for row in uninterrupted.rows() if "train/loss" in row]
    assert len(gaps) == 6 and max(gaps) < 1e-3


def test_strictly_on_policy_is_on_policy(uninterrupted: Launched) -> None:
    assert {row["rollout/staleness_max"] for row in uninterrupted.rows() if "train/loss" in row} == {0}


def test_the_final_checkpoint_loads_and_is_the_trained_model(uninterrupted: Launched, tiny_tied: Path) -> None:
    final = uninterrupted.run_dir / "final"
    model = AutoModelForCausalLM.from_pretrained(final)
    tokenizer = AutoTokenizer.from_pretrained(final)
    ids = torch.tensor([tokenizer("warm and quiet").input_ids])
    initial = AutoModelForCausalLM.from_pretrained(tiny_tied)
    assert (model(ids).logits - initial(ids).logits).abs().max() > 1e-3
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()


def test_the_final_checkpoint_loads_in_vllm(uninterrupted: Launched) -> None:
    final = str(uninterrupted.run_dir / "final")
    config = RolloutConfig(dtype=DType.float32, max_model_len=128, kv_cache_gib=0.2)
    ids = AutoTokenizer.from_pretrained(final)("Winter nights are long and cold").input_ids

    async def scores() -> np.ndarray:
        engine = RolloutEngine(final, config, "shared_memory", 0)
        try:
            return await engine.prompt_logprobs(ids)
        finally:
            engine.shutdown()

    found = asyncio.run(scores())
    logits = AutoModelForCausalLM.from_pretrained(final, dtype=torch.float32)(torch.tensor([ids])).logits[0]
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    assert np.abs(found - expected.detach().numpy()).max() < 1e-3


@pytest.mark.faults
def test_a_run_whose_engine_and_learner_are_killed_and_that_is_stopped_is_the_one_that_it_would_have_been(
    uninterrupted: Launched, launch: Callable[..., Launched], series: Series, tmp_path: Path
) -> None:
    killed = launch(tmp_path / "run", *REPEATABLE)
    killed.wait_for_step(1)
    (worker,) = descendants(killed.process.pid, "RolloutWorker")
    os.kill(worker, signal.SIGKILL)
    killed.wait_for_step(3)
    assert "rollout-1 takes the place of the one that was lost" in (killed.run_dir / "run.log").read_text()
    (learner,) = descendants(killed.process.pid, "LearnerWorker")
    os.kill(learner, signal.SIGKILL)
    killed.wait_until(lambda: "the run begins again" in killed.text(), 120)
    killed.wait_for_step(4)
    assert descendants(killed.process.pid, "LearnerWorker") != [learner]
    killed.kill(signal.SIGINT)
    assert killed.wait(120) == 130, killed.text()
    assert left_in_session(killed.process.pid) == []
    assert killed.summary()["status"] == "interrupted" and killed.summary()["restarts"] == {"rollout": 1, "run": 1}
    newest = max(path.name for path in (killed.run_dir / "checkpoints").iterdir())
    assert newest == f"step-{killed.summary()['steps']:06d}"
    resumed = series.run(tmp_path / "run", *REPEATABLE, "resume=auto")
    assert resumed.steps() == uninterrupted.steps()
    assert resumed.trained_prompts() == uninterrupted.trained_prompts()
    assert sum(resumed.trained_prompts().values()) == 24
    assert [row["train/loss"] for row in resumed.step_rows()] == [r["train/loss"] for r in uninterrupted.step_rows()]
    ours, theirs = (load_file(run.run_dir / "final" / "model.safetensors") for run in (resumed, uninterrupted))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_set_up_that_means_nothing_is_not_trained(series: Series, tmp_path: Path, tiny_tied: Path) -> None:
    shutil.copytree(tiny_tied, tmp_path / "teacher")  # the student under another name
    run = series.run(tmp_path / "run", f"teacher.model={tmp_path}/teacher", "data.verifier=exact", exit_code=1)
    assert "teacher differs" in run.text() and "choose another teacher" in run.text() and "Traceback" not in run.text()
    assert run.summary()["status"] == "failed" and run.steps() == []
    statuses = {
        row["name"]: row["status"] for row in json.loads((run.run_dir / "preflight.json").read_text())["checks"]
    }
    assert [name for name, status in statuses.items() if status == "fail"] == ["teacher differs"]
