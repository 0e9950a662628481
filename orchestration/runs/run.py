"""One run from its folder to its exit code: start, train, finish, and what is left when it stops early."""

import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from diagnostics.alarms import Alarm
from diagnostics.check import Status
from learner.records import Example, StepReport
from orchestration.config.facts import needs_teacher_rollouts
from orchestration.config.schema import RunConfig, Stage
from orchestration.measure.evaluation import Evaluator
from orchestration.measure.preflight import print_checks, run_preflight
from orchestration.pipeline.clock import StageClock
from orchestration.pipeline.fleet import Fleet, TeacherEngines
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.plan import join_cluster
from orchestration.results.directory import RunDirectory, RunState
from orchestration.results.metrics import health_metrics, step_metrics
from orchestration.results.outcome import print_outcome, write_model_card
from orchestration.results.pages import write_run_report
from orchestration.results.progress import ProgressView
from orchestration.results.provenance import log, log_to, package_versions
from orchestration.results.samples import sample
from orchestration.results.summary import ROLES, STAGES, Answers, EvaluationStore, Summary, gap_recovery
from orchestration.results.tracker import Tracker, read_metrics
from orchestration.runs.alarms import AlarmResponder, checkpoint_to_end_with, remedies_so_far, set_aside_after
from orchestration.stages.cold_start import ColdStart
from orchestration.stages.distil import Distillation
from orchestration.stages.reinforce import Reinforcement
from orchestration.stages.sequences import NothingToLearn, collect_once, teacher_tokens, verdict_counts
from orchestration.stages.training import StageContext, TrainingStage
from rollout.verifiers import VERIFIERS, Grader
from scoring.backends.cached import in_words
from scoring.config import TEACHER
from scoring.pool import STARVING_STEPS
from tutelage.aio import Interruption
from tutelage.cluster import Cluster, Session
from tutelage.errors import Interrupted, LearnerFailure, WorkerFailure
from tutelage.files import write_json
from tutelage.records.trajectory import Trajectory

_STAGES: dict[Stage, type[TrainingStage]] = {
    Stage.distil: Distillation,
    Stage.cold_start: ColdStart,
    Stage.reinforce: Reinforcement,
}
EXIT_CODES = {"completed": 0, "failed": 1, "stopped": 3, "interrupted": 130}


async def execute(
    config: RunConfig, composed: DictConfig, prepared: Prepared, directory: RunDirectory, session: Session
) -> int:
    """Run one stage; returns the exit code of the process.

    Args:
        session: of the runs that may share workers; whoever began it ends it.
    """
    handler = log_to(directory.path / "run.log")
    write_json(directory.path / "versions.json", package_versions())
    cluster = join_cluster(config, prepared.roles, session)
    try:
        settings = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, enum_to_str=True))
        run = Run(config, settings, prepared, directory)
        with run.view:
            status = await run.go(cluster)
        run.conclude(status)
        if status == "completed" and run.stage is not None:
            await run.stage.workers.set_idle()
    finally:
        cluster.keep_logs(directory.logs)
        log.removeHandler(handler)
        directory.close()
    return EXIT_CODES[status]


