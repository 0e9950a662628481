"""On-policy distillation: the loop.

next_batch ─► step ─► publish ─► advance ─► record ─► evaluate? ─► checkpoint?
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from learner.batch import Example
from learner.objectives import get_objective
from learner.packing import pack
from learner.report import StepReport
from orchestration.clock import StageClock
from orchestration.config import RunConfig
from orchestration.evaluation import TEACHER, Answers, Evaluator, Verifier
from orchestration.interruption import Interruption
from orchestration.outcome import EvaluationStore
from orchestration.pipeline import Cursor, Pipeline
from orchestration.preparation import Prepared, with_ids
from orchestration.schedule import PromptSchedule
from orchestration.workers import Workers
from rollout.trajectory import RolloutRequest, Trajectory
from scoring.packed_model import shares_prefixes
from scoring.request import build_request
from scoring.signal import TeacherSignal


class Observer(Protocol):
    """Who is told what happens, and keeps it."""

    def say(self, text: str) -> None: ...

    def record(self, batch: Sequence[Example], report: StepReport, ready: int) -> None: ...

    def evaluated(self, version: int, answers: Answers) -> None: ...

    async def save_checkpoint(self) -> None: ...


class Distillation:
    """One run of the stage. `train` is the algorithm; everything else serves it."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        workers: Workers,
        clock: StageClock,
        interruption: Interruption,
        evaluations: EvaluationStore,
        evaluator: Evaluator,
        verifier: Verifier | None,
        *,
        cursor: Cursor,
        version: int,
        tokens: Counter[str],
    ) -> None:
        self.config, self.prepared, self.workers, self.clock = config, prepared, workers, clock
        self.version, self.tokens = version, tokens
        self._guard = interruption.guard
        self._evaluations = evaluations
        self._verifier = verifier
        self._requirements = get_objective(config.objective.name, config.objective).requirements
        self._prompts = with_ids(prepared.train)
        self._schedule = PromptSchedule(
            len(prepared.train), config.sampling.samples_per_prompt, config.seed, config.data.shuffle
        )
        self._evaluator = evaluator
        self.pipeline = Pipeline(
            self._roll_out,
            self._score,
            batch_size=config.pipeline.batch_size,
            max_staleness=config.pipeline.max_staleness,
            total_slots=config.pipeline.steps * config.pipeline.batch_size,
            clock=clock,
            cursor=cursor,
            version=version,
        )

    async def train(self, observer: Observer) -> None:
        steps = self.config.pipeline.steps
        self.pipeline.start()
        while self.version < steps:
            batch = await self._guard(self.pipeline.next_batch())
            report = await self._learn(batch)
            await self._publish()
            self.pipeline.advance(report.policy_version)
            observer.record(batch, report, self.pipeline.ready)
            if self._due(self.config.evaluation.every) and self.version < steps:
                observer.evaluated(self.version, await self._guard(self.evaluate_student()))
            if self._due(self.config.checkpoint.every) and self.version < steps:
                await observer.save_checkpoint()

    async def _learn(self, batch: Sequence[Example]) -> StepReport:
        learner = self.config.learner
        share_prefixes = shares_prefixes(learner.attention)
        packed = pack(batch, learner.ranks, learner.micro_batch_tokens, self.version, share_prefixes)
        with self.clock.span("learning"):
            report = await self.workers.learner.step(packed)
        self.version = report.policy_version
        self.tokens["trained"] += report.loss_tokens
        return report

    async def _publish(self) -> None:
        with self.clock.span("weight_sync"):
            await self.workers.learner.publish(self.version)

    def _due(self, every: int) -> bool:
        return every > 0 and self.version % every == 0

    # What the pipeline calls

    async def _roll_out(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        async for trajectory in self.workers.rollouts.roll_out([self._request(slot) for slot in slots]):
            self.tokens["rollout"] += len(trajectory.response_ids)
            yield trajectory if self._verifier is None else await self._verified(trajectory, self._verifier)

    def _request(self, slot: int) -> RolloutRequest:
        plan, sampling = self._schedule.plan(slot), self.config.sampling
        item = self.prepared.train[plan.prompt_index]
        return RolloutRequest(
            slot=slot,
            prompt_id=item.prompt.id,
            sample_index=plan.sample_index,
            prompt_ids=item.student_ids,
            seed=plan.seed,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            candidates=self._requirements.candidates,
        )

    async def _verified(self, trajectory: Trajectory, verifier: Verifier) -> Trajectory:
        text = self.prepared.tokenizer.decode(trajectory.response_ids, skip_special_tokens=True)
        prompt = self._prompts[trajectory.prompt_id].prompt
        return replace(trajectory, reward=await asyncio.to_thread(verifier, prompt, text))

    async def _score(self, trajectory: Trajectory) -> TeacherSignal:
        item = self._prompts[trajectory.prompt_id]
        request = build_request(item.prompt.teacher, item.teacher_ids, trajectory, self._requirements)
        signal = await self.workers.scorers.score(request)
        self.tokens["scored"] += len(trajectory.response_ids)
        return signal

    # Evaluation, and where the weights come from and go to

    async def restore(self, checkpoint: Path | None, run_dir: Path) -> None:
        """Give learner and engines the weights that the run starts from, and the learner the teacher's head."""
        learner = self.workers.learner
        await learner.connect(self.workers.rollouts)
        if checkpoint is not None:
            await learner.load_checkpoint(str(checkpoint / "learner"), str(run_dir))
        await learner.set_teacher_head(TEACHER, await self.workers.scorers.lm_head())

    async def evaluate_before(self, observer: Observer) -> None:
        """The untrained student's answers, and the teacher's where it has the same weights, unless they are kept.

        The engines hold the initial student until this ends; a resumed run publishes the learner's weights then.
        """
        if not self._evaluations.has("teacher"):
            observer.say("the teacher answers the held-out prompts …")
            self._evaluations.keep("teacher", await self._evaluator.teacher(self.workers.rollouts))
        if not self._evaluations.has("student_before"):
            observer.say("the student answers them before training …")
            before = await self.evaluate_student()
            self._evaluations.keep("student_before", before)
            observer.evaluated(0, before)
        if self.version > 0:
            await self._publish()

    async def evaluate_student(self) -> Answers:
        with self.clock.span("evaluation"):
            return await self._evaluator.student(self.workers, self.version)
