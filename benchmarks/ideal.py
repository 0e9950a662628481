"""How fast a run could be at best, given how long its stages take; and ratios of interleaved runs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Stages of known durations, in seconds; slot n is trained after `latencies[n]` at the earliest."""

    name: str
    batch_size: int
    rollout: tuple[float, ...]  # of each slot
    scoring: tuple[float, ...]  # of each slot
    learning: float  # of a step
    weight_sync: float  # of a step

    @property
    def steps(self) -> int:
        return len(self.rollout) // self.batch_size

    @property
    def latencies(self) -> list[float]:
        return [a + b for a, b in zip(self.rollout, self.scoring, strict=True)]


def ideal_seconds(work: Workload, max_staleness: int) -> float:
    """The shortest time in which the workload can be trained without breaking the staleness bound s.

    Rollouts and scorings run beside everything else, steps one after the other. With T_v the time at which version v
    is published and B slots in a batch, nothing can go faster than this:
    - Slots start in order, (s+1)·B of them at T_0 and B more at every T_v, since no more may be under way.
    - Step v needs (v+1)·B slots ready, so it starts at the k-th ready time at the earliest, k = (v+1)·B.
    - Whatever was admitted at version v − s or before must be in step v or an earlier one.
    - T_{v+1} is the start of step v plus learning and weight sync.
    With s = 0 this is the sum over the steps of slowest latency + learning + weight sync. If the latencies fit into s
    steps it is the learner's own time, steps · (learning + weight sync), and the first batch.
    """
    latencies, batch_size = work.latencies, work.batch_size
    published = 0.0
    ready: list[float] = []
    for version in range(work.steps):
        admitted = (max_staleness + version + 1) * batch_size
        ready += [published + latency for latency in latencies[len(ready) : admitted]]
        trained = (version + 1) * batch_size
        overdue = ready[:trained] if version >= max_staleness else []
        start = max(published, sorted(ready)[trained - 1], *overdue)
        published = start + work.learning + work.weight_sync
    return published


@dataclass(frozen=True)
class StageTimes:
    """Seconds of one step's worth of work: each stage alone on one core."""

    rollout: float
    scoring: float
    learning: float
    weight_sync: float


def ideal_step_seconds(times: StageTimes, cores: int) -> float:
    """The shortest step when every stage has a process with one thread and the stages share `cores` cores.

    The learner cannot learn while it publishes, and the engine cannot generate while it takes new weights, so each
    of them needs its own time and the weight sync; and all work has to be done by the cores there are. Writing and
    loading of the weights overlap, so the sync counts as work of one core at least.
    """
    work = times.rollout + times.scoring + times.learning + times.weight_sync
    return max(times.learning + times.weight_sync, times.rollout + times.weight_sync, times.scoring, work / cores)


def interleaved_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median of ours / theirs over all neighbouring runs, ours and theirs having taken turns, ours first."""
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    ratios += [mine / other for mine, other in zip(ours[1:], theirs, strict=False)]
    return statistics.median(ratios)
