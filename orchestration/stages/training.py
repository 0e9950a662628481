"""What the stages share: the loop of the learner, evaluation, and where the weights come from and go to.

next_batch ─► weigh ─► step ─► publish ─► advance ─► record ─► evaluate? ─► checkpoint?

A stage says where its batches come from and what each of their sequences weighs.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol

from learner.packing import pack
from learner.records import Example, StepReport
from orchestration.config.schema import RunConfig
from orchestration.measure.evaluation import Evaluator
from orchestration.pipeline.clock import StageClock
from orchestration.pipeline.fleet import Fleet
from orchestration.pipeline.pipeline import Cursor
from orchestration.pipeline.weighting import passes, with_loss_reduction
from orchestration.prepare.inputs import Prepared
from orchestration.results.summary import Answers, EvaluationStore
from scoring.config import TEACHER
from tutelage.aio import Interruption
from tutelage.lm.packed import shares_prefixes
from tutelage.records.prompt import with_ids
from tutelage.verifier import Verifier

TEACHERS = "teachers"  # in a checkpoint: the averages of teachers that keep one


class Observer(Protocol):
    """Who is told what happens, and keeps it."""

    def say(self, text: str) -> None: ...

    def record(self, batch: Sequence[Example], report: StepReport, ready: int) -> None: ...

    def evaluated(self, version: int, answers: Answers) -> None: ...

    @property
    def ending(self) -> bool:
        """Whether the run is to end after the step that was recorded last."""

    async def save_checkpoint(self) -> None: ...


class Batches(Protocol):
    """Where the batches of a stage come from."""

    @property
    def cursor(self) -> Cursor:
        """What to resume from if the run stopped now, counting the batch in training as trained."""

    @property
    def ready(self) -> int:
        """Trajectories that could be trained now."""

    def start(self) -> None: ...

    async def next_batch(self) -> list[Example]:
        """The next `pipeline.batch_size` examples, ordered by slot."""

    def advance(self, version: int) -> None:
        """The batch is trained; the engines have the weights of `version` where they follow the learner."""


@dataclass(frozen=True)
class StageContext:
    """What a run gives to its stage."""

    config: RunConfig
    prepared: Prepared
    workers: Fleet
    clock: StageClock
    interruption: Interruption
    evaluations: EvaluationStore
    evaluator: Evaluator
    verifier: Verifier | None
    run_dir: Path
    cursor: Cursor
    version: int
    tokens: Counter[str]
    counts: Counter[str]  # of what the stage leaves out, by reason


class TrainingStage(ABC):
    """One run of a stage. `train` is the algorithm; everything else serves it."""

    engines_follow: ClassVar[bool] = True  # every version is published; else only the ones to be evaluated

    def __init__(self, context: StageContext) -> None:
        self.config, self.prepared, self.workers = context.config, context.prepared, context.workers
        self.clock, self.run_dir, self.version = context.clock, context.run_dir, context.version
        self.tokens, self.counts = context.tokens, context.counts
        self._guard = context.interruption.guard
        self._evaluations, self._evaluator = context.evaluations, context.evaluator
        self._prompts = with_ids(context.prepared.train)
        self._engine_version = 0  # the engines start with the initial student

    @property
    @abstractmethod
    def batches(self) -> Batches: ...

    async def train(self, observer: Observer) -> None:
        steps = self.config.pipeline.steps
        self.batches.start()
        while self.version < steps and not observer.ending:
            batch = self.weigh(await self._guard(self.batches.next_batch()))
            report = await self._learn(batch)
            if self.engines_follow:
                await self._publish()
            self.batches.advance(report.policy_version)
            observer.record(batch, report, self.batches.ready)
            if self._due(self.config.evaluation.every) and self.version < steps:
                observer.evaluated(self.version, await self._guard(self.evaluate_student()))
            if self._due(self.config.checkpoint.every) and self.version < steps:
                await observer.save_checkpoint()

    def weigh(self, batch: Sequence[Example]) -> list[Example]:
        """The batch with the weights of its gates and of the average that the loss is."""
        objective = self.config.objective
        gated = [replace(e, weight=float(passes(objective.gate, e.trajectory, self.has_context(e)))) for e in batch]
        return with_loss_reduction(gated, objective.loss_reduction, self.config.sampling.max_tokens)

    def has_context(self, example: Example) -> bool:
        """Whether the teacher saw more of its prompt than the student."""
        return self._prompts[example.trajectory.prompt_id].has_context

    def step_metrics(self, batch: Sequence[Example]) -> dict[str, float]:
        """What the stage itself has to say about a step."""
        return {}

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
        """Give the engines the learner's weights, unless they have them."""
        if self._engine_version == self.version:
            return
        with self.clock.span("weight_sync"):
            await self.workers.learner.publish(self.version)
        self._engine_version = self.version

    def _due(self, every: int) -> bool:
        return every > 0 and self.version % every == 0

    # Evaluation, and where the weights come from and go to

    async def restore(self, checkpoint: Path | None) -> None:
        """Give learner and engines the weights that the run starts from, and the learner the teacher's head."""
        await self.workers.connect()
        if checkpoint is not None:
            await self.workers.learner.load_checkpoint(str(checkpoint / "learner"), str(self.run_dir))
            await self.workers.teachers.restore(checkpoint / TEACHERS, self.config.timeouts.checkpoint)

    async def save(self, folder: Path) -> None:
        """All that the workers know, into the folder of a checkpoint."""
        await self.workers.learner.save_checkpoint(str(folder / "learner"))
        await self.workers.teachers.save(folder / TEACHERS, self.config.timeouts.checkpoint)

    async def go_back(self, checkpoint: Path, version: int) -> None:
        """Give the learner the weights of an earlier version of this run; the engines keep the later ones."""
        await self.workers.learner.load_checkpoint(str(checkpoint / "learner"), str(self.run_dir))
        self.version = version

    async def evaluate_before(self, observer: Observer) -> None:
        """The untrained student's answers, and the teacher's where it has the same weights, unless they are kept.

        The engines hold the initial student until this ends; a resumed run publishes the learner's weights then.
        """
        if self._evaluator.answering_teachers and not self._evaluations.has("teacher"):
            observer.say("the teacher answers the held-out prompts …")
            engine = self.workers.teacher_rollouts or self.workers.rollouts
            answers = await self._evaluator.answers_of(TEACHER, engine)
            self._evaluations.keep("teacher", self._evaluator.judge_teachers(answers))
        if not self._evaluations.has("student_before"):
            observer.say("the student answers them before training …")
            before = await self._evaluate()
            self._evaluations.keep("student_before", before)
            observer.evaluated(0, before)
        if self.engines_follow:
            await self._publish()

    async def evaluate_student(self) -> Answers:
        await self._publish()
        return await self._evaluate()

    async def _evaluate(self) -> Answers:
        with self.clock.span("evaluation"):
            return await self._evaluator.student(self.workers, self.version)
