"""The preflight on real workers: a good set-up passes, and every planted fault is caught by the check it is for."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from transformers import AutoTokenizer

from diagnostics.check import Check, Status
from orchestration.config.schema import RunConfig
from orchestration.measure.preflight import Preflight, run_preflight
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import Prepared, prepare
from orchestration.prepare.models import PreparedTeacher
from rollout.grading import Grade, VerifierPool, verifier_pool
from scoring.config import Quantization, TeacherConfig
from tests.factories import configured
from tutelage.cluster import Cluster
from tutelage.records.prompt import Prompt, RenderedPrompt

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

CANARY = {
    "canary: engine and learner", "canary: ends", "canary: ended answer", "canary: teacher's scores", "teacher differs",
    "canary: new weights", "canary: old weights again", "canary: learner, long beside short",
    "canary: teacher, long beside short",
}  # fmt: skip


@dataclass
class Running:
    """Workers that are up, and a loop to ask them from."""

    config: RunConfig
    prepared: Prepared
    workers: Fleet
    runner: asyncio.Runner

    def preflight(self, prepared: Prepared | None = None, verifier: VerifierPool | None = None) -> Preflight:
        with verifier_pool(self.config.data.verifier, 60) as own:
            job = run_preflight(self.config, prepared or self.prepared, self.workers, verifier or own, print)
            return self.runner.run(job)

    def connect(self) -> None:
        """As a stage does before it trains."""
        self.runner.run(self.workers.connect())

    def inside(self, worker: Any, function: Callable[[Any], None]) -> None:
        """Run a function on the object behind a worker."""
        self.runner.run(worker.call("__ray_call__", function, deadline=60))

    def load_teacher(self, path: str) -> None:
        self.runner.run(self.workers.teachers.groups["teacher"].load(path, self.config.teacher))
        self.connect()


@pytest.fixture(scope="module")
def cluster(local_ray: Path) -> Iterator[Cluster]:
    cluster = Cluster(local_ray)
    yield cluster
    cluster.dismiss_idle(but=set())


@pytest.fixture(scope="module", params=["tied", "untied"])
def running(
    request: pytest.FixtureRequest, cluster: Cluster, settings: list[str], tiny_tied: Path, tiny_untied: Path
) -> Iterator[Running]:
    student, teacher = (tiny_tied, tiny_untied) if request.param == "tied" else (tiny_untied, tiny_tied)
    models = [f"student.model={student}", f"teacher.model={teacher}"]
    config = configured(*settings, *models, "sampling.max_tokens=16", "sampling.temperature=0.7")
    prepared = prepare(config)
    with asyncio.Runner() as runner:
        workers = runner.run(Fleet.start(config, prepared, cluster))
        found = Running(config, prepared, workers, runner)
        found.connect()
        yield found
        runner.run(workers.set_idle())


def named(found: Preflight) -> dict[str, Check]:
    return {check.name: check for check in found.checks}


def failures(found: Preflight) -> set[str]:
    return {check.name for check in found.checks if check.status is Status.failed}


def test_a_good_set_up_passes_and_can_be_checked_again(running: Running) -> None:
    first, second = running.preflight(), running.preflight()
    for found in (first, second):
        checks = named(found)
        assert not found.failed and checks.keys() >= CANARY
        unclear = {name: checks[name] for name in CANARY if checks[name].status is not Status.passed}
        # A random model may end none of its four answers, and then whether they end was not seen.
        assert unclear.keys() <= {"canary: ends"} and checks["canary: ends"].status is not Status.failed, unclear
        assert "rollout" in checks["predicted time"].seen and found.seconds > 0
    assert named(first)["teacher differs"].seen == named(second)["teacher differs"].seen  # the same samples


def test_a_stale_head_is_caught(running: Running) -> None:
    """The learner leaves the head out of what it sends: the engine goes on with the old one."""

    def leave_out_head(worker: Any) -> None:
        source = worker._publisher._source
        source.buckets = [[weight for weight in b if weight.name != "lm_head.weight"] for b in source.buckets]

    running.inside(running.workers.learner.workers[0], leave_out_head)
    found = running.preflight()
    running.connect()
    assert failures(found) == {"canary: new weights"}, found.checks
    assert "old weights" in named(found)["canary: new weights"].fix
    assert not running.preflight().failed


def test_scores_that_are_off_by_one_are_caught(running: Running) -> None:
    def shift(worker: Any) -> None:
        model = worker._backend.model
        score = model.score

        def shifted(requests: Any) -> Any:
            return [replace(s, logprobs=np.roll(s.logprobs, 1)) for s in score(requests)]

        model.score = shifted

    scorer = running.workers.teachers.groups["teacher"].workers[0]
    running.inside(scorer, shift)
    found = running.preflight()
    running.inside(scorer, lambda worker: vars(worker._backend.model).pop("score"))
    assert failures(found) == {"canary: teacher's scores"}, found.checks
    assert "off by one" in named(found)["canary: teacher's scores"].seen


def test_a_teacher_that_is_the_student_is_caught(running: Running) -> None:
    running.load_teacher(running.prepared.student_path)
    found = running.preflight()
    running.load_teacher(running.prepared.teacher_path)
    assert failures(found) == {"teacher differs"}, found.checks


def doubled(item: RenderedPrompt) -> RenderedPrompt:
    return replace(item, student_ids=np.concatenate([item.student_ids[:1], item.student_ids]))


def test_faults_of_texts_and_prompts_are_caught_without_asking_a_worker(running: Running, tmp_path: Path) -> None:
    prepared = running.prepared
    known = replace(prepared, heldout=prepared.train[:4])
    twice = replace(prepared, train=tuple(map(doubled, prepared.train)))
    teacher = tmp_path / "teacher"
    shutil.copytree(prepared.teacher_path, teacher)
    other = AutoTokenizer.from_pretrained(teacher)
    other.add_tokens(["<|new|>"])
    other.save_pretrained(teacher)
    swapped = replace(prepared, teachers={"teacher": PreparedTeacher(str(teacher), other)})
    for changed, name in (
        (known, "held-out prompts"), (twice, "BOS"), (swapped, "tokenizer ids"),
    ):  # fmt: skip
        found = running.preflight(changed)
        assert name in failures(found), found.checks
        assert not CANARY & named(found).keys()

    async def reject(prompt: Prompt, text: str) -> Grade:
        return Grade(0.0)

    rejecting = running.preflight(verifier=cast(VerifierPool, SimpleNamespace(grade=reject)))
    assert failures(rejecting) == {"verifier"}, rejecting.checks


def test_a_quantised_teacher_is_compared_with_its_full_weights(running: Running) -> None:
    """And goes on quantised: its service says what a plain forward of the quantised model says."""
    assert running.prepared.teacher_path is not None
    (worker,) = running.workers.teachers.groups["teacher"].workers
    for kind in (Quantization.nf4, Quantization.none):
        teacher = TeacherConfig(quantization=kind)
        running.runner.run(worker.call("load", running.prepared.teacher_path, teacher, deadline=60))
        checks = {check.name: check for check in running.preflight().checks}
        assert checks["canary: teacher's scores"].status is Status.passed
        if kind is Quantization.nf4:
            assert "nf4 against full weights: mean |Δ| 0." in checks["canary: quantised teacher"].seen
        else:
            assert "canary: quantised teacher" not in checks
