"""Teachers on real workers: two domains and a mixture, a replica that dies, weights that follow the student."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from learner.packing import pack
from learner.records import Example
from orchestration.measure.evaluation import requests
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import prepare
from tests.factories import configured
from tests.integration.launching import WORDS, Launched, Series, descendants
from tutelage.cluster import Cluster
from tutelage.records.signal import ScoringRequest

pytestmark = pytest.mark.integration

TWO = "+teacher@further_teachers.other=checkpoint"
BLEND = ("+teacher@further_teachers.blend=mixture", "+further_teachers.blend.mixture={teacher:0.5,other:0.5}")


@pytest.fixture
def routed(tmp_path: Path) -> list[str]:
    """Prompts of three kinds: one names its teacher, one's domain decides, one is left to the first teacher."""
    kinds: list[dict[str, str]] = [{"teacher": "blend"}, {"domain": "colours"}, {}]
    for name in ("train", "heldout"):
        pairs = [(a, b) for a in WORDS for b in WORDS if a != b][: 24 if name == "train" else 6]
        lines = [{"prompt": f"{name} {a} {b} ?", "answer": a} | kinds[i % 3] for i, (a, b) in enumerate(pairs)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [f"data.{name}.path={tmp_path}/{name}.jsonl" for name in ("train", "heldout")]
    return [*files, "evaluation.prompts=6", "further_teachers.other.domains=[colours]"]


def test_two_teachers_and_their_mixture_mark_their_own_prompts(
    series: Series, routed: list[str], tiny_tied: Path, tmp_path: Path
) -> None:
    """Over the whole vocabulary: each head is that of the states it gets, or the loss would not be the KL."""
    teachers = [
        TWO,
        f"further_teachers.other.model={tiny_tied}",
        "further_teachers.other.context='Say it twice.'",
        *BLEND,
    ]
    run = series.run(
        tmp_path / "run", *teachers, *routed, "pipeline.steps=3", "pipeline.batch_size=6", "objective=full_reverse_kl",
        "evaluation.base_kl=always", "cluster.cpus=3",
    )  # fmt: skip
    rows = run.step_rows()
    for key in ("teacher", "other"):  # a mixture asks both; rollouts run ahead, so not in every step
        assert sum(row[f"teacher/{key}/requests"] for row in rows) >= 12
    for row in rows:
        assert row["teacher/restarts"] == row["teacher/retries"] == 0
        assert row["train/loss"] > 0 and row["train/reverse_kl"] == pytest.approx(row["train/loss"], rel=1e-3)
    before, after = (run.summary()["evaluation"][name] for name in ("student_before", "student_after"))
    assert before["base_reverse_kl"] == pytest.approx(0, abs=1e-4) and after["base_reverse_kl"] > 1e-3
    assert before["reverse_kl"] > 0
    checks = {c["name"] for c in json.loads((run.run_dir / "preflight.json").read_text())["checks"]}
    assert {"canary: teacher's scores", "canary: other's scores"} <= checks


@pytest.mark.faults
def test_a_replica_that_dies_is_replaced_and_nothing_is_lost(launch: Callable[..., Launched], tmp_path: Path) -> None:
    """One of two dies, then the other one too: what is asked meanwhile waits for those that come instead."""
    options = "pipeline.steps=30", "scoring.workers=2", "cluster.cpus=3", "preflight.enabled=false", "seed=3"
    run = launch(tmp_path / "run", *options)
    run.wait_for_step(1)
    one, other = descendants(run.process.pid, "ScoringWorker")
    os.kill(one, signal.SIGKILL)
    run.wait_for_step(3)
    os.kill(other, signal.SIGKILL)
    assert run.wait() == 0, run.text()
    rows = run.step_rows()
    assert run.steps() == list(range(1, 31)) and rows[-1]["teacher/restarts"] == 2
    assert rows[-1]["teacher/retries"] >= 1 and sum(run.trained_prompts().values()) == 120
    assert "takes the place of the one that was lost" in (run.run_dir / "run.log").read_text()


class Following:
    """Workers of a run whose teacher follows the student."""

    def __init__(self, session: Path, runner: asyncio.Runner, *overrides: str) -> None:
        self.config = configured(*overrides)
        self.prepared = prepare(self.config)
        self.runner = runner
        self.workers = runner.run(Fleet.start(self.config, self.prepared, Cluster(session)))
        runner.run(self.workers.connect())

    async def gap(self, version: int) -> tuple[float, float]:
        """Largest difference of the teacher's scores from the learner's log-probs, and from a plain forward."""
        config, workers = self.config, self.workers
        scorers = workers.teachers.groups["teacher"]
        asked = requests(self.prepared.heldout, config)
        answers = sorted([item async for item in workers.rollouts.roll_out(asked)], key=lambda item: item.slot)
        batch = pack([Example(answer, None) for answer in answers], 1, 512, version)
        learner = await workers.learner.logprobs(batch)
        about = [ScoringRequest("teacher", answer.prompt_ids, answer.response_ids) for answer in answers]
        scores = [signal.logprobs for signal in await scorers.score_all(about)]
        plain = await scorers.reference_logprobs_for_check(about)
        assert plain is not None
        return tuple(
            max(float(np.abs(a - b).max()) for a, b in zip(scores, other, strict=True)) for other in (learner, plain)
        )  # type: ignore[return-value]

    async def move(self, seed: int) -> None:
        await self.workers.learner.perturb(seed, 0.05)
        await self.workers.learner.publish(0, again=True)

    def close(self) -> None:
        self.runner.run(self.workers.rollouts.stop())
        for worker in self.workers.all:
            if not worker.name.startswith("rollout"):
                worker.stop()


def test_a_teacher_with_the_current_weights_marks_as_the_student_does(
    local_ray: Path, settings: list[str], tiny_tied: Path
) -> None:
    """Learner and teacher agree before and after other weights are published, head included."""
    own = (f"teacher.model={tiny_tied}", "teacher.weights=current", "teacher.context=x", "evaluation.temperature=1")
    with asyncio.Runner() as runner:
        found = Following(local_ray, runner, *settings, *own)
        first = runner.run(found.gap(0))
        runner.run(found.move(seed=5))
        after = runner.run(found.gap(0))
        found.close()
    assert max(*first, *after) < 2e-4


@pytest.mark.faults
def test_an_average_survives_an_interruption(
    launch: Callable[..., Launched], series: Series, tiny_tied: Path, tmp_path: Path
) -> None:
    """The run that is killed and goes on has the losses of the one that is not."""
    own = [
        f"teacher.model={tiny_tied}", "teacher.weights=ema", "teacher.ema_rate=0.5", "pipeline.max_staleness=0",
        "teacher.context='Be brief.'",
        "pipeline.steps=4", "checkpoint.every=1", "preflight.enabled=false", "pipeline.batch_size=4",
    ]  # fmt: skip
    whole = series.run(tmp_path / "whole", *own)
    killed = launch(tmp_path / "killed", *own)
    killed.wait_for_step(2)
    killed.kill(signal.SIGKILL)
    killed.process.wait(30)
    again = series.run(tmp_path / "killed", *own, "resume=auto")
    losses = [[row["train/loss"] for row in run.step_rows()] for run in (whole, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and len(set(losses[0])) == 4


def test_a_sibling_that_is_right_is_shown_to_the_teacher(series: Series, tmp_path: Path) -> None:
    """The lab's student is right about half of the time, so some samples have a correct sibling and some have none."""
    run = series.run(
        tmp_path / "run", "experiment=lab/compatible", "student.model=lab/student", "teacher.model=lab/student",
        "teacher.weights=current", "teacher.context='{sibling}'", "sampling.samples_per_prompt=4", "pipeline.steps=2",
        "pipeline.batch_size=16", "evaluation.prompts=4", "sampling.max_tokens=48", "evaluation.max_tokens=48",
        "rollout.max_model_len=128", "preflight.enabled=false", "objective=student_topk_reverse_kl",
    )  # fmt: skip
    shares = [row["teacher/privileged_share"] for row in run.step_rows()]
    assert len(shares) == 2 and all(0 < share < 1 for share in shares)
