"""How good a policy is on the held-out prompts: the student now, and the teacher once.

held-out prompts ─► rollout workers ─► the teacher's hidden states ─► learner: exact KLs ─► intervals
                                   └─► verifier: accuracy
"""

import asyncio
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from diagnostics.intervals import Interval, ratio_interval
from learner.config import LearnerConfig
from learner.packing import pack
from learner.records import Batch, Example, ExampleDivergence
from orchestration.config.facts import shows_whole, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import Prepared
from orchestration.results.summary import Answers, Evaluation
from rollout.group import RolloutGroup
from scoring.backends.factory import kind_of
from scoring.pool import BASE
from tutelage.lm.packed import shares_prefixes
from tutelage.records.prompt import RenderedPrompt, teacher_view, with_ids
from tutelage.records.signal import ScoringRequest
from tutelage.records.trajectory import FinishReason, RolloutRequest, Trajectory, derive_seed
from tutelage.verifier import Verifier


def requests(prompts: Sequence[RenderedPrompt], config: RunConfig) -> list[RolloutRequest]:
    """One answer for each prompt, always with the same seeds."""
    settings = config.evaluation
    return [
        RolloutRequest(
            slot=index,
            prompt_id=item.prompt.id,
            sample_index=0,
            prompt_ids=item.student_ids,
            seed=derive_seed(settings.seed, index),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )
        for index, item in enumerate(prompts)
    ]


def full_request(item: RenderedPrompt, trajectory: Trajectory) -> ScoringRequest:
    """Ask the teacher for its whole distribution at each token of a response to this prompt."""
    return ScoringRequest(item.prompt.teacher, item.teacher_ids, trajectory.response_ids, hidden_states=True)


def pack_to_examine(examples: Sequence[Example], learner: LearnerConfig, version: int) -> Batch:
    """A batch that the learner at `version` looks at and does not learn from."""
    share_prefixes = shares_prefixes(learner.attention)
    return pack(examples, learner.ranks, learner.micro_batch_tokens, version, share_prefixes)


def examined_k(learner: LearnerConfig) -> int:
    """The k of both models' most likely ids where tokens are examined, also in a run that measures no overlap."""
    return learner.overlap_k or LearnerConfig().overlap_k