class Run:
    """One run: what happens around the training, and what it leaves behind. The `Observer` of its stage."""

    def __init__(
        self, config: RunConfig, settings: dict[str, Any], prepared: Prepared, directory: RunDirectory
    ) -> None:
        self.config, self.settings, self.prepared, self.directory = config, settings, prepared, directory
        self.checkpoint = directory.latest_checkpoint()
        self.state = directory.load_state(self.checkpoint) if self.checkpoint else RunState()
        self.clock = StageClock(self.state.stage_seconds)
        self.tokens = Counter({"rollout": 0, "scored": 0, "trained": 0} | self.state.tokens)
        self.counts = Counter(self.state.counts)
        self.interruption = Interruption()
        self.evaluations = EvaluationStore(directory.path)
        self.verifier = VERIFIERS[config.data.verifier]
        self.evaluator = Evaluator(config, prepared, self.verifier)
        self.tracker = Tracker(directory.path, config.tracking, self.settings, self.state.wandb_id, self.state.step)
        self.view = ProgressView(config.stage.value, config.pipeline.steps, self.state.step, self.clock)
        earlier = read_metrics(directory.path)
        self.alarms = AlarmResponder(config.alarms, self.view, self.tracker, earlier, remedies_so_far(directory.path))
        self._last_metrics = next((row for row in reversed(earlier) if "train/loss" in row), {})
        self.stage: TrainingStage | None = None
        self._started = time.monotonic() - self.state.wall_seconds
        self._stage_seconds = self.clock.all_seconds()

    async def go(self, cluster: Cluster) -> str:
        """Start, train, finish; whatever stops it early leaves a checkpoint if the learner still can."""
        self.interruption.listen()
        for partial in self.directory.interrupted_checkpoints():
            self.say(f"ignoring {partial}: writing it was interrupted")
        if self.checkpoint is not None:
            self.say(f"continuing from {self.checkpoint}")
        guard = self.interruption.guard
        try:
            await guard(self._before_the_workers(cluster))
            self.say("the workers that are there go on …" if cluster.has_idle else "starting the workers …")
            workers = await guard(Fleet.start(self.config, self.prepared, cluster))
            stage = self._make_stage(workers)
            await guard(stage.restore(self.checkpoint))
            if not await guard(self._passes_preflight(workers)):
                return "failed"
            await guard(stage.evaluate_before(self))
            self.stage = stage
            await self._keep_initial_student()
            await stage.train(self)
            alarm = self.alarms.ending
            await guard(self._finish(stage, alarm))
            return "completed" if alarm is None else "stopped"
        except Interrupted:
            self.say("stopping, as asked …")
            await self._last_checkpoint()
            return "interrupted"
        except NothingToLearn as error:
            self.view.error(str(error))
        except LearnerFailure as error:
            await self._explain(error)
            self.view.error("the step was not published; the checkpoints before it stay as they are")
        except WorkerFailure as error:
            await self._explain(error)
            await self._last_checkpoint()
        return "failed"

    async def _explain(self, failure: WorkerFailure) -> None:
        """Name the worker that died, even where another one noticed it first."""
        dead = await self.stage.workers.death_reports() if self.stage is not None else {}
        for name, death_report in dead.items():
            if not str(failure).startswith(name):
                self.view.error(death_report)
        self.view.error(str(failure))

    async def _before_the_workers(self, cluster: Cluster) -> None:
        """What the teacher writes on engines that the workers that start then may take over."""
        teacher = TeacherEngines(self.config, self.prepared, cluster)
        await self._teacher_answers(teacher)
        if self.config.stage is Stage.cold_start:
            await self._sequences(teacher)
        await teacher.release()

    async def _teacher_answers(self, teacher: TeacherEngines) -> None:
        """Let teachers with weights of their own answer the held-out prompts.

        A teacher with the student's initial weights answers on the student's engine, before it is trained; one whose
        sequences are learned from all through the run has an engine throughout.
        """
        keys = self.evaluator.answering_teachers
        has_engine = self.prepared.teacher_is_initial_student or needs_teacher_rollouts(self.config)
        has_engine_later = keys == [TEACHER] and has_engine
        if not keys or has_engine_later or self.evaluations.has("teacher"):
            return
        answers: list[Trajectory] = []
        for key in keys:
            self.say(f"{'the teacher' if key == TEACHER else key} answers the held-out prompts, on its own engine …")
            answers += await self.evaluator.answers_of(key, await teacher.get(key))
        self.evaluations.keep("teacher", self.evaluator.judge_teachers(answers))

    async def _sequences(self, teacher: TeacherEngines) -> None:
        """Collect what a cold start learns from, unless an earlier start has, and count what is left out."""
        grader = Grader(self.verifier, self.prepared.train, self.prepared.tokenizer)
        with self.clock.span("rollout"):
            found = await collect_once(self.config, self.prepared, teacher, grader, self.directory.path, self.say)
        self.tokens["rollout"] = teacher_tokens(found)
        self.counts.clear()
        self.counts.update(verdict_counts(found))

    async def _passes_preflight(self, workers: Fleet) -> bool:
        """Whether the run means anything; one that is resumed has passed already."""
        if self.checkpoint is not None or not self.config.preflight.enabled:
            return True
        found = await run_preflight(self.config, self.prepared, workers, self.verifier, self.say)
        write_json(self.directory.path / "preflight.json", found.as_json())
        self.say(f"preflight: {len(found.checks)} checks in {found.seconds:.1f} s")
        if found.failed:
            print_checks(self.view.console, found.checks)
        for check in found.checks:
            if check.status is Status.failed:
                self.view.error(f"preflight, {check.name}: {check.seen}; {check.fix}")
            elif check.status is Status.warned:
                self.view.warn(f"warning: preflight, {check.name}: {check.seen}; {check.fix}")
        if found.failed:
            self.view.error("nothing was trained; preflight.enabled=false trains even so")
        return not found.failed

    def _make_stage(self, workers: Fleet) -> TrainingStage:
        context = StageContext(
            config=self.config,
            prepared=self.prepared,
            workers=workers,
            clock=self.clock,
            interruption=self.interruption,
            evaluations=self.evaluations,
            evaluator=self.evaluator,
            verifier=self.verifier,
            run_dir=self.directory.path,
            cursor=self.state.cursor,
            version=self.state.step,
            tokens=self.tokens,
            counts=self.counts,
        )
        return _STAGES[self.config.stage](context)

    async def _finish(self, stage: TrainingStage, alarm: Alarm | None) -> None:
        """How good the student became, and the model itself; `alarm` is the one that ends the run before its time."""
        good = checkpoint_to_end_with(alarm, self.directory)
        if good is not None:
            await self._roll_back(stage, good)
        else:
            await self.save_checkpoint()
            self.say("the student answers the held-out prompts after training …")
            after = await stage.evaluate_student()
            self.evaluations.keep("student_after", after)
            self.evaluated(stage.version, after)
        if alarm is not None:
            self.alarms.record_remedy(alarm, good, stage.version)
        await self._tell_about_teachers(stage)
        final = self.directory.path / "final"
        shutil.rmtree(final, ignore_errors=True)  # of a start that was killed before the run was over
        await stage.workers.learner.export(str(final))
        write_model_card(final, self.settings)

    async def _tell_about_teachers(self, stage: TrainingStage) -> None:
        """How many scores were kept, and what endpoints were asked."""
        for group in stage.workers.teachers.distinct.values():
            stats = await group.cache_stats()
            if stats is not None:
                self.say(f"{group.name}: {in_words(stats)}")
            asked = await group.server_stats()
            if asked is not None:
                self.say(
                    f"{group.name}: the endpoint was asked {asked.attempts} times, {asked.retries} of them again, and "
                    f"{asked.garbled} answers were none"
                )

    async def _keep_initial_student(self) -> None:
        """A checkpoint to go back to where there may be no later one."""
        if self.alarms.may_roll_back and self.checkpoint is None:
            await self.save_checkpoint()

    async def _roll_back(self, stage: TrainingStage, good: Path) -> None:
        """The weights of an earlier checkpoint; they are not evaluated again, since engines do not go back."""
        await stage.go_back(good, self.directory.load_state(good).step)
        set_aside_after(good, self.directory)
        if stage.version == 0:
            self.evaluations.keep("student_after", self.evaluations.load()["student_before"])

    # Observer

    @property
    def ending(self) -> bool:
        return self.alarms.ending is not None

    def say(self, text: str) -> None:
        self.view.say(text)

    def record(self, batch: Sequence[Example], report: StepReport, ready: int) -> None:
        metrics = step_metrics(batch, report, self._seconds_since_last_step())
        metrics |= {f"rollout/{name}": float(count) for name, count in self.counts.items()}
        metrics |= self.stage.step_metrics(batch) if self.stage is not None else {}
        started = time.thread_time()
        metrics |= health_metrics(batch, self.prepared.tokenizer, metrics, self._last_metrics)
        raised = self.alarms.observe(report.policy_version, metrics)
        metrics["time/monitors_cpu"] = time.thread_time() - started
        self._last_metrics = metrics
        self.tracker.log(report.policy_version, metrics)
        tracking = self.config.tracking
        if tracking.samples_every and report.policy_version % tracking.samples_every == 0:
            samples = [sample(item, self.prepared.tokenizer) for item in batch[: tracking.samples]]
            self.tracker.log_samples(report.policy_version, samples)
        self.view.step(report, metrics, ready)
        for key in self._starving_teachers():
            self.view.warn(
                f"warning: nobody has asked the teacher {key!r} for {STARVING_STEPS} steps: are its domains, or the "
                "rows that name it, in the training prompts?"
            )
        self.alarms.name_blind_rules()
        self.alarms.tell(raised)

    def _starving_teachers(self) -> list[str]:
        return self.stage.workers.teachers.starving if self.stage is not None else []

    def evaluated(self, version: int, answers: Answers) -> None:
        found = answers.evaluation
        metrics = {f"eval/{name}": item.mean for name, item in found.intervals.items()}
        ends = {
            f"eval/{name}/{end}": getattr(item, end)
            for name, item in found.intervals.items()
            for end in ("low", "high")
        }
        raised = self.alarms.observe(version, metrics)
        self.tracker.log(version, metrics | ends)
        accuracy = f", accuracy {found.accuracy:.3f}" if found.accuracy is not None else ""
        divergence = f"reverse KL {found.reverse_kl:.3f} nats a token, " if found.reverse_kl is not None else ""
        self.say(
            f"held-out, version {version}: {divergence}{found.mean_response_tokens:.1f} tokens an answer{accuracy}"
        )
        self.alarms.tell(raised)

    async def save_checkpoint(self) -> None:
        if self.stage is None:
            return
        partial = self.directory.begin_checkpoint(self.stage.version)
        await self.stage.save(partial)
        self.directory.commit_checkpoint(partial, self._current_state(self.stage), self.config.checkpoint.keep)

    def _current_state(self, stage: TrainingStage) -> RunState:
        return RunState(
            step=stage.version,
            cursor=stage.batches.cursor,
            wandb_id=self.tracker.wandb_id,
            wall_seconds=self._wall_seconds,
            tokens=dict(self.tokens),
            stage_seconds=self.clock.all_seconds(),
            counts=dict(self.counts),
        )

    async def _last_checkpoint(self) -> None:
        if self.stage is None:
            self.say("no checkpoint: nothing was trained in this start")
            return
        try:
            await self.save_checkpoint()
            self.say(f"step {self.stage.version} is in {self.directory.checkpoints}; resume=auto continues it")
        except WorkerFailure as error:
            self.view.error(f"no checkpoint of step {self.stage.version}: {error}")

    # Time, and the end

    @property
    def _wall_seconds(self) -> float:
        return time.monotonic() - self._started

    def _seconds_since_last_step(self) -> dict[str, float]:
        now, before = self.clock.all_seconds(), self._stage_seconds
        self._stage_seconds = now
        return {stage: now.get(stage, 0.0) - before.get(stage, 0.0) for stage in STAGES}

    def conclude(self, status: str) -> None:
        """Write summary.json and the page, and print what came out."""
        answers = self.evaluations.load()
        found = {role: answers[role].evaluation if role in answers else None for role in ROLES}
        learning = self.clock.seconds("learning") + self.clock.seconds("waiting") + self.clock.seconds("weight_sync")
        summary = Summary(
            status=status,
            steps=self.stage.version if self.stage else self.state.step,
            wall_seconds=self._wall_seconds,
            stage_seconds={name: self.clock.seconds(name) for name in STAGES},
            tokens=dict(self.tokens),
            tokens_per_second=self.tokens["trained"] / learning if learning else 0.0,
            evaluation=found,
            gap_recovery=gap_recovery(found),
            counts=dict(self.counts),
            alarms=self.alarms.raised,
            remedies=self.alarms.remedies,
        )
        write_json(self.directory.path / "summary.json", asdict(summary))
        self.tracker.log_report(write_run_report(self.directory.path))
        self.tracker.close(succeeded=status in ("completed", "stopped"))
        heldout = [item.prompt for item in self.prepared.heldout]
        print_outcome(self.view.console, self.directory.path, summary, answers, heldout)
