"""Whom a crew strikes off, and when it replaces nobody any more; what its groups ask is tested with them."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tutelage import crew
from tutelage.cluster import Cluster
from tutelage.crew import Crew
from tutelage.errors import WorkerLate, WorkerLost
from tutelage.placement import NoRoom, Resources
from tutelage.settings import RecoveryConfig


class Fake:
    """A worker that answers a ping, or fails in one way."""

    handle = None

    def __init__(self, name: str, failure: type[WorkerLost] | None = None) -> None:
        self.name, self.failure, self.stopped = name, failure, False

    async def call(self, method: str, deadline: float) -> None:
        assert method == "ping"
        if self.failure is not None:
            raise self.failure(f"{self.name} does not answer")

    def stop(self) -> None:
        self.stopped = True


def crew_of(*workers: Fake, start_seconds: float = 0.0, most: int = 0) -> tuple[Crew, Cluster, list[str]]:
    cluster, hired = Cluster(Path()), list[str]()

    async def hire(names: Sequence[str]) -> Any:
        hired.extend(names)
        await asyncio.sleep(start_seconds)
        return [Fake(name) for name in names]

    made = Crew("scoring", hire, cluster, RecoveryConfig(), Resources(1, 0, 1), most=most)
    cluster.names("scoring", len(workers))
    for worker in workers:
        made.enlist(worker)  # type: ignore[arg-type]
    return made, cluster, hired


async def names_after(made: Crew, seconds: float = 0.1) -> list[str]:
    await asyncio.sleep(seconds)
    return [worker.name for worker in made.workers]


def test_a_watch_replaces_the_dead_and_leaves_the_busy_to_their_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "HEALTH_SECONDS", 0.01)

    async def run() -> None:
        dead, busy = Fake("scoring-0", WorkerLost), Fake("scoring-1", WorkerLate)
        made, cluster, _ = crew_of(dead, busy)
        made.begin_watch()
        assert await names_after(made) == ["scoring-1", "scoring-2"]
        assert dead.stopped and not busy.stopped and cluster.restarts == {"scoring": 1}
        made.end_watch()

    asyncio.run(run())


def test_a_crew_is_whole_if_all_answer_and_nobody_is_on_the_way() -> None:
    async def run() -> list[bool]:
        whole, late = crew_of(Fake("scoring-0"))[0], crew_of(Fake("scoring-0", WorkerLate))[0]
        hiring, _, hired = crew_of(Fake("scoring-0"), Fake("scoring-1"), start_seconds=60)
        hiring.lose(hiring.workers[0], WorkerLost("gone"))
        await asyncio.sleep(0)
        answers = [await one.disband() for one in (whole, late, hiring)]
        assert hired == ["scoring-2"] and await names_after(hiring) == ["scoring-1"]
        return answers

    assert asyncio.run(run()) == [True, False, False]


@pytest.mark.parametrize("others", [1, 0])
def test_room_is_waited_for_as_long_as_others_work(others: int) -> None:
    async def run() -> None:
        made, cluster, _ = crew_of(*(Fake(f"scoring-{i}") for i in range(1 + others)))
        hire, looks = made._hire, []

        async def hire_at_last(names: Sequence[str]) -> Any:
            looks.append(names)
            await asyncio.sleep(0)
            if len(looks) < 4:
                raise NoRoom("1 times 2 CPUs are asked for; free there: none")
            return await hire(names)

        made._hire = hire_at_last
        made.lose(made.workers[0], WorkerLost("its node is gone"))
        await asyncio.sleep(0.05)
        if others:
            assert len(looks) == 4 and cluster.restarts == {"scoring": 1} and len(made.workers) == 2
        else:
            with pytest.raises(NoRoom, match="asked for"):
                await made.present()

    asyncio.run(run())


def test_a_crew_grows_as_far_as_it_may_and_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "HEALTH_SECONDS", 0.01)
    room = iter([False, False, True, True, True])
    monkeypatch.setattr(Cluster, "has_room", lambda *_: next(room))

    async def run() -> None:
        made, cluster, _ = crew_of(Fake("scoring-0"), most=3)
        made.begin_watch()
        assert await names_after(made, 0.2) == ["scoring-0", "scoring-1", "scoring-2"]
        assert not cluster.restarts and next(room)  # nobody has looked for more
        made.end_watch()

    asyncio.run(run())


def test_a_newcomer_that_fails_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "HEALTH_SECONDS", 0.01)
    monkeypatch.setattr(Cluster, "has_room", lambda *_: True)

    async def run() -> None:
        made, _, hired = crew_of(Fake("scoring-0"), most=3)

        async def refuse(worker: Any) -> None:
            raise WorkerLost(f"{worker.name} died")

        made.join = refuse  # type: ignore[method-assign]
        made.begin_watch()
        assert await names_after(made) == ["scoring-0"] and hired == ["scoring-1"]
        made.end_watch()

    asyncio.run(run())


def test_a_crew_replaces_nobody_once_its_start_of_the_run_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "HEALTH_SECONDS", 0.01)

    async def run() -> None:
        made, cluster, hired = crew_of(Fake("scoring-0"))
        made.begin_watch()
        cluster.dismiss_all_but_idle()
        made.workers[0].failure = WorkerLost  # type: ignore[attr-defined]
        assert await names_after(made) == ["scoring-0"] and hired == [] and not cluster.restarts

    asyncio.run(run())
