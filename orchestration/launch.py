"""python -m orchestration.launch [overrides]: run the main job."""

import asyncio
import sys

import hydra
from omegaconf import DictConfig

from orchestration.command import refusing_wrong_settings, run
from orchestration.config import build, register_schema
from orchestration.plan import check_resources, local_cpus, local_gpus, print_plan
from orchestration.preparation import prepare
from orchestration.run import execute
from orchestration.run_directory import open_run_directory

register_schema()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(composed: DictConfig) -> None:
    with refusing_wrong_settings():
        config = build(composed)
        if config.cluster.address == "local":
            check_resources(config, local_cpus(config), local_gpus())
        prepared = prepare(config)
        print_plan(config, prepared)
        if config.dry_run:
            return
        directory = open_run_directory(config, composed)
        directory.check_prompts(prepared.prompts_digest)
    exit_code = asyncio.run(execute(config, composed, prepared, directory))
    if exit_code:
        sys.exit(exit_code)


if __name__ == "__main__":
    run(main)
