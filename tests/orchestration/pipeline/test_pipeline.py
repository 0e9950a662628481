"""The pipeline alone, with stages that only wait: staleness, order, back-pressure, resumption, failures."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.records import Example
from orchestration.pipeline.pipeline import Pipeline
from orchestration.pipeline.progress import Cursor, StageClock
from tests.factories import make_trajectory
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import PolicySpan, Trajectory


def trajectory(slot: int, version: int) -> Trajectory:
    return make_trajectory([1], [1], slot=slot, prompt_id=f"p{slot}", spans=(PolicySpan(version, 0, 1),))


class Stages:
    """Rollouts take `duration(slot)` event-loop turns and are born with the engines' version."""

    def __init__(self, duration: Callable[[int], int]) -> None:
        self.version = 0
        self.running = 0
        self.most_running = 0
        self._duration = duration

    async def roll_out(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        born = self.version
        for slot in sorted(slots, key=self._duration):
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            for _ in range(self._duration(slot)):
                await asyncio.sleep(0)
            self.running -= 1
            yield trajectory(slot, born)

    async def score(self, item: Trajectory) -> TeacherSignal:
        await asyncio.sleep(0)
        zeros = np.zeros(1, np.float32)
        return TeacherSignal("teacher", zeros, zeros)


async def train(pipeline: Pipeline, stages: Stages, steps: int, turns: int = 3) -> list[list[Example]]:
    batches = []
    pipeline.start()
    for _ in range(steps):
        batch = await asyncio.wait_for(pipeline.next_batch(), 10)
        for _ in range(turns):
            await asyncio.sleep(0)
        stages.version += 1
        pipeline.advance(stages.version)
        batches.append(batch)
    return batches


@settings(max_examples=60)
@given(
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
    st.integers(0, 12),
)
def test_no_trajectory_is_older_than_the_bound_and_every_slot_is_trained_once_with_its_group(
    groups: int, group_size: int, staleness: int, steps: int, seed: int, turns: int
) -> None:
    rng = random.Random(seed)
    batch_size = groups * group_size
    durations = [rng.choice([0, 1, 2, 40]) for _ in range(batch_size * steps)]
    stages = Stages(durations.__getitem__)

    async def run() -> list[list[Example]]:
        pipeline = Pipeline(
            stages.roll_out,
            stages.score,
            batch_size=batch_size,
            max_staleness=staleness,
            total_slots=batch_size * steps,
            clock=StageClock(),
            group_size=group_size,
        )
        return await train(pipeline, stages, steps, turns)

    batches = asyncio.run(run())
    for version, batch in enumerate(batches):
        assert all(0 <= version - e.trajectory.oldest_version <= staleness for e in batch)
        slots = [e.trajectory.slot for e in batch]
        assert slots == sorted(slots)
        assert slots == [first + i for first in slots if first % group_size == 0 for i in range(group_size)]
    assert sorted(e.trajectory.slot for b in batches for e in b) == list(range(batch_size * steps))


@settings(max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(1, 7),
    st.integers(0, 4),
    st.integers(0, 2**32 - 1),
    st.integers(0, 12),
)
def test_dropped_groups_are_replaced_within_their_limit_and_make_nothing_older(
    groups: int, group_size: int, staleness: int, steps: int, limit: int, seed: int, turns: int
) -> None:
    batch_size = groups * group_size
    stages = Stages(lambda slot: random.Random(seed + slot).choice([0, 1, 2, 40]))
    dropped: list[list[int]] = [[] for _ in range(steps + 1)]  # first slots, by the version at the time

    def keep(examples: Sequence[Example]) -> bool:
        slot = min(e.trajectory.slot for e in examples)
        assert sorted(e.trajectory.slot for e in examples) == list(range(slot, slot + group_size))
        wanted = random.Random(seed - slot).random() < 0.5
        if not wanted and len(dropped[stages.version]) < limit:
            dropped[stages.version].append(slot)
        return wanted

    async def run() -> tuple[list[list[Example]], Cursor]:
        pipeline = Pipeline(
            stages.roll_out,
            stages.score,
            batch_size=batch_size,
            max_staleness=staleness,
            total_slots=batch_size * steps,
            clock=StageClock(),
            group_size=group_size,
            keep=keep,
            max_replaced=limit,
        )
        return await train(pipeline, stages, steps, turns), pipeline.cursor

    batches, cursor = asyncio.run(run())
    assert all(
        0 <= version - e.trajectory.oldest_version <= staleness for version, batch in enumerate(batches) for e in batch
    )
    assert [len(batch) for batch in batches] == [batch_size] * steps
    assert cursor.replaced == sum(map(len, dropped))
    trained = [e.trajectory.slot for batch in batches for e in batch]
    lost = [slot for firsts in dropped for first in firsts for slot in range(first, first + group_size)]
    assert sorted(trained + lost) == list(range(cursor.next_slot))


def test_a_resumed_run_makes_up_for_what_was_dropped_before() -> None:
    stages = Stages(lambda slot: slot % 3)

    def pipeline(cursor: Cursor) -> Pipeline:
        return Pipeline(
            stages.roll_out,
            stages.score,
            batch_size=2,
            max_staleness=1,
            total_slots=12,
            clock=StageClock(),
            keep=lambda examples: examples[0].trajectory.slot % 3 > 0,
            max_replaced=100,
            cursor=cursor,
            version=stages.version,
        )

    async def some(cursor: Cursor, steps: int) -> tuple[list[int], Cursor]:
        flow = pipeline(cursor)
        batches = await train(flow, stages, steps)
        await flow.close()
        return [e.trajectory.slot for batch in batches for e in batch], flow.cursor

    first, cursor = asyncio.run(some(Cursor(), 3))
    second, end = asyncio.run(some(cursor, 3))
    assert sorted(first + second) == [slot for slot in range(18) if slot % 3][:12]
    assert end.replaced == 6 and end.pending == ()


def test_staleness_is_used_to_pass_by_a_slow_sample() -> None:
    stages = Stages(lambda slot: 200 if slot == 0 else 0)

    async def run() -> list[list[Example]]:
        pipeline = Pipeline(
            stages.roll_out, stages.score, batch_size=4, max_staleness=1, total_slots=16, clock=StageClock()
        )
        return await train(pipeline, stages, 4)

    first, second, *_ = asyncio.run(run())
    assert 0 not in [e.trajectory.slot for e in first]
    assert 0 in [e.trajectory.slot for e in second]


@pytest.mark.parametrize("group_size", [1, 3])
def test_the_cursor_names_what_was_admitted_and_not_trained(group_size: int) -> None:
    stages = Stages(lambda slot: slot % 3)

    async def interrupted() -> tuple[list[int], Cursor]:
        pipeline = Pipeline(
            stages.roll_out,
            stages.score,
            batch_size=3,
            max_staleness=2,
            total_slots=30,
            clock=StageClock(),
            group_size=group_size,
        )
        batches = await train(pipeline, stages, 4)
        batch = await pipeline.next_batch()  # in training when the checkpoint is written
        trained = [e.trajectory.slot for b in [*batches, batch] for e in b]
        cursor = pipeline.cursor
        await pipeline.close()
        return trained, cursor

    trained, cursor = asyncio.run(interrupted())
    assert set(cursor.pending).isdisjoint(trained)

    async def resumed() -> list[int]:
        pipeline = Pipeline(
            stages.roll_out,
            stages.score,
            batch_size=3,
            max_staleness=2,
            total_slots=30,
            clock=StageClock(),
            group_size=group_size,
            cursor=cursor,
            version=stages.version,
        )
        return [e.trajectory.slot for b in await train(pipeline, stages, 5) for e in b]

    assert sorted(trained + asyncio.run(resumed())) == list(range(30))


def test_a_batch_of_broken_groups_is_refused() -> None:
    stages = Stages(lambda slot: 0)
    with pytest.raises(ValueError, match=r"pipeline\.batch_size=4 .* groups of 3"):
        Pipeline(
            stages.roll_out,
            stages.score,
            batch_size=4,
            max_staleness=0,
            total_slots=12,
            clock=StageClock(),
            group_size=3,
        )


def test_a_failed_stage_is_raised_to_the_learner() -> None:
    stages = Stages(lambda slot: 0)

    async def broken(item: Trajectory) -> TeacherSignal:
        raise RuntimeError("teacher gone")

    async def run() -> None:
        pipeline = Pipeline(stages.roll_out, broken, batch_size=2, max_staleness=0, total_slots=2, clock=StageClock())
        pipeline.start()
        await asyncio.wait_for(pipeline.next_batch(), 10)

    with pytest.raises(RuntimeError, match="teacher gone"):
        asyncio.run(run())
