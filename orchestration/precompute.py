"""python -m orchestration.precompute [overrides]: let the teacher mark, before a run, what the run will learn from.

The same configuration as launch. The data's completions that training will come by are marked with the requests that
training will make, and kept in scoring.cache_dir; launch then only reads, also with teacher.backend=cache.

slots of the run ─► completions ─► each one's request, once ─► scoring workers ─► scoring.cache_dir
"""

import asyncio
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestration.cluster import Cluster, Session, WorkerFailure
from orchestration.command import refusing_wrong_settings, run
from orchestration.config import ConfigError, RunConfig, Stage, build, register_schema
from orchestration.marking import in_words, reference_request, teacher_request
from orchestration.needs import learns_from_data, needs_reference_scorers
from orchestration.plan import check_local_resources
from orchestration.preparation import Prepared, RenderedPrompt, prepare, with_ids
from orchestration.states import StateSource
from orchestration.workers import REFERENCE, SCORING, ScoringGroup
from rollout.trajectory import Trajectory
from scoring.cache import CacheStats
from scoring.config import TeacherBackend
from scoring.signal import ScoringRequest

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
        trajectories = asyncio.run(_trajectories(config, prepared))
        tokens = sum(len(trajectory.response_ids) for trajectory in trajectories)
        console.print(
            f"{len(trajectories)} completions of {tokens} tokens, marked by {config.teacher.model}", highlight=False
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
    if config.teacher.backend is TeacherBackend.cache:
        raise ConfigError("teacher.backend=cache: computes nothing; set transformers, vllm or server to fill the cache")


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
    cluster: Cluster
    teacher: ScoringGroup
    reference: ScoringGroup | None  # `teacher` itself where that is the reference

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "Marking":
        assert prepared.teacher_path is not None  # distillation has one
        teacher = await ScoringGroup.start(config, prepared.teacher_path, cluster, SCORING)
        reference = None if prepared.reference_path is None else teacher
        if needs_reference_scorers(config) and prepared.reference_path is not None:
            reference = await ScoringGroup.start(config, prepared.reference_path, cluster, REFERENCE)
        return cls(config, prepared, cluster, teacher, reference)

    @property
    def groups(self) -> list[ScoringGroup]:
        own_reference = self.reference is not None and self.reference is not self.teacher
        return [self.teacher, self.reference] if own_reference and self.reference is not None else [self.teacher]

    async def carry_out(self, trajectories: Sequence[Trajectory], console: Console) -> None:
        """Have everything marked that is not marked yet."""
        items = with_ids(self.prepared.train)
        work = [pair for each in trajectories for pair in self._requests(items[each.prompt_id], each)]
        slots = asyncio.Semaphore(_OUTSTANDING * self.config.scoring.workers)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("marks", total=len(work))

            async def mark(group: ScoringGroup, request: ScoringRequest) -> None:
                async with slots:
                    await group.score(request)
                bar.advance(task)

            await asyncio.gather(*(mark(*item) for item in work))

    def _requests(self, item: RenderedPrompt, trajectory: Trajectory) -> Iterator[tuple[ScoringGroup, ScoringRequest]]:
        yield self.teacher, teacher_request(self.config, item, trajectory)
        if self.reference is not None:
            yield self.reference, reference_request(trajectory)

    async def conclude(self) -> CacheStats:
        """How often marks were there; the workers may go on in a run."""
        found = [await group.cache_stats() for group in self.groups]
        for group in self.groups:
            group.set_idle(self.cluster)
        return sum((stats for stats in found if stats is not None), CacheStats())


if __name__ == "__main__":
    run(main)
