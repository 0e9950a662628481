"""The life of one run, from its folder to its exit code: start, train, finish, and what ends it early."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from diagnostics.check import Status
from orchestration.config.facts import needs_teacher_rollouts
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.measure.evaluation import Evaluator
from orchestration.measure.preflight import print_checks, run_preflight
from orchestration.pipeline.fleet import Fleet, TeacherEngines
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.plan import join_cluster
from orchestration.results.directory import RunDirectory, read_state
from orchestration.results.outcome import write_model_card
from orchestration.results.provenance import log, log_to, package_versions
from orchestration.results.summary import Answers
from orchestration.runs.alarms import checkpoint_to_end_with, set_aside_after
from orchestration.runs.recorder import Recorder
from orchestration.stages.sequences import NothingToLearn, collect_once, teacher_tokens, verdict_counts
from orchestration.stages.training import WHOLE_RUN, TrainingStage
from rollout.grading import Grader, VerifierPool, verifier_pool
from scoring.config import TEACHER
from tutelage.aio import Interruption
from tutelage.cluster import Cluster, Session
from tutelage.errors import Interrupted, LearnerFailure, WorkerFailure, WorkerLost
from tutelage.files import explained, write_json
from tutelage.records.trajectory import Trajectory

EXIT_CODES = {"completed": 0, "failed": 1, "stopped": 3, "interrupted": 130, "preempted": 143}
TRY_AGAIN = 75  # Ray died under the run: another start goes on with it
Guard = Callable[[Awaitable[Any]], Awaitable[Any]]
_ANSWER_SECONDS = 30.0  # within which whoever has something to save says that it lives
_FIRST_PAUSE = 1.0  # seconds before a run begins again; then twice as long each time
_MISSED_CHECKPOINTS = 2  # in a row that could not be written; one more ends the run


async def execute(config: RunConfig, prepared: Prepared, directory: RunDirectory, session: Session) -> int:
    """Run one stage; returns the exit code of the process.

    Args:
        session: of the runs that may share workers; whoever began it ends it.
    """
    handler = log_to(directory.path / "run.log")
    write_json(directory.path / "versions.json", package_versions())
    cluster = join_cluster(config, prepared.roles, session)
    interruption = Interruption(config.timeouts.preemption)
    try:
        with verifier_pool(config.data.verifier, config.timeouts.grading) as verifier:
            run = Run(config, prepared, directory, verifier, interruption.guard)
            try:
                status = await interruption.listening(run.go(cluster))
            except Interrupted:
                status = "preempted" if interruption.is_preemption else "interrupted"
            except TimeoutError:
                if not interruption.is_preemption:
                    raise
                status = "preempted"
                run.recorder.view.error(
                    f"no checkpoint of step {run.recorder.progress.version}: the {config.timeouts.preemption:g} s that "
                    "SIGTERM leaves (timeouts.preemption) are over"
                )
        ray_is_gone = status == "failed" and cluster.is_gone
        run.recorder.conclude(status, cluster.restarts)
        if status == "completed" and run.stage is not None:
            await run.stage.fleet.set_idle()
    finally:
        cluster.keep_logs(directory.logs)
        log.removeHandler(handler)
        directory.close()
    return TRY_AGAIN if ray_is_gone else EXIT_CODES[status]


class Run:
    """One run; its recorder keeps what happens, its stage says how the student learns.

    Where a worker is lost that nobody can replace while the others go on, it begins again from its last checkpoint, as
    one that is resumed does, with the workers that are left: recorder and stage are those of the latest start.
    """

    recorder: Recorder
    stage: TrainingStage | None  # once the workers are there

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        directory: RunDirectory,
        verifier: VerifierPool | None,
        guard: Guard,
    ) -> None:
        """
        Args:
            guard: awaits what may be given up when the user stops the run.
        """
        self.config, self.prepared, self.directory = config, prepared, directory
        self.evaluator = Evaluator(config, prepared, verifier)
        self._guard = guard
        self._begin()

    def _begin(self) -> None:
        self.recorder = Recorder(self.config, self.prepared, self.directory)
        self.stage = None
        self._may_save = False  # there is a student that is not the initial one
        self._unsaved = 0  # checkpoints in a row that could not be written
        self._say = self.recorder.view.say

    async def go(self, cluster: Cluster) -> str:
        """Start, train, finish, and all of it again where that helps; returns the status.

        Raises:
            Interrupted: the user stopped the run; a checkpoint is left if the learner still could.
        """
        for checkpoint, why in self.directory.unusable_checkpoints().items():
            self._say(f"ignoring {checkpoint}: {why}")
        while True:
            with self.recorder.view:
                status = await self._go_once(cluster)
            if status is not None:
                return status
            self.recorder.suspend()
            self._begin()
            await self._guard(asyncio.sleep(_FIRST_PAUSE * 2 ** (cluster.restarts[WHOLE_RUN] - 1)))

    async def _go_once(self, cluster: Cluster) -> str | None:
        """From the last checkpoint on; None: a worker was lost, and the run may begin again."""
        recorder = self.recorder
        if recorder.checkpoint is not None:
            self._say(f"continuing from {recorder.checkpoint}: weights, optimiser and learning rates are as they were")
            for change in self.directory.changes:
                self._say(change)
        try:
            await self._guard(self._before_the_workers(cluster))
            self.stage = stage = await self._guard(self._start(cluster))
            if not await self._guard(self._passes_preflight(stage.fleet)):
                return "failed"
            await self._guard(self._evaluate_before(stage))
            self._may_save = True
            if recorder.alarms.may_roll_back and recorder.checkpoint is None:
                await recorder.save(stage)  # something to go back to where there may be no later one
            await self._train(stage)
            await self._guard(self._finish(stage))
            return "completed" if recorder.alarms.ending is None else "stopped"
        except Interrupted:
            self._say("stopping, as asked …")
            await self._last_checkpoint()
            raise
        except NothingToLearn as error:
            recorder.view.error(str(error))
        except WorkerFailure as error:
            lost = await self._explain(error)
            if isinstance(error, LearnerFailure):
                recorder.view.error("the step was not published; the checkpoints before it stay as they are")
            else:
                await self._last_checkpoint()
            if lost and self._counts_as_another_start(cluster):
                await self._hand_over(cluster)
                return None
        except OSError as error:
            recorder.view.error(explained(error))
            await self._last_checkpoint()
        return "failed"

    def _counts_as_another_start(self, cluster: Cluster) -> bool:
        """Whether recovery.max_restarts lets the run begin again."""
        allowed = self.config.recovery.max_restarts
        if cluster.restarts[WHOLE_RUN] >= allowed:
            self.recorder.view.error(f"the run does not begin again: recovery.max_restarts={allowed}")
            return False
        cluster.restarts[WHOLE_RUN] += 1
        return True

    async def _hand_over(self, cluster: Cluster) -> None:
        """End what is under way and everybody who cannot take part in the next start."""
        if self.stage is not None:
            await self.stage.batches.close()
            await self.stage.fleet.hand_over()
        cluster.dismiss_all_but_idle()
        self._say("the run begins again, with the workers that are left and others for those that are not …")

    async def _train(self, stage: TrainingStage) -> None:
        """Draw prompts, roll out and score (all of it streams into `next_batch`), learn, publish, log, checkpoint."""
        steps, recorder, progress = self.config.pipeline.steps, self.recorder, self.recorder.progress
        stage.batches.start()
        while progress.version < steps and recorder.alarms.ending is None:
            batch = stage.weigh(await self._guard(stage.batches.next_batch()))
            report = await stage.learn(batch)
            try:
                if stage.engines_follow:
                    await stage.publish()
                stage.batches.advance(report.policy_version)
            finally:  # the step is taken, whatever becomes of it, and a checkpoint may follow that counts it
                recorder.step(stage, batch, report)
            if self._due(self.config.evaluation.every):
                recorder.evaluated(progress.version, await self._guard(_evaluate(stage)))
            if self._due(self.config.checkpoint.every):
                await self._save_now_or_next_time(stage)

    async def _save_now_or_next_time(self, stage: TrainingStage) -> None:
        """Write the checkpoint that is due; what cannot be written is missed, until it is too often in a row."""
        try:
            await self.recorder.save(stage)
            self._unsaved = 0
        except WorkerLost:
            raise
        except WorkerFailure as error:
            self._unsaved += 1
            if self._unsaved > _MISSED_CHECKPOINTS:
                raise
            self.recorder.view.warn(f"warning: {error}; the run goes on, and tries again when the next one is due")

    def _due(self, every: int) -> bool:
        """Whether it is time for what happens every so many steps; the last step is followed by all of it anyway."""
        version = self.recorder.progress.version
        return every > 0 and version % every == 0 and version < self.config.pipeline.steps

    # Before the training

    async def _before_the_workers(self, cluster: Cluster) -> None:
        """What the teacher writes on engines that the workers that start then may take over."""
        teacher = TeacherEngines(self.config, self.prepared, cluster)
        await self._teacher_answers(teacher)
        if STAGES[self.config.stage].collects:
            await self._collect_sequences(teacher)
        await teacher.release()

    async def _teacher_answers(self, teacher: TeacherEngines) -> None:
        """Let teachers with weights of their own answer the held-out prompts.

        A teacher with the student's initial weights answers on the student's engine, before it is trained; one whose
        sequences are learned from all through the run has an engine throughout.
        """
        keys, evaluations = self.evaluator.answering_teachers, self.recorder.evaluations
        has_engine = self.prepared.teacher_is_initial_student or needs_teacher_rollouts(self.config)
        has_engine_later = keys == [TEACHER] and has_engine
        if not keys or has_engine_later or evaluations.has("teacher"):
            return
        answers: list[Trajectory] = []
        for key in keys:
            who = "the teacher" if key == TEACHER else key
            self._say(f"{who} answers the held-out prompts, on its own engine …")
            answers += await self.evaluator.answers_of(key, await teacher.get(key))
        answers.sort(key=lambda answer: answer.slot)
        evaluations.keep("teacher", await self.evaluator.summarise(answers))

    async def _collect_sequences(self, teacher: TeacherEngines) -> None:
        """Collect what the stage learns from, unless an earlier start has, and count what is left out."""
        progress, path = self.recorder.progress, self.directory.path
        grader = Grader(self.evaluator.verifier, self.prepared.train, self.prepared.tokenizer)
        with progress.clock.span("rollout"):
            sequences = await collect_once(self.config, self.prepared, teacher, grader, path, self._say)
        progress.tokens["rollout"] = teacher_tokens(sequences)
        progress.counts.clear()
        progress.counts.update(verdict_counts(sequences))

    async def _start(self, cluster: Cluster) -> TrainingStage:
        """The workers, with the weights that the run begins or goes on with, and the stage that drives them."""
        self._say("the workers that are there go on …" if cluster.has_idle else "starting the workers …")
        fleet = await Fleet.start(self.config, self.prepared, cluster)
        implementation: type[TrainingStage] = resolve_name(STAGES[self.config.stage].implementation)
        stage = implementation(
            self.config, self.prepared, fleet, self.evaluator, self.recorder.progress, self.directory.path
        )
        await stage.restore(self.recorder.checkpoint)
        return stage

    async def _passes_preflight(self, fleet: Fleet) -> bool:
        """Whether the run means anything; one that is resumed has passed already."""
        view = self.recorder.view
        if self.recorder.checkpoint is not None or not self.config.preflight.enabled:
            return True
        preflight = await run_preflight(self.config, self.prepared, fleet, self.evaluator.verifier, view.say)
        write_json(self.directory.path / "preflight.json", preflight.as_json())
        view.say(f"preflight: {len(preflight.checks)} checks in {preflight.seconds:.1f} s")
        if preflight.failed:
            print_checks(view.console, preflight.checks)
        for check in preflight.checks:
            if check.status is Status.failed:
                view.error(f"preflight, {check.name}: {check.seen}; {check.fix}")
            elif check.status is Status.warned:
                view.warn(f"warning: preflight, {check.name}: {check.seen}; {check.fix}")
        if preflight.failed:
            view.error("nothing was trained; preflight.enabled=false trains even so")
        return not preflight.failed

    async def _evaluate_before(self, stage: TrainingStage) -> None:
        """The untrained student's answers, and the teacher's where it has the same weights, unless they are kept.

        The engines hold the initial student until this ends; a resumed run publishes the learner's weights then.
        """
        evaluations = self.recorder.evaluations
        if self.evaluator.answering_teachers and not evaluations.has("teacher"):
            self._say("the teacher answers the held-out prompts …")
            engine = stage.fleet.teacher_rollouts or stage.fleet.rollouts
            answers = await self.evaluator.answers_of(TEACHER, engine)
            evaluations.keep("teacher", await self.evaluator.summarise(answers))
        if not evaluations.has("student_before"):
            self._say("the student answers them before training …")
            before = await stage.evaluate()
            evaluations.keep("student_before", before)
            self.recorder.evaluated(0, before)
        if stage.engines_follow:
            await stage.publish()

    # After it

    async def _finish(self, stage: TrainingStage) -> None:
        """How good the student became, and the model itself."""
        recorder = self.recorder
        alarm = recorder.alarms.ending
        good = checkpoint_to_end_with(alarm, self.directory)
        if good is not None:
            await self._roll_back(stage, good)
        else:
            await recorder.save(stage)
            self._say("the student answers the held-out prompts after training …")
            after = await _evaluate(stage)
            recorder.evaluations.keep("student_after", after)
            recorder.evaluated(recorder.progress.version, after)
        if alarm is not None:
            recorder.alarms.record_remedy(alarm, good, recorder.progress.version)
        await recorder.tell_about_teachers(stage.fleet.teachers)
        final = self.directory.path / "final"
        shutil.rmtree(final, ignore_errors=True)  # of a start that was killed before the run was over
        await stage.fleet.learner.export(str(final))
        write_model_card(final, self.config)

    async def _roll_back(self, stage: TrainingStage, good: Path) -> None:
        """The weights of an earlier checkpoint; they are not evaluated again, since engines do not go back."""
        state = read_state(good)
        assert state is not None  # it was chosen by it
        await stage.go_back(good, state.step)
        set_aside_after(good, self.directory)
        if self.recorder.progress.version == 0:
            evaluations = self.recorder.evaluations
            evaluations.keep("student_after", evaluations.load()["student_before"])

    async def _explain(self, failure: WorkerFailure) -> bool:
        """Name the worker that died, even where another one noticed it first; returns whether one is lost."""
        dead = await self.stage.fleet.death_reports() if self.stage is not None else {}
        for name, death_report in dead.items():
            if not str(failure).startswith(name):
                self.recorder.view.error(death_report)
        self.recorder.view.error(str(failure))
        return bool(dead) or isinstance(failure, WorkerLost) or isinstance(failure.__cause__, WorkerLost)

    async def _last_checkpoint(self) -> None:
        if self.stage is None or not self._may_save:
            self._say("no checkpoint: nothing was trained in this start")
            return
        version = self.recorder.progress.version
        try:
            await self.stage.can_save(_ANSWER_SECONDS)
        except WorkerFailure as error:
            self._say(f"no checkpoint of step {version}: {str(error).splitlines()[0]}")
            return
        try:
            await self.recorder.save(self.stage)
            self._say(f"step {version} is in {self.directory.checkpoints}; resume=auto continues it")
        except (WorkerFailure, OSError) as error:
            self.recorder.view.error(str(error))


async def _evaluate(stage: TrainingStage) -> Answers:
    """The held-out prompts answered by the student as it is now."""
    await stage.publish()
    return await stage.evaluate()
