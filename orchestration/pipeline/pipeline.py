"""The one streaming pipeline between rollout, scoring and learner.

    admit (slots freed by an update) ─► roll_out ─► score ─► ready ─► next_batch ─► learner
      ▲                                one by one   each alone   by group            │
      └──────────────── advance(version): the engines have the new weights ◄───────────┘

Who waits for whom: admission waits for `advance`; scoring for one finished rollout; `next_batch` for enough
ready trajectories; nobody else for anybody. A failure in any task is raised by `next_batch`.

A group is `group_size` consecutive slots that are trained in one batch: one slot, or all samples of a prompt where
their rewards are compared. It is admitted at once, is ready when its last member is, and is freed as a whole, so what
follows counts in groups.

**Why no trajectory is older than s = `max_staleness`.** Let B be the groups of a batch, u the learner's version, and
the class of a group the version of the engines when it was admitted (its tokens are never older). At most (s+1)·B
groups are active, since a group is freed only by `advance`. Before step u, let n_j count the active groups of class
u−s+j or older. The invariant is n_j ≤ (j+1)·B for 0 ≤ j ≤ s. `j = s` is the budget. Step u must therefore take
at least n_j − j·B of class u−s+j or older; then, at step u+1, where every j means one class later, the invariant holds
again for j < s. For j = 0 that means: whatever has age s now is trained now. All other places of the batch go to
whichever groups finished first, so with s ≥ 1 nobody waits for the slowest one.

**Groups that are not worth a step.** A complete group that `keep` does not want is dropped and its place given to the
next prompts at once, at most `max_replaced` times between two updates; what comes later is kept whatever it is, so a
step always comes about. The invariant survives: dropping lowers each n_j or leaves it, also below what a batch in
training was chosen by, and the newcomer's class is the present version u (its tokens are of these weights or, if they
are being replaced, newer), which counts in n_s alone, where it takes the place of the dropped one. Every admitted
group is trained or counted as replaced.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from learner.records import Example
from orchestration.pipeline.progress import Cursor, StageClock
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import Trajectory

RollOut = Callable[[Sequence[int]], AsyncIterator[Trajectory]]
Score = Callable[[Trajectory], Awaitable[TeacherSignal | None]]
Keep = Callable[[Sequence[Example]], bool]


class Pipeline:
    """Keeps (max_staleness + 1) · batch_size slots busy and forms batches from what is ready.

    Args:
        total_slots: that the run trains on; like `batch_size`, whole groups.
        keep: whether a complete group is worth training on; all are, if there is nobody to ask.
        max_replaced: groups that may be dropped for further ones between two updates.
    """

    def __init__(
        self,
        roll_out: RollOut,
        score: Score,
        *,
        batch_size: int,
        max_staleness: int,
        total_slots: int,
        clock: StageClock,
        group_size: int = 1,
        keep: Keep | None = None,
        max_replaced: int = 0,
        cursor: Cursor | None = None,
        version: int = 0,
    ) -> None:
        if batch_size % group_size or total_slots % group_size:
            raise ValueError(f"pipeline.batch_size={batch_size} does not hold whole groups of {group_size} samples")
        self._roll_out, self._score = roll_out, score
        self._group_size, self._max_staleness = group_size, max_staleness
        self._batch_groups = batch_size // group_size
        self._clock = clock
        cursor = cursor or Cursor()
        self._keep, self._max_replaced = keep, max_replaced
        self._replaced, self._replaced_since_update = cursor.replaced, 0
        self._total_groups = total_slots // group_size + cursor.replaced
        self._next_group = cursor.next_slot // group_size
        self._readmit = list(dict.fromkeys(slot // group_size for slot in cursor.pending))
        self._version = version
        self._active: dict[int, int] = {}  # group -> version at admission
        self._arrived: dict[int, list[Example]] = defaultdict(list)  # of groups that are not complete
        self._ready: dict[int, list[Example]] = {}  # complete groups, in the order in which they became so
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
        slots = tuple(self._slots(pending + self._readmit))
        return Cursor(self._next_group * self._group_size, slots, self._replaced)

    @property
    def ready(self) -> int:
        """Trajectories that could be trained now."""
        return len(self._ready) * self._group_size

    @property
    def replaced(self) -> int:
        """Groups that were dropped for further ones since the run began."""
        return self._replaced

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
        batch = [example for group in sorted(chosen) for example in self._ready.pop(group)]
        return sorted(batch, key=lambda example: example.trajectory.slot)

    def advance(self, version: int) -> None:
        """The engines have the weights of `version`: the trained slots are free for new prompts."""
        self._version = version
        for group in self._in_training:
            del self._active[group]
        self._in_training = set()
        self._replaced_since_update = 0
        self._admit()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _choose(self) -> list[int] | None:
        chosen: list[int] = []
        for j in range(self._max_staleness):
            newest = self._version - self._max_staleness + j
            overdue = sum(v <= newest for v in self._active.values()) - j * self._batch_groups
            for group in self._ready:
                if len(chosen) >= overdue:
                    break
                if self._active[group] <= newest and group not in chosen:
                    chosen.append(group)
            if len(chosen) < overdue:
                return None
        fill = [group for group in self._ready if group not in chosen]
        chosen += fill[: self._batch_groups - len(chosen)]
        return chosen if len(chosen) == self._batch_groups else None

    def _admit(self) -> None:
        groups: list[int] = []
        while len(self._active) < (self._max_staleness + 1) * self._batch_groups:
            if self._readmit:
                group = self._readmit.pop(0)
            elif self._next_group < self._total_groups:
                group, self._next_group = self._next_group, self._next_group + 1
            else:
                break
            self._active[group] = self._version
            groups.append(group)
        if groups:
            self._spawn(self._generate(self._slots(groups)))

    def _slots(self, groups: Sequence[int]) -> list[int]:
        size = self._group_size
        return [slot for group in groups for slot in range(group * size, (group + 1) * size)]

    async def _generate(self, slots: list[int]) -> None:
        with self._clock.span("rollout"):
            async for trajectory in self._roll_out(slots):
                self._spawn(self._score_one(trajectory))

    async def _score_one(self, trajectory: Trajectory) -> None:
        with self._clock.span("scoring"):
            signal = await self._score(trajectory)
        group = trajectory.slot // self._group_size
        self._arrived[group].append(Example(trajectory, signal))
        if len(self._arrived[group]) == self._group_size:
            self._complete(group, self._arrived.pop(group))
            self._changed.set()

    def _complete(self, group: int, examples: list[Example]) -> None:
        wanted = self._keep is None or self._keep(examples)
        if wanted or self._replaced_since_update == self._max_replaced:
            self._ready[group] = examples
        else:
            self._replace(group)

    def _replace(self, group: int) -> None:
        del self._active[group]
        self._replaced += 1
        self._replaced_since_update += 1
        self._total_groups += 1
        self._admit()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._changed.set()
