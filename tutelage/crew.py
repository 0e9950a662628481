"""Workers that can stand in for each other: who is there, who was lost, and who comes instead.

    lost ─► struck off and killed ─► another one is started, with growing pauses ─► joins ─► enlisted

Whoever is lost is replaced recovery.max_restarts times a role. What cannot be replaced while the others go on (or no
more) is the crew's failure, raised to all who wait for a worker.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from tutelage.cluster import Cluster
from tutelage.errors import WorkerFailure, WorkerLate, WorkerLost
from tutelage.placement import NoRoom, Resources
from tutelage.settings import Placement, RecoveryConfig
from tutelage.worker import PING_SECONDS, Worker

log = logging.getLogger("tutelage")
HEALTH_SECONDS = 10.0  # between two looks at whether the workers live
_FIRST_PAUSE = 1.0  # seconds before a worker that could not be started is tried again; then twice as long each time


class Crew:
    """The workers of one role."""

    def __init__(
        self,
        role: str,
        hire: Callable[[Sequence[str]], Awaitable[list[Worker]]],
        cluster: Cluster,
        recovery: RecoveryConfig,
        needs: Resources,
        placement: Placement = Placement.spread,
        most: int = 0,
    ) -> None:
        """
        Args:
            role: in names of workers, and under which the cluster counts those that were replaced.
            hire: starts a worker of each name.
            needs: of each.
            most: as many as there may be once nodes have room for more than the crew began with.
        """
        self.role, self.workers = role, list[Worker]()
        self._hire, self._cluster, self._recovery = hire, cluster, recovery
        self._needs, self._placement, self._most = needs, placement, most
        self._hiring: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._failure: WorkerFailure | None = None
        self._watch: asyncio.Task[None] | None = None

    async def join(self, worker: Worker) -> None:
        """Make one that was hired like the others, and enlist it."""
        self.enlist(worker)

    @property
    def irreplaceable(self) -> str | None:
        """Why nobody can come instead of a worker while the others go on; None: somebody can."""
        return None

    @property
    def restarts(self) -> int:
        """Workers of the role that were replaced in this run."""
        return self._cluster.restarts[self.role]

    def enlist(self, worker: Worker) -> None:
        """Ask a worker from now on."""
        self.workers.append(worker)
        self._changed.set()

    async def present(self) -> list[Worker]:
        """Those who are there; waits until there is one.

        Raises:
            WorkerLost: there is none, and nobody can come while the others go on.
            WorkerFailure: there is none, and recovery.max_restarts is used up.
        """
        while not self.workers:
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()  # starting a worker has a deadline
        return list(self.workers)

    def lose(self, worker: Worker, error: WorkerLost) -> None:
        """Strike a worker off and look for another one, once however many requests it leaves behind."""
        if worker not in self.workers:
            return
        self.workers.remove(worker)
        worker.stop()  # it may only be late
        log.warning("%s", error)
        self._begin_hiring(self._replace(error))

    async def strike_off_the_dead(self) -> list[str]:
        """Ask all workers whether they live, and replace those that do not say so; returns their names."""
        silent = await self._silent()
        for worker, error in silent:
            self.lose(worker, error)
        return [worker.name for worker, _ in silent]

    def begin_watch(self) -> None:
        """Notice a death before anybody asks, and one that whoever has asked would not be told."""
        self._watch = self._spawn(self._keep_watch())

    def end_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _begin_hiring(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._spawn(work)
        self._hiring.add(task)
        task.add_done_callback(self._hiring.discard)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._cluster.tasks.add(task)  # it ends with the start of the run that the crew belongs to
        task.add_done_callback(self._cluster.tasks.discard)
        return task

    async def _keep_watch(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_SECONDS)
            for worker, error in await self._silent():
                if not isinstance(error, WorkerLate):  # it may be busy: its callers have deadlines of their own
                    self.lose(worker, error)
            may_grow = len(self.workers) + len(self._hiring) < self._most and self.irreplaceable is None
            if may_grow and self._cluster.has_room(self._needs, self._placement):
                self._begin_hiring(self._grow())

    async def _grow(self) -> None:
        """Have one more, of nodes that have room now; where that fails it is not tried again."""
        (name,) = self._cluster.names(self.role, 1)
        try:
            await self._bring_in(name)
        except WorkerFailure as error:
            self._most = 0
            log.warning("no more workers than there are: %s", error)
        else:
            log.warning("%s joins: there is room for it", name)

    async def disband(self) -> bool:
        """Hire nobody any more; returns whether all who should be there are, and answer."""
        self.end_watch()
        is_whole = self._failure is None and not self._hiring
        for task in self._hiring:
            task.cancel()
        await asyncio.gather(*self._hiring, return_exceptions=True)
        return is_whole and not await self._silent()

    async def _silent(self) -> list[tuple[Worker, WorkerLost]]:
        """The workers that do not say that they live, and what came instead."""
        asked = list(self.workers)
        answers = await asyncio.gather(
            *(worker.call("ping", deadline=PING_SECONDS) for worker in asked), return_exceptions=True
        )
        pairs = zip(asked, answers, strict=True)
        return [(worker, answer) for worker, answer in pairs if isinstance(answer, WorkerLost)]

    async def _replace(self, error: WorkerFailure) -> None:
        allowed = self._recovery.max_restarts
        for attempt in itertools.count():
            if self.irreplaceable is not None:
                self._fail(WorkerLost(f"{error}\n{self.role}: {self.irreplaceable}"))
                return
            if self.restarts >= allowed:
                why = f"{allowed} workers were replaced already (recovery.max_restarts)"
                self._fail(WorkerFailure(f"{error}\n{self.role}: {why}"))
                return
            self._cluster.restarts[self.role] += 1
            (name,) = self._cluster.names(self.role, 1)
            await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1) if attempt else 0)
            try:
                await self._bring_in(name)
            except NoRoom as another:
                self._fail(NoRoom(f"{error}\n{another}"))
                return
            except WorkerFailure as another:
                error = another
                continue
            log.warning("%s takes the place of the one that was lost", name)
            return

    async def _bring_in(self, name: str) -> None:
        """Hire and enlist, as soon as there is room: as long as others work, a node may take its time to come back.

        Raises:
            NoRoom: there is none, and nobody is left to work meanwhile.
            WorkerFailure: the newcomer failed, and is ended.
        """
        hired: list[Worker] = []
        while not hired:
            try:
                hired = await self._hire([name])
            except NoRoom:
                if not self.workers:
                    raise
        try:
            for worker in hired:
                await self.join(worker)
        except BaseException:
            for worker in hired:
                worker.stop()  # it lives, and nobody would ever ask it
            raise

    def _fail(self, failure: WorkerFailure) -> None:
        self._failure = failure
        self._changed.set()
