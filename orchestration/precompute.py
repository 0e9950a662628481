"""python -m orchestration.precompute [overrides]: let the teacher score, before a run, what the run will learn from.

The same configuration as launch. The data's completions that training will come by are scored with the requests that
training will make, and kept in scoring.cache_dir; launch then only reads, also with teacher.backend=cache.
"""

import asyncio
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from orchestration.cli import refusing_wrong_settings, run
from orchestration.config.compose import build, register_schema
from orchestration.config.facts import teachers_of
from orchestration.prepare.inputs import prepare
from orchestration.prepare.plan import check_local_resources
from orchestration.prepare.teachers import check_endpoints
from orchestration.runs.precomputing import completions_to_score, fill_cache, precompute_refusals
from tutelage.cluster import Session
from tutelage.console import PlainConsole

register_schema()


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(composed: DictConfig) -> None:
    preset = HydraConfig.get().runtime.choices["objective"]
    with Session() as session:
        exit_code = precompute(composed, preset, session)
    if exit_code:
        sys.exit(exit_code)


def precompute(composed: DictConfig, preset: str, session: Session) -> int:
    """Score what a run of what was composed will learn from; returns the exit code of the process.

    Args:
        preset: the choice of the group `objective`.
        session: of the runs that may share workers.
    """
    console = PlainConsole()
    with refusing_wrong_settings():
        config = build(composed, preset, precompute_refusals)
        prepared = prepare(config)
        check_local_resources(config, prepared.roles)
        check_endpoints(config, prepared)
        trajectories = asyncio.run(completions_to_score(config, prepared))
        tokens = sum(len(trajectory.response_ids) for trajectory in trajectories)
        console.print(f"{len(trajectories)} completions of {tokens} tokens, scored by {', '.join(teachers_of(config))}")
        if config.dry_run:
            return 0
    return asyncio.run(fill_cache(config, prepared, trajectories, session, console))


if __name__ == "__main__":
    run(main)
