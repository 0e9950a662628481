"""python -m orchestration.diagnose [overrides]: will this run work? The same configuration as launch, no training.

Exit codes: 0 go, 3 any other verdict or a check that failed, 1 error.
"""

import asyncio
import logging
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from diagnostics.probe import Figures, figures
from diagnostics.report import render_diagnosis
from diagnostics.verdict import Judgement, Verdict, judge, overrides_for
from orchestration.alignment import Alignment, measure_alignment
from orchestration.capability import shows_whole
from orchestration.cluster import Session, WorkerFailure
from orchestration.command import refusing_wrong_settings, run
from orchestration.config import ConfigError, RunConfig, Stage, build, register_schema
from orchestration.diagnosis import probe_record, shown_trajectories, verdict_record
from orchestration.files import write_json, write_text
from orchestration.machine import machine
from orchestration.plan import check_local_resources, print_plan
from orchestration.preflight import Preflight, print_checks, run_preflight
from orchestration.preparation import Prepared, prepare
from orchestration.probe import Cost, Probed, Prober, plan_probe
from orchestration.run import log_to, package_versions
from orchestration.run_directory import RunDirectory, locate_diagnosis, open_diagnosis_directory
from orchestration.teacher_rules import TEACHER
from orchestration.workers import Workers
from rollout.verifiers import make_verifier

register_schema()
log = logging.getLogger("tutelage")
NOT_GO = 3


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(composed: DictConfig) -> None:
    started_with = HydraConfig.get()
    overrides = cast(list[str], OmegaConf.to_container(started_with.overrides.task))  # interpolations as written
    preset = started_with.runtime.choices["objective"]
    with Session() as session:
        exit_code = diagnose(composed, preset, overrides, session)
    if exit_code:
        sys.exit(exit_code)


def diagnose(composed: DictConfig, preset: str, overrides: Sequence[str], session: Session) -> int:
    """Diagnose what was composed; returns the exit code of the process.

    Args:
        preset: the choice of the group `objective`.
        overrides: what `composed` was composed with, for the command that the verdict recommends.
        session: of the diagnoses and runs that may share workers.
    """
    with refusing_wrong_settings():
        config = build(composed, preset)
        refuse_what_cannot_be_diagnosed(config)
        check_local_resources(config)
        prepared = prepare(config)
        folder = locate_diagnosis(config)
        print_plan(config, prepared, folder)
        _print_cost(plan_probe(config, prepared))
        if config.dry_run:
            return 0
        directory = open_diagnosis_directory(folder, composed)
    return asyncio.run(_carry_out(config, composed, prepared, directory, session, overrides))


def refuse_what_cannot_be_diagnosed(config: RunConfig) -> None:
    if config.stage is not Stage.distil:
        raise ConfigError(
            f"stage={config.stage.value}: a diagnosis asks whether a teacher's marks will help the student; set "
            "stage=distil"
        )
    if config.further_teachers:
        raise ConfigError(
            f"further_teachers={', '.join(config.further_teachers)}: a diagnosis looks at one teacher at a time; leave "
            "them out and set teacher to the one in question, with the prompts that it is to mark"
        )
    if not shows_whole(config, TEACHER):
        raise ConfigError(
            f"teacher.backend={config.teacher.backend.value}: a diagnosis compares the whole distributions of teacher "
            "and student on new responses over one vocabulary, and this teacher does not show its own; set "
            "teacher.backend=transformers with a checkpoint that shares the student's tokenizer"
        )


def _print_cost(cost: Cost) -> None:
    Console().print(
        f"probe: {cost.prompts} prompts, {cost.answers} answers and {cost.continuations} continuations of both models, "
        f"at most {cost.tokens} tokens",
        highlight=False,
    )


