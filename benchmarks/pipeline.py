"""What streaming with a bounded staleness gains, first with stages that sleep, then with real models.

    python -m benchmarks.pipeline [--json PATH] [--only sleeping|models]

Sleeping stages: the product's own pipeline over stages that only wait, with durations that vary from sample to sample
and have a long tail. `overlap_of_ideal` is the shortest possible time (see `benchmarks.ideal.ideal_seconds`) over the
measured one, the worst of all rows. Sleeping rollouts go on during a weight sync; real engines pause.

Real models: the quickstart's job with max_staleness 1 and 0 in turn, from the end of its second step to the last one
that has rollouts beside it (see `benchmarks.job.window`). `async_over_sync` is trained tokens per second at 1 over
those at 0, the median over neighbouring runs. What the stage times allow comes from the strictly on-policy runs,
where rollout, learning and weight sync never run at the same time: rollout, learning and sync as the run's own clock
has them, scoring as the CPU seconds of its process, all for one token, put together by
`benchmarks.ideal.ideal_step_seconds`; `async_of_allowed` is the share of that speed that was reached.
"""

import argparse
import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.ideal import StageTimes, Workload, ideal_seconds, ideal_step_seconds, interleaved_ratio
from benchmarks.job import CORES, Window, run_job, window
from benchmarks.report import finish, print_table
from orchestration.pipeline.pipeline import Pipeline
from orchestration.pipeline.progress import StageClock
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import FinishReason, PolicySpan, Trajectory

BATCH_SIZE, SLEEPING_STEPS = 16, 16
STALENESS = (0, 1, 2)
JOB_STEPS, REPEATS = 6, 2


def long_tailed(name: str, median: float, learning: float) -> Workload:
    """Log-normal rollouts, the slowest of a batch three to four times the median."""
    rng = np.random.default_rng(0)
    slots = BATCH_SIZE * SLEEPING_STEPS
    rollout = median * rng.lognormal(0.0, 0.6, slots)
    scoring = rng.uniform(0.02, 0.08, slots)
    return Workload(name, BATCH_SIZE, tuple(rollout), tuple(scoring), learning, weight_sync=0.05)


WORKLOADS = (
    long_tailed("slow learner", median=0.1, learning=0.3),
    long_tailed("slow rollouts", median=0.3, learning=0.2),
)


class SleepingStages:
    """Rollout and scoring workers with room for every request, which only wait."""

    def __init__(self, work: Workload) -> None:
        self._work = work
        self.version = 0

    async def roll_out(self, slots: Sequence[int]) -> AsyncIterator[Trajectory]:
        waiting = [asyncio.create_task(self._one(slot, self.version)) for slot in slots]
        for finished in asyncio.as_completed(waiting):
            yield await finished

    async def _one(self, slot: int, version: int) -> Trajectory:
        await asyncio.sleep(self._work.rollout[slot])
        ids = np.ones(1, np.int32)
        spans = (PolicySpan(version, 0, 1),)
        zeros = np.zeros(1, np.float32)
        return Trajectory(slot, f"p{slot}", 0, ids, ids, np.ones(1, bool), zeros, 1.0, None, spans, FinishReason.STOP)

    async def score(self, trajectory: Trajectory) -> TeacherSignal:
        await asyncio.sleep(self._work.scoring[trajectory.slot])
        zeros = np.zeros(1, np.float32)
        return TeacherSignal("teacher", zeros, zeros)


async def sleep_through(work: Workload, max_staleness: int) -> float:
    """Seconds from the first admission to the last publication."""
    stages = SleepingStages(work)
    pipeline = Pipeline(
        stages.roll_out,
        stages.score,
        batch_size=work.batch_size,
        max_staleness=max_staleness,
        total_slots=work.steps * work.batch_size,
        clock=StageClock(),
    )
    started = time.perf_counter()
    pipeline.start()
    for version in range(1, work.steps + 1):
        await pipeline.next_batch()
        await asyncio.sleep(work.learning)
        await asyncio.sleep(work.weight_sync)
        stages.version = version
        pipeline.advance(version)
    return time.perf_counter() - started


def measure_sleeping() -> dict[str, float]:
    rows = []
    for work in WORKLOADS:
        strict = ideal_seconds(work, 0)
        for staleness in STALENESS:
            ideal, measured = ideal_seconds(work, staleness), asyncio.run(sleep_through(work, staleness))
            learner = work.steps * (work.learning + work.weight_sync) / measured
            per_step = (1e3 * ideal / work.steps, 1e3 * measured / work.steps)
            rows.append((work.name, staleness, *per_step, ideal / measured, learner, strict / measured))
    print_table(
        f"Sleeping stages, {SLEEPING_STEPS} steps of {BATCH_SIZE}: time of a step against the shortest possible",
        ("workload", "staleness", "ideal ms", "measured ms", "of ideal", "learner busy", "over strict"),
        rows,
    )
    return {"overlap_of_ideal": min(row[4] for row in rows)}


def job_window(max_staleness: int, steps: int) -> Window:
    steps_seen, _ = run_job([f"pipeline.max_staleness={max_staleness}", f"pipeline.steps={steps}"])
    return window(steps_seen, max_staleness)


def stage_times(strict: Sequence[Window]) -> StageTimes:
    """Seconds a trained token, medians over the strictly on-policy runs."""

    def median(seconds: Sequence[float]) -> float:
        return statistics.median(s / run.tokens for s, run in zip(seconds, strict, strict=True))

    return StageTimes(
        rollout=median([run.stages["rollout"] for run in strict]),
        scoring=median([run.cpu["scoring"] for run in strict]),
        learning=median([run.stages["learning"] for run in strict]),
        weight_sync=median([run.stages["weight_sync"] for run in strict]),
    )


def print_job_tables(runs: dict[int, list[Window]]) -> None:
    stages = ("rollout", "scoring", "learning", "weight_sync", "waiting")
    roles = ("engine", "rollout actor", "scoring", "learning", "driver", "ray")
    every = [(staleness, run) for staleness, windows in runs.items() for run in windows]
    print_table(
        "The quickstart's job: seconds a step, and during how many of them each stage was busy",
        ("staleness", "tokens/s", "seconds", *stages),
        [
            (staleness, run.tokens_per_second, run.seconds / run.steps, *(run.stages[x] / run.steps for x in stages))
            for staleness, run in every
        ],
    )
    print_table(
        "CPU seconds a step of each part, and the cores that were busy with something else",
        ("staleness", *roles, "others' cores"),
        [(staleness, *(run.cpu.get(x, 0.0) / run.steps for x in roles), run.neighbours) for staleness, run in every],
    )


def measure_models(steps: int) -> dict[str, float]:
    runs: dict[int, list[Window]] = {1: [], 0: []}
    for _ in range(REPEATS):
        for staleness, windows in runs.items():
            windows.append(job_window(staleness, steps))
    print_job_tables(runs)
    strict, streaming = ([run.tokens_per_second for run in runs[staleness]] for staleness in (0, 1))
    ideal_rate = 1 / ideal_step_seconds(stage_times(runs[0]), CORES)
    return {
        "async_over_sync": interleaved_ratio(streaming, strict),
        "async_over_sync_allowed": ideal_rate / statistics.median(strict),
        "async_of_allowed": statistics.median(streaming) / ideal_rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--only", choices=("sleeping", "models"), help="one of the two parts")
    parser.add_argument("--steps", type=int, default=JOB_STEPS, help="of each real run")
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    if arguments.only != "models":
        figures |= measure_sleeping()
    if arguments.only != "sleeping":
        figures |= measure_models(arguments.steps)
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
