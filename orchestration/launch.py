"""python -m orchestration.launch [overrides]: run the main job, a single stage or a recipe of several."""

import asyncio
import sys
from collections.abc import Sequence
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from orchestration.cli import refusing_wrong_settings, run
from orchestration.config.compose import build, register_schema
from orchestration.config.schema import RunConfig
from orchestration.prepare.inputs import prepare
from orchestration.prepare.plan import check_local_resources, print_plan
from orchestration.prepare.teachers import check_endpoints
from orchestration.results.directory import locate, open_recipe_directory, open_run_directory
from orchestration.results.tracker import check_login
from orchestration.runs.recipe import compose_stages
from orchestration.runs.recipe_run import carry_out, plan
from orchestration.runs.run import execute
from orchestration.runs.supervisor import is_supervised, supervise
from tutelage.cluster import Session

register_schema()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(composed: DictConfig) -> None:
    started_with = HydraConfig.get()
    config_name = started_with.job.config_name or "config"
    overrides = cast(list[str], OmegaConf.to_container(started_with.overrides.task))  # interpolations as written
    preset = started_with.runtime.choices["objective"]
    if not is_supervised() and composed.recovery.restart_driver and not composed.dry_run:
        with refusing_wrong_settings():
            config = cast(RunConfig, OmegaConf.to_object(composed))  # the driver checks it
            sys.exit(supervise(sys.argv[1:], locate(config), config.recovery.max_restarts))
    with Session() as session:
        exit_code = launch(composed, preset, config_name, overrides, session)
    if exit_code:
        sys.exit(exit_code)


def launch(composed: DictConfig, preset: str, config_name: str, overrides: Sequence[str], session: Session) -> int:
    """Run what was composed; returns the exit code of the process.

    Args:
        preset: the choice of the group `objective`.
        config_name, overrides: what `composed` was composed from, from which the stages of a recipe are composed.
        session: of the runs that may share workers.
    """
    if composed.recipe.stages:
        return _launch_recipe(composed, config_name, overrides, session)
    return _launch_run(composed, preset, session)


def _launch_run(composed: DictConfig, preset: str, session: Session) -> int:
    with refusing_wrong_settings():
        config = build(composed, preset)
        prepared = prepare(config)
        check_local_resources(config, prepared.roles)
        print_plan(config, prepared, locate(config))
        check_endpoints(config, prepared)
        check_login(config.tracking)
        if config.dry_run:
            return 0
        directory = open_run_directory(config, composed)
        directory.check_prompts(prepared.prompts_digest)
    return asyncio.run(execute(config, prepared, directory, session))


def _launch_recipe(composed: DictConfig, config_name: str, overrides: Sequence[str], session: Session) -> int:
    with refusing_wrong_settings():
        config = cast(RunConfig, OmegaConf.to_object(composed))  # unchecked: only the stages' own are run
        folder = locate(config)
        stages = compose_stages(config, folder, config_name, overrides)
        plan(stages)
        check_login(config.tracking)
        if config.dry_run:
            return 0
        directory = open_recipe_directory(folder, composed, [stage.folder.name for stage in stages])
    return carry_out(stages, directory, session)


if __name__ == "__main__":
    run(main)
