"""The one streaming pipeline between rollout, scoring and learner.

    admit (B slots freed by an update) ─► roll_out ─► score ─► ready ─► next_batch ─► learner
      ▲                                  one by one   each alone   ▲                   │
      └──────────────── advance(version): the engines have the new weights ◄───────────┘

Who waits for whom: admission waits for `advance`; scoring for one finished rollout; `next_batch` for enough
ready trajectories; nobody else for anybody. A failure in any task is raised by `next_batch`.

**Why no trajectory is older than s = `max_staleness`.** Let B be the batch size, u the learner's version, and the
class of a trajectory the version of the engines when it was admitted (its tokens are never older). At most (s+1)·B
slots are active, since a slot is freed only by `advance`. Before step u, let n_j count the active trajectories of class
u−s+j or older. The invariant is n_j ≤ (j+1)·B for 0 ≤ j ≤ s. `j = s` is the slot budget. Step u must therefore take
at least n_j − j·B of class u−s+j or older; then, at step u+1, where every j means one class later, the invariant holds
again for j < s. For j = 0 that means: whatever has age s now is trained now. All other places of the batch go to
whichever trajectories finished first, so with s ≥ 1 nobody waits for the slowest sample.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from learner.batch import Example
from orchestration.clock import StageClock
from rollout.trajectory import Trajectory
from scoring.signal import TeacherSignal

RollOut = Callable[[Sequence[int]], AsyncIterator[Trajectory]]
Score = Callable[[Trajectory], Awaitable[TeacherSignal]]


@dataclass(frozen=True)
class Cursor:
    """Where a run stands in its prompts: slots that were admitted but not trained, and the next new one."""

    next_slot: int = 0
    pending: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Ready:
    admitted_at: int  # policy version
    example: Example


class Pipeline:
    """Keeps (max_staleness + 1) · batch_size slots busy and forms batches from what is ready."""

    def __init__(
        self,
        roll_out: RollOut,
        score: Score,
        *,
        batch_size: int,
        max_staleness: int,
        total_slots: int,
        clock: StageClock,
        cursor: Cursor | None = None,
        version: int = 0,
    ) -> None:
        self._roll_out, self._score = roll_out, score
        self._batch_size, self._max_staleness = batch_size, max_staleness
        self._total_slots = total_slots
        self._clock = clock
        cursor = cursor or Cursor()
        self._next_slot = cursor.next_slot
        self._readmit = list(cursor.pending)
        self._version = version
        self._active: dict[int, int] = {}  # slot -> version at admission
        self._ready: dict[int, _Ready] = {}  # in the order in which they became ready
        self._in_training: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        self._admit()

    @property
    def cursor(self) -> Cursor:
        """What to resume from if the run stopped now, counting the batch in training as trained."""
        pending = sorted(set(self._active) - self._in_training)
        return Cursor(self._next_slot, tuple(pending + self._readmit))

    @property
    def ready(self) -> int:
        return len(self._ready)

    async def next_batch(self) -> list[Example]:
        """The next `batch_size` examples, ordered by slot; waits until they are there.

        Raises:
            Whatever ended a rollout or a scoring task.
        """
        while True:
            if self._failure is not None:
                raise self._failure
            chosen = self._choose()
            if chosen is not None:
                break
            self._changed.clear()
            with self._clock.span("waiting"):
                await self._changed.wait()
        self._in_training = set(chosen)
        return [self._ready.pop(slot).example for slot in sorted(chosen)]

    def advance(self, version: int) -> None:
        """The engines have the weights of `version`: the trained slots are free for new prompts."""
        self._version = version
        for slot in self._in_training:
            del self._active[slot]
        self._in_training = set()
        self._admit()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _choose(self) -> list[int] | None:
        chosen: list[int] = []
        for j in range(self._max_staleness):
            newest = self._version - self._max_staleness + j
            overdue = sum(v <= newest for v in self._active.values()) - j * self._batch_size
            for slot, item in self._ready.items():
                if len(chosen) >= overdue:
                    break
                if item.admitted_at <= newest and slot not in chosen:
                    chosen.append(slot)
            if len(chosen) < overdue:
                return None
        fill = [slot for slot in self._ready if slot not in chosen]
        chosen += fill[: self._batch_size - len(chosen)]
        return chosen if len(chosen) == self._batch_size else None

    def _admit(self) -> None:
        slots: list[int] = []
        while len(self._active) < (self._max_staleness + 1) * self._batch_size:
            if self._readmit:
                slot = self._readmit.pop(0)
            elif self._next_slot < self._total_slots:
                slot, self._next_slot = self._next_slot, self._next_slot + 1
            else:
                break
            self._active[slot] = self._version
            slots.append(slot)
        if slots:
            self._spawn(self._generate(slots))

    async def _generate(self, slots: list[int]) -> None:
        with self._clock.span("rollout"):
            async for trajectory in self._roll_out(slots):
                self._spawn(self._mark(trajectory))

    async def _mark(self, trajectory: Trajectory) -> None:
        with self._clock.span("scoring"):
            signal = await self._score(trajectory)
        slot = trajectory.slot
        self._ready[slot] = _Ready(self._active[slot], Example(trajectory, signal))
        self._changed.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._changed.set()
