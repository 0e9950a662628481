"""The compatibility probe on real workers: what student and teacher do with the same prompts, without training.

prompts ─► student's answers ─► the teacher's states ─► learner: every token under both models
                             └─► prefixes ─► both go on from them ─► verifier
        └─► teacher's answers ─────────────────────────────────────► verifier

The engines hold the student first and the teacher then; whoever trains afterwards gives them the student again.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diagnostics.compatibility import EARLIER, Graded, ProbedAnswer, ProbeSamples
from diagnostics.representation import Layer, Reading, compare_models
from orchestration.config.schema import RunConfig
from orchestration.measure.both_models import BothModels, full_request, teacher_in_question
from orchestration.pipeline.fleet import Fleet, start_engines
from orchestration.pipeline.requests import rollout_request
from orchestration.prepare.checkpoints import resolve_model
from orchestration.prepare.inputs import Prepared
from rollout.grading import Grader, VerifierPool
from rollout.group import RolloutGroup
from tutelage.records.prompt import RenderedPrompt, teacher_view, with_ids
from tutelage.records.signal import ScoringRequest
from tutelage.records.trajectory import RolloutRequest, Trajectory, derive_seed

PREFIXED_SAMPLES = 2  # of each prompt's answers are continued
_STUDENT, _TEACHER, _CONTINUATION = 0, 1, 2  # parts of seeds


@dataclass(frozen=True)
class ProbeCost:
    """What a probe generates and scores at most, known before it begins."""

    prompts: int
    answers: int  # of both models
    continuations: int  # of both models
    tokens: int  # upper bound: every response as long as it may be, prompts included


@dataclass(frozen=True)
class Probed:
    """What a probe saw, and what it took."""

    samples: ProbeSamples
    trajectories: Sequence[Trajectory]  # of the student, in the order of `samples.answers`
    cost: ProbeCost
    layers: Sequence[Layer]  # how alike both models' internals are; none unless asked for
    tokens: int  # generated and scored, prompts included
    seconds: float


def plan_probe(config: RunConfig, prepared: Prepared) -> ProbeCost:
    """The probe that `probe.max_tokens` has room for: fewer prompts where it has none for all."""
    probe = config.probe
    prompts = prepared.heldout[: probe.prompts]
    costs = [_cost(config, prompts[:count]) for count in range(1, len(prompts) + 1)]
    return next((cost for cost in reversed(costs) if cost.tokens <= probe.max_tokens), costs[0])


def _cost(config: RunConfig, prompts: Sequence[RenderedPrompt]) -> ProbeCost:
    probe, graded = config.probe, config.data.is_graded
    samples = probe.samples_per_prompt
    prefixes = len(probe.depths) * min(PREFIXED_SAMPLES, samples)  # of each prompt: both models go on from them
    lengths = [len(item.student_ids) + config.sampling.max_tokens for item in prompts]
    teacher_lengths = [len(item.teacher_ids) + config.sampling.max_tokens for item in prompts]
    each = sum(lengths) * samples + sum(teacher_lengths) * samples  # the student's answers, generated and scored
    if graded:
        each += sum(teacher_lengths) * samples + (sum(lengths) + sum(teacher_lengths)) * prefixes
    count = len(prompts)
    return ProbeCost(count, count * samples * (1 + graded), 2 * count * prefixes * graded, each)


class Prober:
    """Lets student and teacher answer the same prompts, and go on from the same beginnings."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        fleet: Fleet,
        verifier: VerifierPool | None,
        advance: Callable[[str, int], None],
    ) -> None:
        """`advance` is told what is being done and how many responses of it have come."""
        self._config, self._prepared, self._fleet = config, prepared, fleet
        self._scorers = teacher_in_question(config, fleet)
        self._cost = plan_probe(config, prepared)
        self._prompts = prepared.heldout[: self._cost.prompts]
        self._by_id = with_ids(self._prompts)
        self._verifier, self._advance = verifier, advance
        self._grader = Grader(verifier, self._prompts, prepared.tokenizer)
        self._tokens = 0

    async def probe(self) -> Probed:
        """Everything that the probe measures; engines, learner and scorers must hold what the run begins with."""
        started = time.monotonic()
        trajectories = await self._answers(self._fleet.rollouts, _STUDENT)
        answers = await self._examine(trajectories)
        samples = ProbeSamples(answers)
        if self._verifier is not None:
            samples = await self._with_teacher(answers, trajectories)
        layers = await self._compare_internals(trajectories)
        return Probed(samples, trajectories, self._cost, layers, self._tokens, time.monotonic() - started)

    async def _compare_internals(self, trajectories: Sequence[Trajectory]) -> list[Layer]:
        """In this process, on the CPU: there is room for one of both models at a time."""
        compared, teacher_path = trajectories[: self._config.probe.representation], self._prepared.teacher_path
        if not compared or teacher_path is None:
            return []
        self._advance("both models' internals are compared", 0)
        readings = [Reading(t.prompt_ids, self._by_id[t.prompt_id].teacher_ids, t.response_ids) for t in compared]
        return await asyncio.to_thread(compare_models, self._prepared.student_path, teacher_path, readings)

    async def _with_teacher(self, answers: Sequence[ProbedAnswer], trajectories: Sequence[Trajectory]) -> ProbeSamples:
        by_student = await self._go_on(self._fleet.rollouts, trajectories, by_teacher=False)
        engines = await self._teacher_engines()
        written = await self._answers(engines, _TEACHER)
        by_teacher = await self._go_on(engines, trajectories, by_teacher=True)
        return ProbeSamples(answers, [Graded(t.prompt_id, _reward(t)) for t in written], by_student, by_teacher)

    async def _teacher_engines(self) -> RolloutGroup:
        """The same engines, with the teacher's weights."""
        prepared, cluster = self._prepared, self._fleet.cluster
        if prepared.teacher_is_initial_student:
            return self._fleet.rollouts
        assert prepared.teacher_path is not None  # it has workers of its own
        await self._fleet.rollouts.set_idle()
        return await start_engines(self._config, prepared.teacher_path, cluster, prepared.ends, "teacher-rollout")

    async def _answers(self, engines: RolloutGroup, who: int) -> list[Trajectory]:
        room, samples = self._config.sampling.max_tokens, self._config.probe.samples_per_prompt
        requests = [
            self._request(slot, *divmod(slot, samples), room, who, by_teacher=who == _TEACHER)
            for slot in range(len(self._prompts) * samples)
        ]
        what = "the teacher answers" if who == _TEACHER else "the student answers"
        answers = [answer async for answer in self._grader.grade_all(self._roll_out(engines, requests, what))]
        return sorted(answers, key=lambda answer: answer.slot)

    def _request(
        self, slot: int, index: int, sample: int, max_tokens: int, *seed: int, by_teacher: bool
    ) -> RolloutRequest:
        """Ask for one response to prompt number `index`, as whoever writes it sees the prompt."""
        sampling, item = self._config.sampling, self._prompts[index]
        return rollout_request(
            teacher_view(item) if by_teacher else item,
            slot,
            derive_seed(self._config.seed, index, sample, *seed),
            max_tokens,
            sample_index=sample,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
        )

    async def _roll_out(
        self, engines: RolloutGroup, requests: Sequence[RolloutRequest], what: str
    ) -> AsyncIterator[Trajectory]:
        async for trajectory in engines.roll_out(requests):
            self._tokens += len(trajectory.prompt_ids) + len(trajectory.response_ids)
            self._advance(what, 1)
            yield trajectory

    async def _go_on(self, engines: RolloutGroup, trajectories: Sequence[Trajectory], by_teacher: bool) -> list[Graded]:
        """Grade what a model makes of the student's beginnings; the prefix counts as part of the response."""
        requests: list[RolloutRequest] = []
        prefixes, depths = [], []
        for trajectory in trajectories:
            index, sample = divmod(trajectory.slot, self._config.probe.samples_per_prompt)
            if sample >= PREFIXED_SAMPLES:
                continue
            for number, depth in enumerate(self._config.probe.depths):
                prefix = trajectory.response_ids[: int(depth * len(trajectory.response_ids))]
                left, seed = self._config.sampling.max_tokens - len(prefix), (_CONTINUATION, by_teacher, number)
                request = self._request(len(requests), index, sample, left, *seed, by_teacher=by_teacher)
                requests.append(replace(request, prompt_ids=np.concatenate([request.prompt_ids, prefix])))
                prefixes.append(prefix)
                depths.append(depth)
        ended = self._roll_out(engines, requests, f"the {'teacher' if by_teacher else 'student'} goes on")
        answers = (replace(t, response_ids=np.concatenate([prefixes[t.slot], t.response_ids])) async for t in ended)
        graded = sorted([answer async for answer in self._grader.grade_all(answers)], key=lambda answer: answer.slot)
        # In the order of the requests, so that both models' i-th have gone on from the same beginning.
        return [Graded(answer.prompt_id, _reward(answer), depths[answer.slot]) for answer in graded]

    async def _examine(self, trajectories: Sequence[Trajectory]) -> list[ProbedAnswer]:
        """Every token of the answers under both models, exact over the whole vocabulary."""
        self._advance("the teacher scores", 0)
        items = [self._by_id[trajectory.prompt_id] for trajectory in trajectories]
        merged = self._prepared.ends.merged
        requests = [full_request(item, answer, merged) for item, answer in zip(items, trajectories, strict=True)]
        self._tokens += sum(len(request.prompt_ids) + len(request.response_ids) for request in requests)
        both = BothModels(self._fleet, self._config.learner)
        tokens = await both.tokens(await both.ask(trajectories, requests), self._config.learner.examined_k)
        answers = [
            ProbedAnswer(answer.prompt_id, item.prompt.domain, item.prompt.teacher, answer.reward, its_tokens)
            for item, answer, its_tokens in zip(items, trajectories, tokens, strict=True)
        ]
        return await self._with_earlier_teacher(requests, answers)

    async def _with_earlier_teacher(
        self, requests: Sequence[ScoringRequest], answers: Sequence[ProbedAnswer]
    ) -> list[ProbedAnswer]:
        """The same answers under the checkpoint that the teacher was before, if one is given."""
        earlier = self._config.probe.earlier_teacher
        if earlier is None:
            return list(answers)
        self._advance("the earlier teacher scores", 0)
        await self._scorers.load(resolve_model(earlier, "probe.earlier_teacher"), self._config.teacher)
        signals = await self._scorers.score_all([replace(request, hidden_states=False) for request in requests])
        assert self._prepared.teacher_path is not None  # it has workers of its own
        await self._scorers.load(self._prepared.teacher_path, self._config.teacher)
        told = []
        for answer, signal in zip(answers, signals, strict=True):
            values = {**answer.tokens.values, EARLIER: signal.logprobs[answer.tokens.positions]}
            told.append(replace(answer, tokens=replace(answer.tokens, values=values)))
        return told


def _reward(trajectory: Trajectory) -> float:
    assert trajectory.reward is not None  # asked for only where there is a verifier
    return trajectory.reward
