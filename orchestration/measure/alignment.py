"""Where a teacher's gradient points to what the student succeeds with, measured on the run's own workers.

    prompts ─► the student's answers, graded ─► some correct, some incorrect ─► every teacher ─► learner: p and q
            ─► nodes in each answer ─► targeted rollouts from their candidates ─► ideal gradient ─► alignment

The engines and the learner hold the student that is to be trained; the scorers hold the run's teacher again at the
end.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from diagnostics.alignment.gradients import Node, NodeAlignment, View, compare_gradients
from diagnostics.alignment.nodes import choose, node_view
from learner.records import ExampleTokens
from orchestration.config.schema import RunConfig
from orchestration.measure.alignment_record import AlignmentCost, GradientAlignment
from orchestration.measure.both_models import BothModels, teacher_in_question
from orchestration.measure.targeted import AnswerGrader, Completed, Target, TargetedPlan, complete, fit
from orchestration.pipeline.fleet import Fleet
from orchestration.pipeline.requests import roll_out_all, rollout_request
from orchestration.prepare.checkpoints import resolve_model
from orchestration.prepare.inputs import Prepared
from rollout.grading import VerifierPool
from scoring.config import TEACHER
from scoring.group import ScoringGroup
from tutelage.records.signal import ScoringRequest
from tutelage.records.trajectory import Trajectory, derive_seed
from tutelage.settings import ConfigError, Refusal
from tutelage.stops import generation_ends, stop_token_ids

Say = Callable[[str], None]
_ANSWERS, _CHOICE, _COMPLETIONS = range(1, 4)  # seeds of their own


@dataclass(frozen=True)
class ComparedTeacher:
    name: str
    path: str
    sees_context: bool  # that of the run's teacher


@dataclass(frozen=True)
class Answer:
    """A student's answer that is looked at."""

    question: int  # index of its prompt
    trajectory: Trajectory
    correct: bool
    probability: float  # of having been chosen among the correct or the incorrect answers


@dataclass(frozen=True)
class Site:
    """A node and what every teacher says there."""

    node: Node
    answer: Answer
    views: tuple[View, ...]


async def measure_alignment(
    config: RunConfig, prepared: Prepared, fleet: Fleet, verifier: VerifierPool | None, say: Say
) -> GradientAlignment:
    """Measure the alignment of the run's teacher, and of those in `alignment.teachers`, on the same nodes.

    Raises:
        ConfigError: without a verifier or a teacher, or if not even one question fits in `alignment.max_tokens`.
    """
    if verifier is None:
        fix = "the gradient alignment needs one; choose exact, math or final_answer"
        raise ConfigError(Refusal("data.verifier", "none", fix))
    scorers = teacher_in_question(config, fleet)
    return await _Measurement(config, prepared, fleet, scorers, verifier, say).carry_out()


