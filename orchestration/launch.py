"""python -m orchestration.launch [overrides]: run the main job, a single stage or a recipe of several."""

import asyncio
import sys
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from orchestration.cluster import Session
from orchestration.command import refusing_wrong_settings, run
from orchestration.config import RunConfig, build, register_schema
from orchestration.plan import check_local_resources, print_plan
from orchestration.preparation import prepare
from orchestration.recipe import compose_stages
from orchestration.recipe_run import carry_out, plan
from orchestration.run import execute
from orchestration.run_directory import locate, open_recipe_directory, open_run_directory

register_schema()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(composed: DictConfig) -> None:
    exit_code = launch_recipe(composed) if composed.recipe.stages else launch_run(composed)
    if exit_code:
        sys.exit(exit_code)


def launch_run(composed: DictConfig) -> int:
    with refusing_wrong_settings():
        config = build(composed)
        check_local_resources(config)
        prepared = prepare(config)
        print_plan(config, prepared)
        if config.dry_run:
            return 0
        directory = open_run_directory(config, composed)
        directory.check_prompts(prepared.prompts_digest)
    with Session() as session:
        return asyncio.run(execute(config, composed, prepared, directory, session))


def launch_recipe(composed: DictConfig) -> int:
    with refusing_wrong_settings():
        config = cast(RunConfig, OmegaConf.to_object(composed))  # unchecked: only the stages' own are run
        started_with = HydraConfig.get()
        folder = locate(config)
        config_name = started_with.job.config_name or "config"
        overrides = cast(list[str], OmegaConf.to_container(started_with.overrides.task))  # interpolations as written
        stages = compose_stages(config, folder, config_name, overrides)
        plan(stages)
        if config.dry_run:
            return 0
        directory = open_recipe_directory(folder, composed, [stage.folder.name for stage in stages])
    return carry_out(stages, directory)


if __name__ == "__main__":
    run(main)
