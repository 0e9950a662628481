"""python -m orchestration.precompute [overrides]: let the teacher mark, before a run, what the run will learn from.

The same configuration as launch. The data's completions that training will come by are marked with the requests that
training will make, and kept in scoring.cache_dir; launch then only reads, also with teacher.backend=cache.

slots of the run ─► completions ─► each one's request, once ─► scoring workers ─► scoring.cache_dir
"""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from learner.objectives import requirements
from orchestration.cluster import Cluster, Session, WorkerFailure
from orchestration.command import refusing_wrong_settings, run
from orchestration.config import ConfigError, RunConfig, Stage, build, register_schema
from orchestration.endpoints import check_endpoints
from orchestration.marking import in_words, reference_request
from orchestration.needs import learns_from_data
from orchestration.plan import check_local_resources
from orchestration.preparation import Prepared, RenderedPrompt, prepare, with_ids
from orchestration.readings import Readings
from orchestration.routing import teachers_of
from orchestration.scoring_group import ScoringGroup
from orchestration.states import StateSource
from orchestration.teacher_rules import TEACHER, setting
from orchestration.teachers import TeacherPool
from orchestration.workers import start_reference
from rollout.trajectory import Trajectory
from scoring.cache import CacheStats
from scoring.config import TeacherBackend

register_schema()
_OUTSTANDING = 64  # requests that a worker has at a time


@hydra.main(version_base="1.3", config_path="pkg://conf", config_name="config")
def main(composed: DictConfig) -> None:
    preset = HydraConfig.get().runtime.choices["objective"]
    with Session() as session:
        exit_code = precompute(composed, preset, session)
    if exit_code:
        sys.exit(exit_code)


def precompute(composed: DictConfig, preset: str, session: Session) -> int:
    """Mark what a run of what was composed will learn from; returns the exit code of the process.

    Args:
        preset: the choice of the group `objective`.
        session: of the runs that may share workers.
    """
    console = Console()
    with refusing_wrong_settings():
        if composed.recipe.stages:
            raise ConfigError("recipe.stages: marks are computed for one stage; give that stage's own overrides")
        config = build(composed, preset)
        _check(config)
        check_local_resources(config)
        prepared = prepare(config)
        check_endpoints(config, prepared)
        trajectories = asyncio.run(_trajectories(config, prepared))
        tokens = sum(len(trajectory.response_ids) for trajectory in trajectories)
        console.print(
            f"{len(trajectories)} completions of {tokens} tokens, marked by {', '.join(teachers_of(config))}",
            highlight=False,
        )
        if config.dry_run:
            return 0
    return asyncio.run(_carry_out(config, prepared, trajectories, session, console))


def _check(config: RunConfig) -> None:
    """Whether a run of this configuration asks what can be asked before."""
    if config.stage is not Stage.distil:
        raise ConfigError(f"stage={config.stage.value}: no teacher's marks are learned from; set stage=distil")
    if not learns_from_data(config):
        states = config.objective.states
        raise ConfigError(
            f"objective.states.others={states.others.value} with student_share={states.student_share:g}: only the "
            "data's completions are known before the run; set objective.states.others=dataset and student_share=0"
        )
    if config.scoring.cache_dir is None:
        raise ConfigError("scoring.cache_dir=null: the marks need a place; name a directory")
    for key, teacher in teachers_of(config).items():
        if teacher.backend is TeacherBackend.cache:
            raise ConfigError(
                f"{setting(key)}.backend=cache: computes nothing; set transformers, vllm or server to fill the cache"
            )


async def _trajectories(config: RunConfig, prepared: Prepared) -> list[Trajectory]:
    """What the data's slots of the run will be, each prompt's completion once."""
    source = StateSource(config, prepared.train, 0, None, None)
    slots = source.foreign(range(config.pipeline.steps * config.pipeline.batch_size))
    found = {trajectory.prompt_id: trajectory async for trajectory in source.roll_out(slots)}
    return list(found.values())


async def _carry_out(
    config: RunConfig, prepared: Prepared, trajectories: Sequence[Trajectory], session: Session, console: Console
) -> int:
    try:
        marking = await Marking.start(config, prepared, session.cluster(config))
        await marking.carry_out(trajectories, console)
        stats = await marking.conclude()
    except WorkerFailure as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    console.print(f"{in_words(stats)}\n{config.scoring.cache_dir}", highlight=False, soft_wrap=True)
    return int(stats.unwritten > 0)


@dataclass(frozen=True)
class Marking:
    """The workers that fill the cache."""

    config: RunConfig
    prepared: Prepared
    readings: Readings
    teachers: TeacherPool
    reference: ScoringGroup | None  # a teacher's own group where it is the reference

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "Marking":
        teachers = await TeacherPool.start(config, prepared, cluster)
        reference = await start_reference(config, prepared, cluster)
        if prepared.reference_path is not None and reference is None:
            reference = teachers.groups[TEACHER]
        readings = Readings(config, prepared, requirements(config.objective))
        return cls(config, prepared, readings, teachers, reference)

    @property
    def groups(self) -> list[ScoringGroup]:
        groups = list(self.teachers.groups.values())
        return groups if self.reference is None or self.reference in groups else [*groups, self.reference]

    async def carry_out(self, trajectories: Sequence[Trajectory], console: Console) -> None:
        """Have everything marked that is not marked yet."""
        items = with_ids(self.prepared.train)
        slots = asyncio.Semaphore(_OUTSTANDING * self.config.scoring.workers)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("marks", total=len(trajectories))

            async def mark(trajectory: Trajectory) -> None:
                async with slots:
                    await self._mark(items[trajectory.prompt_id], trajectory)
                bar.advance(task)

            await asyncio.gather(*(mark(trajectory) for trajectory in trajectories))

    async def _mark(self, item: RenderedPrompt, trajectory: Trajectory) -> None:
        await self.teachers.score(self.readings.of(item, item.teacher_ids, trajectory).request, item.views)
        if self.reference is not None:
            await self.reference.score(reference_request(trajectory))

    async def conclude(self) -> CacheStats:
        """How often marks were there; the workers may go on in a run."""
        found = [await group.cache_stats() for group in self.groups]
        for group in self.groups:
            group.set_idle()
        return sum((stats for stats in found if stats is not None), CacheStats())


if __name__ == "__main__":
    run(main)