class _Measurement:
    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        fleet: Fleet,
        scorers: ScoringGroup,
        verifier: VerifierPool,
        say: Say,
    ) -> None:
        self._config, self._settings, self._prepared = config, config.alignment, prepared
        self._fleet, self._scorers, self._say = fleet, scorers, say
        self._both = BothModels(fleet, config.learner)
        self._teachers = _compared_teachers(config, prepared)
        self._prompts = prepared.train[: self._questions()]
        self._grader = AnswerGrader(verifier, self._prompts, prepared.tokenizer)
        own_stops = stop_token_ids(prepared.tokenizer, generation_ends(prepared.student_path))
        self._stops = own_stops | {*prepared.ends.stop_ids}
        self._tokens, self._started = 0, time.monotonic()

    async def carry_out(self) -> GradientAlignment:
        trajectories, pace = await self._survey()
        questions = [(self._question(item), item.response_ids) for item in trajectories]
        correct = await asyncio.gather(*(self._grader.succeeds(*question) for question in questions))
        answers = self._choose_answers(trajectories, correct)
        sites = await self._sites(answers)
        targets = self._targets(sites)
        plan = fit(targets, self._settings, self._settings.max_tokens - self._tokens)
        self._announce(plan, targets, pace)
        before = self._tokens
        done = await complete(plan, self._fleet.rollouts, self._grader)
        cost = self._cost(plan, before, done, pace)
        candidates = {int(token) for site in sites for view in site.views for token in view.candidate_ids}
        return GradientAlignment(
            rows=self._compared(sites, done),
            teachers=tuple(teacher.name for teacher in self._teachers),
            cost=cost,
            accuracy=self._accuracy(trajectories, correct),
            texts={token: self._prepared.tokenizer.decode([token]) for token in candidates},
        )

    # The student's answers

    def _question(self, trajectory: Trajectory) -> int:
        """The index of its prompt."""
        return trajectory.slot // self._settings.rollouts_per_question

    def _questions(self) -> int:
        """As many as leave half of the tokens to the targeted rollouts, whatever the answers' length."""
        settings, room = self._settings, self._config.sampling.max_tokens
        prompts = self._prepared.train[: settings.questions]
        looked_at = min(2 * settings.rollouts_per_stratum, settings.rollouts_per_question) * len(self._teachers)
        costs = [
            len(item.student_ids) + settings.rollouts_per_question * room + looked_at * (len(item.teacher_ids) + room)
            for item in prompts
        ]
        fitting = int((np.cumsum(costs) <= settings.max_tokens / 2).sum())
        if not fitting:
            fix = (
                f"the student's answers to one question may take {costs[0]}, and must leave half of the tokens; raise "
                "it, or lower alignment.rollouts_per_question"
            )
            raise ConfigError(Refusal("alignment.max_tokens", settings.max_tokens, fix))
        self._say(
            f"alignment: {fitting} questions{_instead_of(fitting, len(prompts))}, {settings.rollouts_per_question} "
            f"answers of the student each, at most {sum(costs[:fitting]):,} tokens of {settings.max_tokens:,} …"
        )
        return fitting

    async def _survey(self) -> tuple[list[Trajectory], float]:
        """The student's answers, and the seconds that each of their tokens took."""
        started, each = time.monotonic(), self._settings.rollouts_per_question
        requests = [
            rollout_request(
                item,
                question * each + sample,
                derive_seed(self._config.seed, _ANSWERS, question, sample),
                self._config.sampling.max_tokens,
                sample_index=sample,
            )
            for question, item in enumerate(self._prompts)
            for sample in range(each)
        ]
        answers = await roll_out_all(self._fleet.rollouts, requests)
        generated = sum(len(answer.response_ids) for answer in answers)
        self._tokens += generated + sum(len(item.student_ids) for item in self._prompts)
        return answers, (time.monotonic() - started) / generated

    def _choose_answers(self, trajectories: Sequence[Trajectory], correct: Sequence[bool]) -> list[Answer]:
        """Some of the correct and some of the incorrect answers to each question, whatever the teacher."""
        groups: dict[tuple[int, bool], list[Trajectory]] = {}
        for trajectory, right in zip(trajectories, correct, strict=True):
            groups.setdefault((self._question(trajectory), right), []).append(trajectory)
        chosen = []
        for (question, right), group in groups.items():
            generator = np.random.default_rng([self._config.seed, _CHOICE, question, right])
            kept = min(self._settings.rollouts_per_stratum, len(group))
            for index in sorted(generator.choice(len(group), kept, replace=False)):
                chosen.append(Answer(question, group[index], right, kept / len(group)))
        return chosen

    def _accuracy(self, trajectories: Sequence[Trajectory], correct: Sequence[bool]) -> dict[str, float]:
        right = Counter(self._question(t) for t, succeeded in zip(trajectories, correct, strict=True) if succeeded)
        each = self._settings.rollouts_per_question
        return {item.prompt.id: right[index] / each for index, item in enumerate(self._prompts)}

    # Nodes

    async def _sites(self, answers: Sequence[Answer]) -> list[Site]:
        everywhere = [await self._examine(answers, teacher) for teacher in self._teachers]
        if len(self._teachers) > 1:
            await self._load(self._teachers[0])
        sites = []
        for index, answer in enumerate(answers):
            divergence = everywhere[0][index].values["reverse_kl"]
            slot = answer.trajectory.slot
            generator = np.random.default_rng([self._config.seed, _CHOICE, slot])
            for choice in choose(divergence, self._settings.nodes_per_window, self._settings.selection, generator):
                node = Node(
                    question=self._prompts[answer.question].prompt.id,
                    sample_index=answer.trajectory.sample_index,
                    position=choice.position,
                    correct=answer.correct,
                    inclusion_probability=answer.probability * choice.probability,
                )
                views = [
                    self._view(tokens[index], node, answer, teacher)
                    for tokens, teacher in zip(everywhere, self._teachers, strict=True)
                ]
                sites.append(Site(node, answer, tuple(views)))
        return sites

    def _view(self, tokens: ExampleTokens, node: Node, answer: Answer, teacher: ComparedTeacher) -> View:
        sampled = int(answer.trajectory.response_ids[node.position])
        has_context = teacher.sees_context and self._prompts[answer.question].has_context
        return node_view(tokens, sampled, node, self._settings.candidates, teacher.name, has_context)

    async def _load(self, teacher: ComparedTeacher) -> None:
        await self._scorers.load(teacher.path, self._config.teacher)
        head = await self._scorers.lm_head()
        assert head is not None  # a diagnosis refuses teachers that do not show theirs
        if TEACHER in self._prepared.ends.swaps and teacher.path == self._prepared.teacher_path:
            head = head.swapped(self._prepared.ends.swaps[TEACHER])
        await self._fleet.learner.set_teacher_head(TEACHER, head)

    async def _examine(self, answers: Sequence[Answer], teacher: ComparedTeacher) -> list[ExampleTokens]:
        if teacher is not self._teachers[0]:
            self._say(f"alignment: {teacher.name} looks at the same answers …")
            await self._load(teacher)
        prompts = [self._prompts[answer.question] for answer in answers]
        merged = self._prepared.ends.merged
        seen = [item.teacher_ids if teacher.sees_context else item.student_ids for item in prompts]
        requests = [
            ScoringRequest(TEACHER, prompt_ids, answer.trajectory.response_ids, hidden_states=True, stops=merged)
            for prompt_ids, answer in zip(seen, answers, strict=True)
        ]
        self._tokens += sum(len(request.prompt_ids) + len(request.response_ids) for request in requests)
        examples = await self._both.ask([answer.trajectory for answer in answers], requests)
        return await self._both.tokens(examples, max(self._config.learner.examined_k, self._settings.candidates))

    # Targeted rollouts

    def _targets(self, sites: Sequence[Site]) -> list[Target]:
        return [
            self._target(index, site, candidate)
            for index, site in enumerate(sites)
            for candidate in dict.fromkeys(int(token) for view in site.views for token in view.candidate_ids)
        ]

    def _target(self, index: int, site: Site, candidate: int) -> Target:
        answer, position = site.answer, site.node.position
        response = answer.trajectory.response_ids
        ends = candidate in self._stops
        return Target(
            question=answer.question,
            item=self._prompts[answer.question],
            node=index,
            candidate=candidate,
            response_ids=np.append(response[:position], np.int32(candidate)),
            room=0 if ends else self._config.sampling.max_tokens - position - 1,
            expected=len(response) - position - 1,
            seed=derive_seed(self._config.seed, _COMPLETIONS, answer.trajectory.slot, position, candidate),
        )

    def _announce(self, plan: TargetedPlan, targets: Sequence[Target], pace: float) -> None:
        questions = len({target.question for target in plan.targets})
        wanted = len({target.question for target in targets})
        self._say(
            f"alignment: {questions} questions{_instead_of(questions, wanted)}, "
            f"{len({target.node for target in plan.targets})} places, {len(plan.targets)} candidates, "
            f"{plan.completions} completions each{_instead_of(plan.completions, self._settings.completions)}: "
            f"{plan.requests:,} requests, about {plan.predicted:,} and at most {plan.at_most:,} tokens, "
            f"about {plan.predicted * pace:.0f} s …"
        )

    def _cost(self, plan: TargetedPlan, before: int, done: Completed, pace: float) -> AlignmentCost:
        return AlignmentCost(
            questions=len({target.question for target in plan.targets}),
            nodes=len({target.node for target in plan.targets}),
            candidates=len(plan.targets),
            requests=plan.requests,
            completions=plan.completions,
            max_tokens=self._settings.max_tokens,
            tokens_at_most=before + plan.at_most,
            tokens_predicted=before + plan.predicted,
            seconds_predicted=plan.predicted * pace,
            tokens=before + done.tokens,
            seconds=time.monotonic() - self._started,
        )

    def _compared(self, sites: Sequence[Site], done: Completed) -> tuple[NodeAlignment, ...]:
        return tuple(
            compare_gradients(site.node, site.views[which], done.outcomes[index], self._settings)
            for which in range(len(self._teachers))
            for index, site in enumerate(sites)
            if index in done.outcomes
        )


def _compared_teachers(config: RunConfig, prepared: Prepared) -> list[ComparedTeacher]:
    """The run's own, and the further ones, under names that tell them apart."""
    assert prepared.teacher_path is not None  # there are scorers
    own = ComparedTeacher(config.teacher.model, prepared.teacher_path, sees_context=True)
    others = [
        ComparedTeacher(
            f"{item.model}, {'with' if item.sees_context else 'without'} context",
            resolve_model(item.model, "alignment.teachers"),
            item.sees_context,
        )
        for item in config.alignment.teachers
    ]
    return [own, *others]


def _instead_of(count: int, wanted: int) -> str:
    return "" if count == wanted else f" instead of {wanted} to fit alignment.max_tokens"
