"""Rollout workers that die: every request is answered once, by whoever is there, with the weights of the others."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.group import RolloutGroup
from tutelage.cluster import Cluster
from tutelage.errors import WorkerFailure, WorkerLost
from tutelage.placement import Resources
from tutelage.settings import RecoveryConfig, TimeoutConfig, WeightTransfer

KEY = (2, WeightTransfer.shared_memory.value)


@dataclass(eq=False)
class Engine:
    """Answers in an order of its own, and dies behind so many answers."""

    name: str
    dies_after: int | None = None
    refuses: bool = False
    served: list[int] = field(default_factory=list)
    stopped: bool = False

    async def stream(self, method: str, share: Sequence[Any], deadline: float) -> AsyncIterator[Any]:
        assert method == "generate"
        for request in reversed(share):
            if self.stopped or (self.dies_after is not None and len(self.served) >= self.dies_after):
                raise WorkerLost(f"{self.name} died during generate")
            if self.refuses:
                raise WorkerFailure(f"{self.name} failed in generate: ValueError")
            await asyncio.sleep(0)
            self.served.append(request.slot)
            yield request

    async def call(self, method: str, deadline: float) -> None:
        await asyncio.sleep(0)
        if self.stopped or (self.dies_after is not None and len(self.served) >= self.dies_after):
            raise WorkerLost(f"{self.name} died during {method}")

    def stop(self) -> None:
        self.stopped = True


class Group(RolloutGroup):
    """Engines of which some die, and so do some of those that come instead."""

    def __init__(self, lives: Sequence[int | None], later: Sequence[int | None] = (), max_restarts: int = 3) -> None:
        self.hired: list[Engine] = []
        self.later = iter(later)
        engines: Any = [Engine(f"rollout-{i}", life) for i, life in enumerate(lives)]
        cluster = Cluster(Path())
        cluster.names("rollout", len(engines))
        recovery = RecoveryConfig(max_restarts)
        super().__init__(
            "rollout", engines, self._hire_one, KEY, TimeoutConfig(), cluster, recovery, Resources(1, 0, 1)
        )

    async def _hire_one(self, names: Sequence[str]) -> Any:
        await asyncio.sleep(0.001)
        self.hired.append(Engine(names[0], next(self.later, None)))
        return self.hired[-1:]


async def answers(group: RolloutGroup, count: int) -> list[int]:
    requests = cast(Any, [SimpleNamespace(slot=slot) for slot in range(count)])
    return [trajectory.slot async for trajectory in group.roll_out(requests)]


LIVES = st.lists(st.none() | st.integers(0, 5), min_size=1, max_size=4)


@given(lives=LIVES, later=st.lists(st.integers(0, 5), max_size=3), count=st.integers(1, 12))
def test_every_request_is_answered_once_whoever_dies(lives: list[int | None], later: list[int], count: int) -> None:
    group = Group(lives, later, max_restarts=9)
    assert sorted(asyncio.run(answers(group, count))) == list(range(count))
    dead = sum(life is not None for life in (*lives, *later))
    assert group.restarts <= dead and len({engine.name for engine in group.hired}) == len(group.hired)


def test_what_a_dead_worker_was_asked_is_asked_again_as_a_whole() -> None:
    """A batch of another size would not repeat its arithmetic bit for bit."""
    group = Group([2])
    assert sorted(asyncio.run(answers(group, 4))) == [0, 1, 2, 3]
    assert sorted(group.hired[0].served) == [0, 1, 2, 3] and group.restarts == 1


def test_a_newcomer_serves_only_once_it_has_the_weights() -> None:
    group, seen = Group([0, None]), []

    async def bring(worker: Any) -> None:
        seen.append([worker.name, worker in group.workers, list(worker.served)])
        await asyncio.sleep(0.01)
        group.enlist(worker)

    async def run() -> None:
        group.enlist_with = bring
        assert sorted(await answers(group, 6)) == list(range(6))  # by the one that lives
        assert not group.hired or not group.hired[0].served
        await asyncio.sleep(0.05)
        assert [worker.name for worker in group.workers] == ["rollout-1", "rollout-2"]

    asyncio.run(run())
    assert seen == [["rollout-2", False, []]]


@pytest.mark.parametrize("allowed", [0, 2])
def test_after_so_many_replacements_the_failure_is_told(allowed: int) -> None:
    group = Group([1], [0] * 9, max_restarts=allowed)
    with pytest.raises(WorkerFailure, match=rf"{allowed} workers were replaced already \(recovery.max_restarts\)"):
        asyncio.run(answers(group, 4))
    assert len(group.hired) == allowed == group.restarts


def test_a_worker_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.crew._FIRST_PAUSE", 0.001)
    group, failures = Group([0]), iter([WorkerLost("rollout-1 did not start"), WorkerFailure("it raised")])
    hire = group._hire

    async def fails_twice(names: Sequence[str]) -> Any:
        for failure in failures:
            raise failure
        return await hire(names)

    group._hire = fails_twice
    assert sorted(asyncio.run(answers(group, 2))) == [0, 1]
    assert group.restarts == 3 and [engine.name for engine in group.hired] == ["rollout-3"]


def test_a_newcomer_that_cannot_have_the_weights_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.crew._FIRST_PAUSE", 0.001)
    group, failures = Group([0]), iter([WorkerFailure("learner-0 failed in publish")])

    async def bring(worker: Any) -> None:
        for failure in failures:
            raise failure
        group.enlist(worker)

    group.enlist_with = bring
    assert sorted(asyncio.run(answers(group, 2))) == [0, 1]
    assert [(engine.name, engine.stopped) for engine in group.hired] == [("rollout-1", True), ("rollout-2", False)]


def test_a_refused_request_is_not_asked_again() -> None:
    group = Group([None])
    cast(Any, group.workers[0]).refuses = True
    with pytest.raises(WorkerFailure, match="ValueError"):
        asyncio.run(answers(group, 2))
    assert group.restarts == 0


def test_engines_that_cannot_join_later_are_not_replaced() -> None:
    group = Group([0])
    group.reuse_key = (1, WeightTransfer.nccl.value)
    with pytest.raises(WorkerFailure, match=r"no engine can join later with learner\.weight_transfer=nccl"):
        asyncio.run(answers(group, 2))


def test_the_dead_are_found_and_replaced() -> None:
    group = Group([0, None, 0])

    async def run() -> list[str]:
        names = await group.strike_off_the_dead()
        assert await group.strike_off_the_dead() == []
        await asyncio.sleep(0.05)
        return names

    assert asyncio.run(run()) == ["rollout-0", "rollout-2"]
    assert [worker.name for worker in group.workers] == ["rollout-1", "rollout-3", "rollout-4"]
