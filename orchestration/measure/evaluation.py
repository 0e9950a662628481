"""How good a policy is on the held-out prompts: the student now, and the teacher once.

held-out prompts ─► rollout workers ─► the teacher's hidden states ─► learner: exact KLs ─► intervals
                                   └─► verifier: accuracy
"""

import asyncio
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diagnostics.intervals import Interval, ratio_interval
from learner.records import ExampleDivergence
from orchestration.config.facts import shows_whole, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.measure.both_models import BothModels, full_request
from orchestration.pipeline.fleet import Fleet
from orchestration.pipeline.requests import roll_out_all, rollout_request
from orchestration.prepare.inputs import Prepared
from orchestration.results.summary import Answers, Evaluation
from rollout.grading import Grade, VerifierPool
from rollout.group import RolloutGroup
from scoring.backends.factory import kind_of
from scoring.pool import BASE
from tutelage.records.prompt import RenderedPrompt, teacher_view, with_ids
from tutelage.records.signal import ScoringRequest
from tutelage.records.trajectory import FinishReason, RolloutRequest, Trajectory, derive_seed


def requests(prompts: Sequence[RenderedPrompt], config: RunConfig) -> list[RolloutRequest]:
    """Ask for one answer to each prompt, always with the same seeds."""
    settings = config.evaluation
    return [
        rollout_request(
            item, slot, derive_seed(settings.seed, slot), settings.max_tokens, temperature=settings.temperature
        )
        for slot, item in enumerate(prompts)
    ]


class Evaluator:
    """Lets policies answer the held-out prompts, and says how good the answers are."""

    def __init__(self, config: RunConfig, prepared: Prepared, verifier: VerifierPool | None) -> None:
        self.verifier = verifier
        self._config, self._prepared = config, prepared
        self._prompts = with_ids(prepared.heldout)

    @property
    def answering_teachers(self) -> list[str]:
        """The keys of those that answer the held-out prompts; none unless each prompt has one that can."""
        teachers = teachers_of(self._config) if self._config.evaluation.teacher else {}
        asked = {item.prompt.teacher for item in self._prepared.heldout} if teachers else set()
        settings = [teachers[key] for key in asked]
        can_answer = [not one.mixture and kind_of(one).loads_model(one) for one in settings]
        return sorted(asked) if all(can_answer) else []

    async def student(self, fleet: Fleet, version: int) -> Answers:
        """The current student on its own answers, with exact KLs to its teachers and its initial weights if it can."""
        answers = await roll_out_all(fleet.rollouts, requests(self._prepared.heldout, self._config))
        both = BothModels(fleet, self._config.learner, version)
        from_teachers, from_base = await self._from_teachers(answers, both), await self._from_base(answers, both)
        return await self.summarise(answers, from_teachers, from_base)

    async def answers_of(self, key: str, rollouts: RolloutGroup) -> list[Trajectory]:
        """One teacher's answers to the held-out prompts that it scores."""
        asked = requests([teacher_view(item) for item in self._prepared.heldout], self._config)
        its_own = [request for request in asked if self._prompts[request.prompt_id].prompt.teacher == key]
        return await roll_out_all(rollouts, its_own)

    async def _from_teachers(self, answers: Sequence[Trajectory], both: BothModels) -> list[ExampleDivergence] | None:
        """One record an answer, in order; None if not all of their teachers show their whole distributions."""
        items, teachers = [self._prompts[answer.prompt_id] for answer in answers], both.fleet.teachers
        keys = {item.prompt.teacher for item in items}
        if not teachers.teachers or not all(shows_whole(self._config, key) for key in keys):
            return None
        if teachers.moves:
            await both.fleet.send_heads()
        merged = self._prepared.ends.merged
        asked = [full_request(item, answer, merged) for item, answer in zip(items, answers, strict=True)]
        return await both.divergences(await both.ask(answers, asked, [item.views for item in items]))

    async def _from_base(self, answers: Sequence[Trajectory], both: BothModels) -> list[ExampleDivergence] | None:
        """How far the student has gone from its initial weights on these answers; the prompts are its own."""
        if BASE not in both.fleet.teachers:
            return None
        asked = [ScoringRequest(BASE, a.prompt_ids, a.response_ids, hidden_states=True) for a in answers]
        return await both.divergences(await both.ask(answers, asked))

    async def summarise(
        self,
        answers: Sequence[Trajectory],
        divergences: Sequence[ExampleDivergence] | None = None,
        from_base: Sequence[ExampleDivergence] | None = None,
    ) -> Answers:
        """Lengths, grades and divergences of a policy's answers to the held-out prompts, with their intervals.

        Args:
            divergences: from the teachers, one an answer.
            from_base: from the student's initial weights, one an answer.
        """
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
        grades: list[Grade] = []
        if self.verifier is not None:
            grading = [self.verifier.grade(self._prompts[key].prompt, text) for key, text in texts.items()]
            grades = await asyncio.gather(*grading)
            columns["accuracy"] = (np.array([grade.score for grade in grades]), ones)
        if divergences is not None:
            tokens = np.array([d.tokens for d in divergences], dtype=float)
            measured = ("overlap_ratio",) if all(d.overlap_ratio is not None for d in divergences) else ()
            for name in ("reverse_kl", "forward_kl", *measured):
                columns[name] = (np.array([getattr(d, name) for d in divergences]), tokens)
        if from_base is not None:
            tokens = np.array([d.tokens for d in from_base], dtype=float)
            columns["base_reverse_kl"] = (np.array([d.reverse_kl for d in from_base]), tokens)
        intervals = {name: ratio_interval(total, weight) for name, (total, weight) in columns.items()}
        means = {name: interval.mean for name, interval in intervals.items()}
        if "accuracy" in columns:
            intervals |= self._accuracy_by_domain(answers, columns["accuracy"][0])
        overran = sum(grade.overran for grade in grades)
        evaluation = Evaluation(n_prompts=len(answers), grading_timeouts=overran, intervals=intervals, **means)
        return Answers(evaluation, texts)

    def _accuracy_by_domain(self, answers: Sequence[Trajectory], rewards: NDArray[np.float64]) -> dict[str, Interval]:
        """Where the prompts are of several domains."""
        domains = np.array([self._prompts[answer.prompt_id].prompt.domain for answer in answers])
        names = sorted(set(domains.tolist()))
        if len(names) < 2:
            return {}
        chosen = {name: rewards[domains == name] for name in names}
        return {f"accuracy/{name}": ratio_interval(own, np.ones_like(own)) for name, own in chosen.items()}
