"""On-policy distillation: the loop.

next_batch ─► weigh ─► step ─► publish ─► advance ─► record ─► evaluate? ─► checkpoint?
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from learner.batch import Example
from learner.objectives import build_objective
from learner.objectives.config import TaskRewardMix
from learner.packing import pack
from learner.report import StepReport
from orchestration.clock import StageClock
from orchestration.config import RunConfig
from orchestration.evaluation import TEACHER, Answers, Evaluator, Verifier
from orchestration.gates import passes, with_advantages
from orchestration.interruption import Interruption
from orchestration.outcome import EvaluationStore
from orchestration.pipeline import Cursor, Pipeline
from orchestration.preparation import Prepared, with_ids
from orchestration.states import StateSource
from orchestration.workers import Workers
from rollout.trajectory import Origin, Trajectory
from scoring.packed_model import shares_prefixes
from scoring.request import build_request
from scoring.signal import ScoringRequest, TeacherSignal

REFERENCE = "reference"  # key of the model that rewards are extrapolated from


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
        self._requirements = build_objective(config.objective).requirements
        self._prompts = with_ids(prepared.train)
        self._states = StateSource(
            config, prepared.train, self._requirements.candidates, workers.rollouts, workers.teacher_rollouts
        )
        self._compares_rewards = config.objective.task_reward.mix is not TaskRewardMix.none
        self._evaluator = evaluator
        self.pipeline = Pipeline(
            self._roll_out,
            self._score,
            batch_size=config.pipeline.batch_size,
            max_staleness=config.pipeline.max_staleness,
            total_slots=config.pipeline.steps * config.pipeline.batch_size,
            clock=clock,
            group_size=config.sampling.samples_per_prompt if self._compares_rewards else 1,
            cursor=cursor,
            version=version,
        )

    async def train(self, observer: Observer) -> None:
        steps = self.config.pipeline.steps
        self.pipeline.start()
        while self.version < steps:
            batch = self._weigh(await self._guard(self.pipeline.next_batch()))
            report = await self._learn(batch)
            await self._publish()
            self.pipeline.advance(report.policy_version)
            observer.record(batch, report, self.pipeline.ready)
            if self._due(self.config.evaluation.every) and self.version < steps:
                observer.evaluated(self.version, await self._guard(self.evaluate_student()))
            if self._due(self.config.checkpoint.every) and self.version < steps:
                await observer.save_checkpoint()

    def _weigh(self, batch: Sequence[Example]) -> list[Example]:
        """The batch with the weights of its gates and, where they are learned from, its task advantages."""
        gate, prompts = self.config.objective.gate, self._prompts
        weighed = [
            replace(e, weight=float(passes(gate, e.trajectory, prompts[e.trajectory.prompt_id].has_context)))
            for e in batch
        ]
        samples = self.config.sampling.samples_per_prompt
        return with_advantages(weighed, samples) if self._compares_rewards else weighed

    async def _learn(self, batch: Sequence[Example]) -> StepReport:
        learner = self.config.learner
        share_prefixes = shares_prefixes(learner.attention)
        special_ids = self.prepared.special_ids
        packed = pack(batch, learner.ranks, learner.micro_batch_tokens, self.version, share_prefixes, special_ids)
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
        async for trajectory in self._states.roll_out(slots):
            if trajectory.origin is not Origin.DATASET:
                self.tokens["rollout"] += len(trajectory.response_ids)
            yield trajectory if self._verifier is None else await self._verified(trajectory, self._verifier)

    async def _verified(self, trajectory: Trajectory, verifier: Verifier) -> Trajectory:
        text = self.prepared.tokenizer.decode(trajectory.response_ids, skip_special_tokens=True)
        prompt = self._prompts[trajectory.prompt_id].prompt
        return replace(trajectory, reward=await asyncio.to_thread(verifier, prompt, text))

    async def _score(self, trajectory: Trajectory) -> TeacherSignal:
        item = self._prompts[trajectory.prompt_id]
        request = build_request(item.prompt.teacher, item.teacher_ids, trajectory, self._requirements)
        scoring = self.workers.scorers.score(request)
        signal, reference = await asyncio.gather(scoring, self._reference_logprobs(trajectory))
        self.tokens["scored"] += len(trajectory.response_ids)
        return replace(signal, reference_logprobs=reference)

    async def _reference_logprobs(self, trajectory: Trajectory) -> NDArray[np.float32] | None:
        """[T]: of the response to the student's prompt, whatever the teacher sees of it."""
        if self.workers.reference_scorers is None:
            return None
        request = ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids)
        return (await self.workers.reference_scorers.score(request)).logprobs

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
            engine = self.workers.teacher_rollouts or self.workers.rollouts
            self._evaluations.keep("teacher", await self._evaluator.teacher(engine))
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
