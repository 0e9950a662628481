"""What a teacher says of the data's completions, before the run that learns from it.

slots of the run ─► completions ─► each one's request, once ─► scoring workers ─► scoring.cache_dir
"""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from orchestration.config.facts import learns_from_data, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.pipeline.sources import TrajectorySource
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.plan import join_cluster
from orchestration.prepare.teachers import make_request_builder
from scoring.backends.base import CacheStats
from scoring.backends.cached import in_words
from scoring.backends.factory import BACKENDS, kind_of
from scoring.config import teacher_setting
from scoring.pool import BASE, REFERENCE, TeacherPool
from scoring.request_builder import RequestBuilder
from tutelage.cluster import Cluster, Session
from tutelage.console import PlainConsole
from tutelage.errors import WorkerFailure
from tutelage.records.prompt import RenderedPrompt, with_ids
from tutelage.records.signal import ScoringRequest
from tutelage.records.trajectory import Trajectory
from tutelage.settings import Refusal

_OUTSTANDING = 64  # requests that a worker has at a time


def precompute_refusals(config: RunConfig) -> Iterator[Refusal]:
    """Say why a run of this configuration asks nothing that could be asked before."""
    if config.recipe.stages:
        names = ", ".join(stage.name for stage in config.recipe.stages)
        yield Refusal("recipe.stages", names, "scores are computed for one stage; give that stage's own overrides")
    if not STAGES[config.stage].learns_from_scores:
        yield Refusal("stage", config.stage, "no teacher's scores are learned from; set stage=distil")
    if not learns_from_data(config):
        sequences = config.objective.sequences
        fix = (
            f"with on_policy_fraction={sequences.on_policy_fraction:g} only the data's completions are known before "
            "the run; set objective.sequences.other_source=dataset and on_policy_fraction=0"
        )
        yield Refusal("objective.sequences.other_source", sequences.other_source, fix)
    if config.scoring.cache_dir is None:
        yield Refusal("scoring.cache_dir", None, "the scores need a place; name a directory")
    for key, teacher in teachers_of(config).items():
        if teacher.backend in BACKENDS and not kind_of(teacher).computes:
            fix = "computes nothing; set transformers, vllm or server to fill the cache"
            yield Refusal(f"{teacher_setting(key)}.backend", teacher.backend, fix)


async def completions_to_score(config: RunConfig, prepared: Prepared) -> list[Trajectory]:
    """What the data's slots of the run will be, each prompt's completion once."""
    source = TrajectorySource(config, prepared.train, 0, None, None)
    slots = source.foreign(range(config.pipeline.steps * config.pipeline.batch_size))
    by_prompt = {trajectory.prompt_id: trajectory async for trajectory in source.roll_out(slots)}
    return list(by_prompt.values())


async def fill_cache(
    config: RunConfig, prepared: Prepared, trajectories: Sequence[Trajectory], session: Session, console: PlainConsole
) -> int:
    """Have the completions scored; returns the exit code of the process."""
    try:
        scoring = await TeacherScoring.start(config, prepared, join_cluster(config, prepared.roles, session))
        await scoring.carry_out(trajectories, console)
        stats = await scoring.conclude()
    except WorkerFailure as error:
        console.print(f"error: {error}", style="red")
        return 1
    console.print(f"{in_words(stats)}\n{config.scoring.cache_dir}", soft_wrap=True)
    return int(stats.unwritten > 0)


@dataclass(frozen=True)
class TeacherScoring:
    """The workers that fill the cache."""

    config: RunConfig
    prepared: Prepared
    builder: RequestBuilder
    teachers: TeacherPool

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "TeacherScoring":
        scorers = {role: scorer for role, scorer in prepared.roles.scorers.items() if role != BASE}
        teachers = await TeacherPool.start(
            scorers, prepared.roles.mixtures, config.scoring, config.timeouts, cluster, config.recovery
        )
        return cls(config, prepared, make_request_builder(config, prepared), teachers)

    async def carry_out(self, trajectories: Sequence[Trajectory], console: PlainConsole) -> None:
        """Have everything scored that is not scored yet."""
        items = with_ids(self.prepared.train)
        slots = asyncio.Semaphore(_OUTSTANDING * self.config.scoring.workers)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("scores", total=len(trajectories))

            async def score(trajectory: Trajectory) -> None:
                async with slots:
                    await self._score(items[trajectory.prompt_id], trajectory)
                bar.advance(task)

            await asyncio.gather(*(score(trajectory) for trajectory in trajectories))

    async def _score(self, item: RenderedPrompt, trajectory: Trajectory) -> None:
        asked = self.builder.build(item.prompt.teacher, item.teacher_ids, trajectory, item.teacher_follow_ups)
        await self.teachers.score(asked.request, item.views)
        if REFERENCE in self.teachers:
            stops = self.prepared.ends.merged
            await self.teachers.score(
                ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids, stops=stops)
            )

    async def conclude(self) -> CacheStats:
        """How often scores were there; the workers may go on in a run."""
        every = [await group.cache_stats() for group in self.teachers.distinct.values()]
        self.teachers.set_idle()
        return sum((stats for stats in every if stats is not None), CacheStats())
