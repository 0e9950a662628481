"""One diagnosis, from the workers to its folder: preflight and probe, the verdict, and the pages about them."""

import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from diagnostics.compatibility import ProbeStatistics, figures
from diagnostics.report.diagnosis_page import render_diagnosis
from diagnostics.verdict import Verdict, VerdictReport, judge
from orchestration.config.facts import shows_whole, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.measure.alignment import measure_alignment
from orchestration.measure.alignment_record import GradientAlignment
from orchestration.measure.preflight import Preflight, print_checks, run_preflight
from orchestration.measure.probe import Probed, Prober, plan_probe
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.plan import join_cluster
from orchestration.results.directory import RunDirectory, read_settings
from orchestration.results.provenance import log, log_to, machine, package_versions
from orchestration.runs.diagnosis_record import plain, probe_record, shown_trajectories
from rollout.grading import VerifierPool, verifier_pool
from scoring.backends.factory import BACKENDS
from scoring.config import TEACHER
from tutelage.cluster import Session
from tutelage.console import PlainConsole, display_only
from tutelage.errors import WorkerFailure
from tutelage.files import write_json, write_text
from tutelage.settings import Refusal

NOT_GO = 3


def diagnosis_refusals(config: RunConfig) -> Iterator[Refusal]:
    """Say why a configuration cannot be diagnosed, though it may be trained with."""
    if not STAGES[config.stage].learns_from_scores:
        fix = "a diagnosis asks whether a teacher's scores will help the student; set stage=distil"
        yield Refusal("stage", config.stage, fix)
    if config.further_teachers:
        fix = (
            "a diagnosis looks at one teacher at a time; leave them out and set teacher to the one in question, with "
            "the prompts that it is to score"
        )
        yield Refusal("further_teachers", ", ".join(config.further_teachers), fix)
    known = config.teacher.backend in BACKENDS  # else it is refused already
    if TEACHER in teachers_of(config) and known and not shows_whole(config, TEACHER):
        fix = (
            "a diagnosis compares the whole distributions of teacher and student on new responses over one vocabulary, "
            "and this teacher does not show its own; set teacher.backend=transformers with a checkpoint that shares "
            "the student's tokenizer"
        )
        yield Refusal("teacher.backend", config.teacher.backend, fix)


def command_line(program: str, arguments: Sequence[str]) -> str:
    """Write a command that can be run after this diagnosis: its folder is in use, so each finds a new one.

    Args:
        program: "launch" or "diagnose".
        arguments: overrides, and what of Hydra's own options chose the configuration.
    """
    kept = [argument for argument in arguments if argument.lstrip("+").partition("=")[0] != "run_dir"]
    return shlex.join(["python", "-m", f"orchestration.{program}", *kept])


async def execute_diagnosis(
    config: RunConfig,
    prepared: Prepared,
    directory: RunDirectory,
    session: Session,
    overrides: Sequence[str],
) -> int:
    """Diagnose one configuration; returns the exit code of the process.

    Args:
        session: of the diagnoses and runs that may share workers; whoever began it ends it.
        overrides: what the configuration was composed with, for the command that the verdict recommends.
    """
    handler = log_to(directory.path / "run.log")
    cluster, console = join_cluster(config, prepared.roles, session), PlainConsole()
    try:
        with verifier_pool(config.data.verifier, config.timeouts.grading) as verifier:
            diagnosis = Diagnosis(config, prepared, console, verifier)
            fleet = await Fleet.start(config, prepared, cluster)
            await diagnosis.carry_out(fleet)
        await fleet.set_idle()
        diagnosis.write(directory.path, overrides)
        return diagnosis.exit_code
    except WorkerFailure as error:
        console.print(f"error: {error}", style="red")
        return 1
    finally:
        cluster.keep_logs(directory.logs)
        log.removeHandler(handler)
        directory.close()


