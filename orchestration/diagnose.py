"""python -m orchestration.diagnose [overrides]: will this run work? The same configuration as launch, no training.

Exit codes: 0 go, 3 any other verdict or a check that failed, 1 error.
"""

import asyncio
import logging
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from orchestration.cli import refusing_wrong_settings, run
from orchestration.config.compose import build, register_schema
from orchestration.config.facts import shows_whole, teachers_of
from orchestration.config.schema import RunConfig, Stage
from orchestration.measure.probe import Cost, plan_probe
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import Prepared, prepare
from orchestration.prepare.plan import check_local_resources, join_cluster, print_plan
from orchestration.results.directory import RunDirectory, locate_diagnosis, open_diagnosis_directory
from orchestration.results.provenance import log_to
from orchestration.runs.diagnosis import Diagnosis
from scoring.backends.factory import BACKENDS
from scoring.config import TEACHER
from tutelage.cluster import Session
from tutelage.errors import WorkerFailure
from tutelage.settings import Refusal

register_schema()
log = logging.getLogger("tutelage")


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
        config = build(composed, preset, diagnosis_refusals)
        prepared = prepare(config)
        check_local_resources(config, prepared.roles)
        folder = locate_diagnosis(config)
        print_plan(config, prepared, folder)
        _print_cost(plan_probe(config, prepared))
        if config.dry_run:
            return 0
        directory = open_diagnosis_directory(folder, composed)
    return asyncio.run(_carry_out(config, composed, prepared, directory, session, overrides))


def diagnosis_refusals(config: RunConfig) -> Iterator[Refusal]:
    """Say why a configuration cannot be diagnosed, though it may be trained with."""
    if config.stage is not Stage.distil:
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
    cluster, console = join_cluster(config, prepared.roles, session), Console()
    try:
        diagnosis = Diagnosis(config, prepared, console)
        workers = await Fleet.start(config, prepared, cluster)
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


if __name__ == "__main__":
    run(main)