class Evaluator:
    def __init__(self, config: RunConfig, prepared: Prepared, verifier: Verifier | None) -> None:
        self._config = config
        self._prepared = prepared
        self._prompts = with_ids(prepared.heldout)
        self._verifier = verifier

    @property
    def answering_teachers(self) -> list[str]:
        """The keys of those that answer the held-out prompts; none unless each prompt has one that can."""
        teachers = teachers_of(self._config)
        asked = {item.prompt.teacher for item in self._prepared.heldout} if teachers else set()
        settings = [teachers[key] for key in asked]
        can_answer = [not one.mixture and kind_of(one).loads_model(one) for one in settings]
        return sorted(asked) if all(can_answer) else []

    async def student(self, workers: Fleet, version: int) -> Answers:
        """The current student on its own answers, with exact KLs to its teachers and its initial weights if it can."""
        answers = await self._answers(workers.rollouts, self._prepared.heldout)
        return self._judge(
            answers,
            await self._from_teachers(answers, workers, version),
            await self._from_base(answers, workers, version),
        )

    async def answers_of(self, key: str, rollouts: RolloutGroup) -> list[Trajectory]:
        """One teacher's answers to the held-out prompts that it scores."""
        prompts = [teacher_view(item) for item in self._prepared.heldout]
        return await self._answers(rollouts, prompts, lambda item: item.prompt.teacher == key)

    def judge_teachers(self, answers: Sequence[Trajectory]) -> Answers:
        """What the teachers' own answers, each to its prompts, are worth."""
        return self._judge(sorted(answers, key=lambda item: item.slot), None, None)

    async def _answers(
        self,
        rollouts: RolloutGroup,
        prompts: Sequence[RenderedPrompt],
        wanted: Callable[[RenderedPrompt], bool] = lambda _item: True,
    ) -> list[Trajectory]:
        asked = [
            request for item, request in zip(prompts, requests(prompts, self._config), strict=True) if wanted(item)
        ]
        answers = [item async for item in rollouts.roll_out(asked)]
        return sorted(answers, key=lambda item: item.slot)

    async def _from_teachers(
        self, answers: Sequence[Trajectory], workers: Fleet, version: int
    ) -> list[ExampleDivergence] | None:
        """One record an answer, in order; None if not all of their teachers show their whole distributions."""
        keys = [self._prompts[answer.prompt_id].prompt.teacher for answer in answers]
        if not workers.teachers.teachers or not all(shows_whole(self._config, key) for key in set(keys)):
            return None
        if workers.teachers.moves:
            await workers.send_heads()
        items = [self._prompts[answer.prompt_id] for answer in answers]
        scoring_tasks = [
            workers.teachers.score(full_request(item, answer), item.views)
            for item, answer in zip(items, answers, strict=True)
        ]
        examples = [Example(a, s) for a, s in zip(answers, await asyncio.gather(*scoring_tasks), strict=True)]
        found: dict[int, ExampleDivergence] = {}
        for key in sorted(set(keys)):
            places = [place for place, its_key in enumerate(keys) if its_key == key]
            batch = pack_to_examine([examples[place] for place in places], self._config.learner, version)
            found |= zip(places, await workers.learner.evaluate(batch, key), strict=True)
        return [found[place] for place in range(len(answers))]

    async def _from_base(
        self, answers: Sequence[Trajectory], workers: Fleet, version: int
    ) -> list[ExampleDivergence] | None:
        """How far the student has gone from its initial weights on these answers; the prompts are its own."""
        if BASE not in workers.teachers:
            return None
        asked = [ScoringRequest(BASE, a.prompt_ids, a.response_ids, hidden_states=True) for a in answers]
        signals = await asyncio.gather(*(workers.teachers.score(request) for request in asked))
        examples = [Example(answer, signal) for answer, signal in zip(answers, signals, strict=True)]
        return await workers.learner.evaluate(pack_to_examine(examples, self._config.learner, version), BASE)

    def _judge(
        self,
        answers: Sequence[Trajectory],
        divergences: Sequence[ExampleDivergence] | None,
        from_base: Sequence[ExampleDivergence] | None,
    ) -> Answers:
        texts = {
            a.prompt_id: self._prepared.tokenizer.decode(a.response_ids, skip_special_tokens=True) for a in answers
        }
        lengths = np.array([len(a.response_ids) for a in answers], dtype=float)
        ones = np.ones_like(lengths)
        columns = {
            "mean_response_tokens": (lengths, ones),
            "truncated_share": (
                np.array([float(a.finish_reason is FinishReason.LENGTH) for a in answers]),
                ones,
            ),
        }
        if self._verifier is not None:
            rewards = [self._verifier(self._prompts[key].prompt, text) for key, text in texts.items()]
            columns["accuracy"] = (np.array(rewards), ones)
        if divergences is not None:
            tokens = np.array([d.tokens for d in divergences], dtype=float)
            measured = ("overlap_ratio",) if self._config.learner.overlap_k else ()
            for name in ("reverse_kl", "forward_kl", *measured):
                columns[name] = (np.array([getattr(d, name) for d in divergences]), tokens)
        if from_base is not None:
            tokens = np.array([d.tokens for d in from_base], dtype=float)
            columns["base_reverse_kl"] = (np.array([d.reverse_kl for d in from_base]), tokens)
        intervals = {name: ratio_interval(total, weight) for name, (total, weight) in columns.items()}
        means = {name: interval.mean for name, interval in intervals.items()}
        if "accuracy" in columns:
            intervals |= self._accuracy_by_domain(answers, columns["accuracy"][0])
        return Answers(Evaluation(n_prompts=len(answers), intervals=intervals, **means), texts)

    def _accuracy_by_domain(self, answers: Sequence[Trajectory], rewards: NDArray[np.float64]) -> dict[str, Interval]:
        """Where the prompts are of several domains."""
        domains = np.array([self._prompts[answer.prompt_id].prompt.domain for answer in answers])
        names = sorted(set(domains.tolist()))
        if len(names) < 2:
            return {}
        chosen = {name: rewards[domains == name] for name in names}
        return {f"accuracy/{name}": ratio_interval(found, np.ones_like(found)) for name, found in chosen.items()}