class Diagnosis:
    """What one diagnosis measures and concludes."""

    def __init__(
        self, config: RunConfig, prepared: Prepared, console: PlainConsole, verifier: VerifierPool | None
    ) -> None:
        self._config, self._prepared, self._console, self._verifier = config, prepared, console, verifier
        self._started = time.monotonic()
        self._preflight: Preflight | None = None
        self._alignment: GradientAlignment | None = None
        self._probed: Probed | None = None
        self._statistics: ProbeStatistics | None = None
        self._report: VerdictReport | None = None

    @property
    def exit_code(self) -> int:
        return 0 if self._report is not None and self._report.verdict is Verdict.go else NOT_GO

    async def carry_out(self, fleet: Fleet) -> None:
        """The preflight, and the probe unless a check failed."""
        await fleet.connect()
        self._preflight = await run_preflight(self._config, self._prepared, fleet, self._verifier, self._console.print)
        print_checks(self._console, self._preflight.checks)
        if self._preflight.failed:
            self._console.print("a check failed, so nothing that a probe found would mean anything: mend it first")
            return
        if self._config.alignment.enabled:  # first, while the engines hold the student
            self._alignment = await measure_alignment(
                self._config, self._prepared, fleet, self._verifier, self._console.print
            )
        self._probed = await self._probe(fleet)
        self._statistics = figures(self._probed.samples)
        self._report = judge(self._probed.samples, self._statistics)

    async def _probe(self, fleet: Fleet) -> Probed:
        cost = plan_probe(self._config, self._prepared)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("probe", total=cost.answers + cost.continuations)

            def advance(what: str, responses: int) -> None:
                bar.update(task, description=what, advance=responses)

            return await Prober(self._config, self._prepared, fleet, self._verifier, advance).probe()

    def write(self, folder: Path, overrides: Sequence[str]) -> None:
        """diagnosis.json and report.html, and the verdict for whoever watches."""
        assert self._preflight is not None
        probed, statistics, report = self._probed, self._statistics, self._report
        command = run_command(overrides, report.overrides) if report and report.recommends_a_run else None
        tokenizer = self._prepared.tokenizer
        record = {
            "command": command_line("diagnose", overrides),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": package_versions(),
            "seconds": round(time.monotonic() - self._started, 1),
            "verdict": {**plain(asdict(report)), "recommended_command": command} if report else None,
            "preflight": self._preflight.as_json(),
            "probe": probe_record(self._config, probed, statistics, len(tokenizer)) if probed and statistics else None,
            "alignment": self._alignment.as_json() if self._alignment else None,
            "trajectories": shown_trajectories(probed, tokenizer, self._config.probe.shown) if probed else [],
            "config": read_settings(folder),
        }
        write_json(folder / "diagnosis.json", record)
        with display_only():
            write_text(folder / "report.html", render_diagnosis(record))
        if report:
            self._print_verdict(report, command)
        self._console.print(f"{folder / 'report.html'}\n{folder / 'diagnosis.json'}", soft_wrap=True)

    def _print_verdict(self, report: VerdictReport, command: str | None) -> None:
        change = report.predicted_change
        self._console.print(f"\n{report.verdict.value.replace('_', ' ')}", style="bold")
        self._console.print(
            f"predicted change of {report.unit}: {change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"
        )
        for line in report.evidence:
            self._console.print(f"  · {line}")
        if command:
            self._console.print(f"next: {command}", soft_wrap=True)


def run_command(arguments: Sequence[str], change: Sequence[str]) -> str:
    """The run that a diagnosis recommends, as a command: the diagnosed settings, and what the verdict changes of them.

    Args:
        arguments: of the diagnosis, as for `command_line`; a dry one recommends no dry run.
        change: overrides, which replace all that was said of the same parts.
    """
    options = [argument for argument in arguments if argument.startswith("-")]
    settings = [argument for argument in arguments if not argument.startswith("-")]
    parsed = OverridesParser.create().parse_overrides([*settings, *change])
    parts = [override.key_or_group.partition(".")[0] for override in parsed]
    replaced = {"dry_run", *parts[len(settings) :]}
    kept = [override for override, part in zip(settings, parts, strict=False) if part not in replaced]
    return command_line("launch", [*options, *kept, *change])
