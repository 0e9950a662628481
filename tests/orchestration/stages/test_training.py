"""A weight update in which engines die, or that fails for another reason."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from learner.records import StepReport
from orchestration.pipeline.progress import Cursor, RunProgress, StageClock
from orchestration.stages.training import Batches, TrainingStage
from tests.factories import configured
from tutelage.errors import LearnerFailure, WorkerFailure


class Stage(TrainingStage):
    @property
    def batches(self) -> Batches:
        raise NotImplementedError


class Engines:
    """Engines of which some turn out to be dead."""

    enlist_with: Any = None

    def __init__(self, living: list[str], dead: list[str]) -> None:
        self.workers, self.dead = [*living, *dead], dead
        self.waited = self.nobody_comes = False

    async def strike_off_the_dead(self) -> list[str]:
        self.workers = [worker for worker in self.workers if worker not in self.dead]
        return self.dead

    async def present(self) -> None:
        self.waited = True
        if self.nobody_comes:
            raise WorkerFailure("rollout: 0 workers were replaced already (recovery.max_restarts)")
        await self.enlist_with("newcomer")

    def enlist(self, worker: str) -> None:
        self.workers.append(worker)


class Learner:
    """Fails to publish to the dead."""

    def __init__(self, engines: Engines, breaks: bool = False) -> None:
        self.engines, self.breaks = engines, breaks
        self.readers = list(engines.workers)
        self.sent: list[tuple[int, tuple[str, ...]]] = []

    async def publish(self, version: int, again: bool = False) -> None:
        if self.breaks or set(self.readers) & set(self.engines.dead):
            raise WorkerFailure("learner-0 failed in publish: a rollout worker died")
        self.sent.append((version, tuple(self.readers)))


def stage_with(engines: Engines, learner: Learner) -> Stage:
    async def connect_readers(*newcomers: str) -> None:
        learner.readers = [*engines.workers, *newcomers]

    fleet = SimpleNamespace(rollouts=engines, learner=learner, connect_readers=connect_readers)
    progress = RunProgress(version=4, resumed_from=Cursor(), clock=StageClock({}), tokens={}, counts={})
    prepared: Any = SimpleNamespace(train=())
    return Stage(configured(), prepared, cast(Any, fleet), cast(Any, None), progress, cast(Any, None))


def test_those_that_live_get_the_weights_when_another_died_in_the_update() -> None:
    engines = Engines(["one"], ["two"])
    learner = Learner(engines)
    stage = stage_with(engines, learner)
    asyncio.run(stage.publish())
    assert learner.sent == [(4, ("one",))] and not engines.waited
    asyncio.run(stage.publish())  # they have them
    assert len(learner.sent) == 1


def test_where_all_died_the_newcomer_gets_them_before_it_serves() -> None:
    engines = Engines([], ["one"])
    learner = Learner(engines)
    asyncio.run(stage_with(engines, learner).publish())
    assert learner.sent == [(4, ("newcomer",))] and engines.workers == ["newcomer"]


def test_where_all_died_and_nobody_comes_the_update_fails() -> None:
    engines = Engines([], ["one"])
    engines.nobody_comes = True
    with pytest.raises(WorkerFailure, match="max_restarts"):
        asyncio.run(asyncio.wait_for(stage_with(engines, Learner(engines)).publish(), 5))


@pytest.mark.parametrize("living", [["one"], []])
def test_an_engine_that_was_struck_off_before_the_update_is_not_waited_for(living: list[str]) -> None:
    engines = Engines(living, ["two"])
    learner = Learner(engines)
    stage = stage_with(engines, learner)
    engines.workers.remove("two")  # its requests were lost, and another one is on the way
    asyncio.run(stage.publish())
    assert learner.sent == [(4, tuple(living or ["newcomer"]))]


def test_an_update_that_fails_while_all_live_ends_the_run() -> None:
    engines = Engines(["one"], [])
    with pytest.raises(WorkerFailure, match="learner-0 failed"):
        asyncio.run(stage_with(engines, Learner(engines, breaks=True)).publish())


def report(version: int, skipped: str = "") -> StepReport:
    return StepReport(version, 0.1, 0.2, 1e-3, 10, 1.0, 1.0, skipped=skipped)


@pytest.mark.parametrize(("skipped", "fails"), [("xx.xx.x", False), ("xxx", True), (".xxx", True), ("xx", False)])
def test_so_many_steps_in_a_row_are_skipped_and_no_more(skipped: str, fails: bool) -> None:
    engines = Engines(["one"], [])
    stage = stage_with(engines, Learner(engines))
    stage.config = configured("recovery.max_skipped_steps=2")

    def check() -> None:
        for step, kind in enumerate(skipped, 1):
            stage._check_skipped(report(step, "the loss" if kind == "x" else ""))

    if not fails:
        check()
        return
    with pytest.raises(LearnerFailure, match=r"the loss is not finite, and 2 steps before it.*max_skipped_steps"):
        check()
