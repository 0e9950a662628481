"""Which prompt, sample and seed belong to each slot of a run."""

from dataclasses import dataclass

import numpy as np

from tutelage.records.trajectory import derive_seed


@dataclass(frozen=True)
class SlotPlan:
    slot: int
    prompt_index: int  # into the training prompts
    sample_index: int
    seed: int
    student: bool = True  # whether the sequence is the student's own


class PromptSchedule:
    """Slot n of a run always means the same prompt, sample and seed, whatever happened before it.

    Prompts are shuffled anew in every epoch; the samples of one prompt are neighbours. Each sequence is the student's
    own with probability `on_policy_fraction`, drawn from the seed and the slot.
    """

    def __init__(
        self, prompts: int, samples_per_prompt: int, seed: int, shuffle: bool, on_policy_fraction: float = 1.0
    ) -> None:
        self._prompts = prompts
        self._samples = samples_per_prompt
        self._seed = seed
        self._shuffle = shuffle
        self._on_policy_fraction = on_policy_fraction
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def plan(self, slot: int) -> SlotPlan:
        ordinal, sample_index = divmod(slot, self._samples)
        epoch, position = divmod(ordinal, self._prompts)
        seed = derive_seed(self._seed, slot)
        # A generator of its own: neither the order nor the sampling seeds depend on the share.
        student = np.random.default_rng([self._seed, slot, 1]).random() < self._on_policy_fraction
        return SlotPlan(slot, int(self._epoch_order(epoch)[position]), sample_index, seed, bool(student))

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            order = np.arange(self._prompts)
            if self._shuffle:
                order = np.random.default_rng([self._seed, epoch]).permutation(self._prompts)
            self._order = (epoch, order)
        return self._order[1]