async def _carry_out(
    config: RunConfig,
    composed: DictConfig,
    prepared: Prepared,
    directory: RunDirectory,
    session: Session,
    overrides: Sequence[str],
) -> int:
    handler = log_to(directory.path / "run.log")
    cluster, console = session.cluster(config), Console()
    try:
        diagnosis = Diagnosis(config, prepared, console)
        workers = await Workers.start(config, prepared, cluster)
        await diagnosis.carry_out(workers)
        await workers.set_idle()
        settings = cast(dict[str, Any], OmegaConf.to_container(composed, resolve=True, enum_to_str=True))
        diagnosis.write(directory.path, settings, overrides)
        return diagnosis.exit_code
    except WorkerFailure as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    finally:
        cluster.keep_logs(directory.logs)
        log.removeHandler(handler)
        directory.close()


class Diagnosis:
    """One diagnosis, from the workers to its folder."""

    def __init__(self, config: RunConfig, prepared: Prepared, console: Console) -> None:
        self._config, self._prepared, self._console = config, prepared, console
        self._verifier = make_verifier(config.data.verifier)
        self._started = time.monotonic()
        self._preflight: Preflight | None = None
        self._alignment: Alignment | None = None
        self._probed: Probed | None = None
        self._figures: Figures | None = None
        self._judgement: Judgement | None = None

    @property
    def exit_code(self) -> int:
        return 0 if self._judgement is not None and self._judgement.verdict is Verdict.go else NOT_GO

    async def carry_out(self, workers: Workers) -> None:
        """The preflight, and the probe unless a check failed."""
        await workers.connect()
        self._preflight = await run_preflight(
            self._config, self._prepared, workers, self._verifier, self._console.print
        )
        print_checks(self._console, self._preflight.checks)
        if self._preflight.failed:
            self._console.print("a check failed, so nothing that a probe found would mean anything: mend it first")
            return
        if self._config.alignment.enabled:  # first, while the engines hold the student
            self._alignment = await measure_alignment(
                self._config, self._prepared, workers, self._verifier, self._console.print
            )
        self._probed = await self._probe(workers)
        self._figures = figures(self._probed.found)
        self._judgement = judge(self._probed.found, self._figures)

    async def _probe(self, workers: Workers) -> Probed:
        cost = plan_probe(self._config, self._prepared)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("probe", total=cost.answers + cost.continuations)

            def advance(what: str, responses: int) -> None:
                bar.update(task, description=what, advance=responses)

            return await Prober(self._config, self._prepared, workers, self._verifier, advance).probe()

    def write(self, folder: Path, settings: dict[str, Any], overrides: Sequence[str]) -> None:
        """diagnosis.json and report.html, and the verdict for whoever watches."""
        assert self._preflight is not None
        probed, found, judgement = self._probed, self._figures, self._judgement
        command = shlex.join(
            ["python", "-m", "orchestration.launch", *overrides, *(overrides_for(judgement) if judgement else ())]
        )
        record = {
            "command": shlex.join(["python", "-m", "orchestration.diagnose", *overrides]),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": package_versions(),
            "seconds": round(time.monotonic() - self._started, 1),
            "verdict": verdict_record(judgement, command) if judgement else None,
            "preflight": self._preflight.as_json(),
            "probe": probe_record(self._config, probed, found, len(self._prepared.tokenizer))
            if probed and found
            else None,
            "alignment": self._alignment.as_json() if self._alignment else None,
            "trajectories": shown_trajectories(probed, self._prepared.tokenizer, self._config.probe.shown)
            if probed
            else [],
            "config": settings,
        }
        write_json(folder / "diagnosis.json", record)
        write_text(folder / "report.html", render_diagnosis(record))
        if judgement:
            self._print_verdict(judgement, command)
        self._console.print(f"{folder / 'report.html'}\n{folder / 'diagnosis.json'}", highlight=False, soft_wrap=True)

    def _print_verdict(self, judgement: Judgement, command: str) -> None:
        change = judgement.predicted_change
        self._console.print(f"\n[bold]{judgement.verdict.value.replace('_', ' ')}[/bold]")
        self._console.print(
            f"predicted change of {judgement.unit}: {change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]",
            highlight=False,
            markup=False,
        )
        for line in judgement.evidence:
            self._console.print(f"  · {line}", highlight=False, markup=False)
        self._console.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
