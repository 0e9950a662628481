"""What a run leaves: metrics, samples, evaluations, checkpoints, and the summary; and what people see meanwhile."""

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from learner.records import Example, StepReport
from orchestration.config.schema import RunConfig
from orchestration.pipeline.progress import RunProgress, StageClock
from orchestration.prepare.inputs import Prepared
from orchestration.results.directory import RunDirectory, RunState, latest_checkpoint, read_settings, read_state
from orchestration.results.metrics import health_metrics, step_metrics
from orchestration.results.outcome import print_outcome
from orchestration.results.pages import write_run_report
from orchestration.results.progress import ProgressView
from orchestration.results.samples import sample
from orchestration.results.summary import ROLES, STAGES, Answers, EvaluationStore, Summary, gap_recovery
from orchestration.results.tracker import X_AXIS, Tracker, read_metrics
from orchestration.runs.alarms import AlarmResponder, remedies_so_far
from orchestration.stages.training import TrainingStage
from scoring.backends.cached import in_words
from scoring.pool import STARVING_STEPS, TeacherPool
from tutelage.console import display_only
from tutelage.errors import WorkerFailure, WorkerLost
from tutelage.files import full_disk, write_json


class Recorder:
    """Keeps what happens in one run, and goes on from what an earlier start of it has kept."""

    def __init__(self, config: RunConfig, prepared: Prepared, directory: RunDirectory) -> None:
        self.directory = directory
        self.checkpoint = latest_checkpoint(directory.path)
        state = (self.checkpoint and read_state(self.checkpoint)) or RunState()
        self.progress = RunProgress(
            version=state.step,
            resumed_from=state.cursor,
            clock=StageClock(state.stage_seconds),
            tokens=Counter({"rollout": 0, "scored": 0, "trained": 0} | state.tokens),
            counts=Counter(state.counts),
        )
        self.evaluations = EvaluationStore(directory.path)
        self.view = ProgressView(config.stage, config.pipeline.steps, state.step, self.progress.clock)
        self._config, self._prepared = config, prepared
        settings = read_settings(directory.path)
        self._tracker = Tracker(directory.path, config.tracking, settings, state.wandb_id, state.step)
        earlier = read_metrics(directory.path)
        remedies = remedies_so_far(directory.path)
        self.alarms = AlarmResponder(config.alarms, self.view, self._tracker, earlier, remedies)
        # An earlier start may have evaluated the version that this one goes on from.
        self._evaluated = {row[X_AXIS] for row in earlier if "eval/mean_response_tokens" in row}
        self._last_metrics = next((row for row in reversed(earlier) if "train/loss" in row), {})
        self._started = time.monotonic() - state.wall_seconds
        self._stage_seconds = self.progress.clock.all_seconds()

    def step(self, stage: TrainingStage, batch: Sequence[Example], report: StepReport) -> None:
        """Keep and show a step; where it raises an alarm, the alarm's remedy is to be taken next."""
        now, before = self.progress.clock.all_seconds(), self._stage_seconds
        self._stage_seconds = now
        seconds = {name: now.get(name, 0.0) - before.get(name, 0.0) for name in STAGES}
        metrics = step_metrics(batch, report, seconds)
        metrics |= {f"rollout/{name}": float(count) for name, count in self.progress.counts.items()}
        metrics |= stage.step_metrics(batch)
        started = time.thread_time()
        metrics |= health_metrics(batch, self._prepared.tokenizer, metrics, self._last_metrics)
        raised = self.alarms.observe(report.policy_version, metrics)
        metrics["time/monitors_cpu"] = time.thread_time() - started
        self._last_metrics = metrics
        self._tracker.log(report.policy_version, metrics)
        tracking = self._config.tracking
        if tracking.samples_every and report.policy_version % tracking.samples_every == 0:
            with display_only():
                samples = [sample(item, self._prepared.tokenizer) for item in batch[: tracking.samples]]
                self._tracker.log_samples(report.policy_version, samples)
        self.view.step(report, metrics, stage.batches.ready)
        if report.skipped:
            self.view.warn(f"warning: step {report.policy_version} was skipped: {report.skipped} is not finite")
        for key in stage.fleet.teachers.starving:
            self.view.warn(
                f"warning: nobody has asked the teacher {key!r} for {STARVING_STEPS} steps: are its domains, or the "
                "rows that name it, in the training prompts?"
            )
        self.alarms.name_blind_rules()
        self.alarms.tell(raised)

    def evaluated(self, version: int, answers: Answers) -> None:
        """Keep and show how good a version of the student is on the held-out prompts."""
        evaluation = answers.evaluation
        metrics = {f"eval/{name}": interval.mean for name, interval in evaluation.intervals.items()}
        if evaluation.accuracy is not None:
            metrics["eval/grading_timeouts"] = float(evaluation.grading_timeouts)
        ends = {
            f"eval/{name}/{end}": getattr(interval, end)
            for name, interval in evaluation.intervals.items()
            for end in ("low", "high")
        }
        raised = []
        if version not in self._evaluated:
            self._evaluated.add(version)
            raised = self.alarms.observe(version, metrics)
            self._tracker.log(version, metrics | ends)
        accuracy = f", accuracy {evaluation.accuracy:.3f}" if evaluation.accuracy is not None else ""
        if evaluation.grading_timeouts:
            accuracy += f" ({evaluation.grading_timeouts} answers took the verifier longer than timeouts.grading)"
        reverse_kl = evaluation.reverse_kl
        divergence = f"reverse KL {reverse_kl:.3f} nats a token, " if reverse_kl is not None else ""
        self.view.say(
            f"held-out, version {version}: {divergence}{evaluation.mean_response_tokens:.1f} tokens an answer{accuracy}"
        )
        self.alarms.tell(raised)

    async def save(self, stage: TrainingStage) -> None:
        """Write a checkpoint: what the workers know, and how far the run is."""
        partial = self.directory.begin_checkpoint(self.progress.version)
        try:
            await stage.save(partial)
            self.directory.commit_checkpoint(partial, self._state(stage), self._config.checkpoint.keep)
        except (OSError, WorkerFailure) as error:
            full = full_disk(partial, error)  # asked before what was written makes room
            shutil.rmtree(partial, ignore_errors=True)
            kind = WorkerLost if isinstance(error, WorkerLost) else WorkerFailure
            raise kind(f"no checkpoint of step {self.progress.version}: {full or error}") from error

    def _state(self, stage: TrainingStage) -> RunState:
        return RunState(
            step=self.progress.version,
            cursor=stage.batches.cursor,
            wandb_id=self._tracker.wandb_id,
            wall_seconds=time.monotonic() - self._started,
            tokens=dict(self.progress.tokens),
            stage_seconds=self.progress.clock.all_seconds(),
            counts=dict(self.progress.counts),
        )

    async def tell_about_teachers(self, teachers: TeacherPool) -> None:
        """Say how many scores were kept, and what endpoints were asked."""
        for group in teachers.distinct.values():
            stats = await group.cache_stats()
            if stats is not None:
                self.view.say(f"{group.role}: {in_words(stats)}")
            asked = await group.server_stats()
            if asked is not None:
                self.view.say(
                    f"{group.role}: the endpoint was asked {asked.attempts} times, {asked.retries} of them again, and "
                    f"{asked.garbled} answers were none"
                )

    def suspend(self) -> None:
        """Let another recorder go on where the last checkpoint is."""
        with display_only():
            self._tracker.close(succeeded=False)

    def conclude(self, status: str, restarts: Mapping[str, int]) -> None:
        """Write summary.json and the page, and print what came out.

        Args:
            restarts: of the run's workers, by role.
        """
        answers, progress = self.evaluations.load(), self.progress
        evaluation = {role: answers[role].evaluation if role in answers else None for role in ROLES}
        seconds = progress.clock.seconds
        learning = seconds("learning") + seconds("waiting") + seconds("weight_sync")
        summary = Summary(
            status=status,
            steps=progress.version,
            wall_seconds=time.monotonic() - self._started,
            stage_seconds={name: seconds(name) for name in STAGES},
            tokens=dict(progress.tokens),
            tokens_per_second=progress.tokens["trained"] / learning if learning else 0.0,
            evaluation=evaluation,
            gap_recovery=gap_recovery(evaluation),
            counts=dict(progress.counts),
            restarts=dict(restarts),
            alarms=self.alarms.raised,
            remedies=self.alarms.remedies,
        )
        path = self.directory.path
        write_json(path / "summary.json", asdict(summary))
        with display_only():
            self._tracker.log_report(write_run_report(path))
        with display_only():
            self._tracker.close(succeeded=status in ("completed", "stopped"))
        with display_only():
            heldout = [item.prompt for item in self._prepared.heldout]
            print_outcome(self.view.console, path, summary, answers, heldout)
