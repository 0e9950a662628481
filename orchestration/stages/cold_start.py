"""Cold start: supervised fine-tuning on sequences that another wrote, for as many epochs as the steps make.

The student's engines answer held-out prompts only, and get its weights for that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from learner.records import Example
from orchestration.pipeline.progress import Cursor
from orchestration.pipeline.requests import rollout_request
from orchestration.pipeline.schedule import PromptSchedule
from orchestration.stages.sequences import JudgedSequence, SequenceVerdict, load_sequences
from orchestration.stages.training import TrainingStage
from tutelage.records.prompt import RenderedPrompt
from tutelage.records.trajectory import FinishReason, Origin, Trajectory, foreign_trajectory


class Epochs:
    """Batches of the same sequences over and over, in a new order each time; slot n is always the same one."""

    def __init__(
        self,
        sequences: Sequence[JudgedSequence],
        prompts: Mapping[str, RenderedPrompt],
        schedule: PromptSchedule,
        batch_size: int,
        cursor: Cursor,
    ) -> None:
        self._sequences, self._prompts, self._schedule = sequences, prompts, schedule
        self._batch_size = batch_size
        self._next_slot = cursor.next_slot

    @property
    def cursor(self) -> Cursor:
        return Cursor(self._next_slot)

    @property
    def ready(self) -> int:
        return self._batch_size

    def start(self) -> None:
        """Nothing has to be produced."""

    async def next_batch(self) -> list[Example]:
        slots = range(self._next_slot, self._next_slot + self._batch_size)
        self._next_slot = slots.stop
        return [Example(self._trajectory(slot), None) for slot in slots]

    def advance(self, version: int) -> None:
        """Nothing waits for the engines."""

    async def close(self) -> None:
        """Nothing is being produced."""

    def _trajectory(self, slot: int) -> Trajectory:
        plan = self._schedule.plan(slot)
        sequence = self._sequences[plan.prompt_index]
        ids = np.array(sequence.response_ids, dtype=np.int32)
        item = self._prompts[sequence.prompt_id]
        request = rollout_request(item, slot, plan.seed, len(ids), sample_index=sequence.sample_index)
        return foreign_trajectory(request, ids, FinishReason.STOP, Origin(sequence.origin))


@dataclass
class ColdStart(TrainingStage):
    """Learn from the sequences that the run has collected."""

    engines_follow: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        config = self.config
        kept = [item for item in load_sequences(self.run_dir) if item.verdict == SequenceVerdict.kept.value]
        schedule = PromptSchedule(len(kept), 1, config.seed, config.data.shuffle)
        cursor = self.progress.resumed_from
        self._epochs = Epochs(kept, self._prompts, schedule, config.pipeline.batch_size, cursor)

    @property
    def batches(self) -> Epochs:
        return self._epochs
