"""python -m orchestration.diagnose [overrides]: will this run work? The same configuration as launch, no training.

Exit codes: 0 go, 3 any other verdict or a check that failed, 1 error.
"""

import asyncio
import sys
from collections.abc import Sequence
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from orchestration.cli import refusing_wrong_settings, run
from orchestration.config.compose import build, register_schema
from orchestration.measure.probe import ProbeCost, plan_probe
from orchestration.prepare.inputs import prepare
from orchestration.prepare.plan import check_local_resources, print_plan
from orchestration.results.directory import locate_diagnosis, open_diagnosis_directory
from orchestration.runs.diagnosis import diagnosis_refusals, execute_diagnosis
from tutelage.cluster import Session
from tutelage.console import PlainConsole

register_schema()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(composed: DictConfig) -> None:
    started_with = HydraConfig.get()
    overrides = cast(list[str], OmegaConf.to_container(started_with.overrides.task))  # interpolations as written
    folders = [source.path for source in started_with.runtime.config_sources if source.provider == "command-line"]
    options = [f"--config-dir={folder}" for folder in folders]
    if started_with.job.config_name != "config":
        options.append(f"--config-name={started_with.job.config_name}")
    preset = started_with.runtime.choices["objective"]
    with Session() as session:
        exit_code = diagnose(composed, preset, [*options, *overrides], session)
    if exit_code:
        sys.exit(exit_code)


def diagnose(composed: DictConfig, preset: str, arguments: Sequence[str], session: Session) -> int:
    """Diagnose what was composed; returns the exit code of the process.

    Args:
        preset: the choice of the group `objective`.
        arguments: what `composed` was composed with, for the command that the verdict recommends.
        session: of the diagnoses and runs that may share workers.
    """
    with refusing_wrong_settings():
        config = build(composed, preset, diagnosis_refusals)
        prepared = prepare(config)
        check_local_resources(config, prepared.roles)
        folder = locate_diagnosis(config)
        print_plan(config, prepared, folder)
        _print_cost(plan_probe(config, prepared), config.probe.prompts, len(prepared.heldout))
        if config.dry_run:
            return 0
        directory = open_diagnosis_directory(folder, composed)
    return asyncio.run(execute_diagnosis(config, prepared, directory, session, arguments))


def _print_cost(cost: ProbeCost, wanted: int, there: int) -> None:
    """
    Args:
        wanted: prompts, by `probe.prompts`.
        there: held-out prompts that were read.
    """
    bound = "probe.max_tokens" if cost.prompts < there else "evaluation.prompts or data.heldout"
    fewer = f" (of probe.prompts={wanted}: {bound} allows no more)" if cost.prompts < wanted else ""
    PlainConsole().print(
        f"probe: {cost.prompts} prompts{fewer}, {cost.answers} answers and {cost.continuations} continuations of both "
        f"models, at most {cost.tokens} tokens"
    )


if __name__ == "__main__":
    run(main)
