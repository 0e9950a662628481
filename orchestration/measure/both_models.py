"""Student and another model on the same answers, over the whole vocabulary, without learning from them.

answers ─► requests ─► the other model's hidden states ─► pairs ─► a packed batch ─► learner: divergences, every token
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from learner.config import LearnerConfig
from learner.packing import pack
from learner.records import Batch, Example, ExampleDivergence, ExampleTokens
from orchestration.config.schema import RunConfig
from orchestration.pipeline.fleet import Fleet
from scoring.config import TEACHER
from scoring.group import ScoringGroup
from tutelage.lm.packed import shares_prefixes
from tutelage.records.prompt import RenderedPrompt
from tutelage.records.signal import ScoringRequest
from tutelage.records.trajectory import Trajectory
from tutelage.settings import ConfigError, Refusal
from tutelage.stops import StopClass

T = TypeVar("T")


def full_request(item: RenderedPrompt, answer: Trajectory, stops: StopClass | None) -> ScoringRequest:
    """Ask the prompt's teacher for its whole distribution at each token of an answer; `stops` are one action."""
    return ScoringRequest(item.prompt.teacher, item.teacher_ids, answer.response_ids, hidden_states=True, stops=stops)


def teacher_in_question(config: RunConfig, fleet: Fleet) -> ScoringGroup:
    """The workers of `teacher`, for what looks at one teacher only.

    Raises:
        ConfigError: no teacher takes part, or none of the prompts is this one's.
    """
    if TEACHER in fleet.teachers:
        return fleet.teachers.groups[TEACHER]
    others = ", ".join(fleet.teachers.teachers)
    if others:
        fix = "score all prompts, and this looks at teacher alone; leave them out and set teacher to the right one"
        raise ConfigError(Refusal("further_teachers", others, fix))
    raise ConfigError(Refusal("stage", config.stage, "no teacher takes part, and this looks at one; set stage=distil"))


@dataclass(frozen=True)
class BothModels:
    """The learner's student at a version, and whoever scores."""

    fleet: Fleet
    learner: LearnerConfig
    version: int = 0

    async def ask(
        self,
        answers: Sequence[Trajectory],
        requests: Sequence[ScoringRequest],
        views: Sequence[Mapping[str, NDArray[np.int32]]] = (),
    ) -> list[Example]:
        """The answers, each with what the model that its request names says about it.

        Tokens that only one of the two tokenizers has are left out.

        Args:
            views: for mixtures, what each of their teachers sees of each request's prompt.
        """
        seen = views or [{}] * len(requests)
        asked = (self.fleet.teachers.score(*one) for one in zip(requests, seen, strict=True))
        signals = await asyncio.gather(*asked)
        examples = []
        for answer, signal in zip(answers, signals, strict=True):
            uncommon = self.fleet.uncommon.get(signal.teacher)
            if uncommon is not None:
                signal = replace(signal, known=~np.isin(answer.response_ids, uncommon))
            examples.append(Example(answer, signal))
        return examples

    async def divergences(self, examples: Sequence[Example]) -> list[ExampleDivergence]:
        """One record an example, in their order, each against the model that its signal is of."""
        return await self._by_model(examples, self.fleet.learner.evaluate)

    async def tokens(self, examples: Sequence[Example], k: int) -> list[ExampleTokens]:
        """One record an example, in their order: every token under both models, with the top `k` ids of each."""
        return await self._by_model(examples, lambda batch, model: self.fleet.learner.examine(batch, k, model))

    async def student_logprobs(self, answers: Sequence[Trajectory]) -> list[NDArray[np.float32]]:
        """[T] each: the learner's log-probs of the loss tokens."""
        return await self.fleet.learner.logprobs(self._pack([Example(answer, None) for answer in answers]))

    async def _by_model(self, examples: Sequence[Example], look: Callable[[Batch, str], Awaitable[list[T]]]) -> list[T]:
        """A batch has one LM head besides the student's, so the examples of each model make one of their own."""
        indices: dict[str, list[int]] = {}  # of the examples, by model
        for index, example in enumerate(examples):
            assert example.signal is not None  # as `ask` made it
            indices.setdefault(example.signal.teacher, []).append(index)
        records: dict[int, T] = {}
        for model in sorted(indices):
            batch = self._pack([examples[index] for index in indices[model]])
            records |= zip(indices[model], await look(batch, model), strict=True)
        return [records[index] for index in range(len(examples))]

    def _pack(self, examples: Sequence[Example]) -> Batch:
        learner = self.learner
        share_prefixes = shares_prefixes(learner.attention.value)
        return pack(examples, learner.ranks, learner.micro_batch_tokens, self.version, share_prefixes)
