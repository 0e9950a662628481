"""Runs of the main command one after another, in one process: they share workers, and finished ones are skipped."""

from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from orchestration.launch import launch
from orchestration.results.directory import check_identity, is_finished
from orchestration.runs.recipe import compose_run
from tutelage.cluster import Session

CONFIG = "config"


@dataclass(frozen=True)
class Job:
    """One run, as on the command line."""

    folder: Path
    overrides: tuple[str, ...]


class RunFailed(RuntimeError):
    """A run of the series did not complete; the message says where it printed why."""


def perform(job: Job, session: Session) -> bool:
    """Run a job, or continue it where it stopped; False if it had been completed before. Hydra must be initialised.

    What the run prints goes to `<folder>.out`.

    Raises:
        RunFailed: it did not complete.
        ConfigError: it had been completed with other settings.
    """
    overrides = [*job.overrides, f"run_dir={job.folder}", "resume=auto"]
    composed, preset = compose_run(CONFIG, overrides)
    if is_finished(job.folder):
        check_identity(job.folder, composed, "finished")
        return False
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    output = job.folder.with_name(job.folder.name + ".out")
    with output.open("a", encoding="utf-8") as file, redirect_stdout(file):
        exit_code = launch(composed, preset, CONFIG, overrides, session)
    if exit_code:
        raise RunFailed(f"{job.folder}: exit code {exit_code}; what it printed is in {output}")
    return True
