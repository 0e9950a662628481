"""Which node each worker of a role goes to, by what the nodes have free; and what is missing where there is too little.

    nodes, with what is free ─► seats for the workers of a role ─► NoRoom, or the id of a node for each

Ray would place each worker by itself; what belongs together, or apart, it cannot know.
"""

from collections import Counter
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from tutelage.errors import WorkerFailure
from tutelage.settings import Placement

_EPSILON = 1e-6  # Ray counts in ten-thousandths


class NoRoom(WorkerFailure):
    """The nodes that are there cannot hold the workers."""


@dataclass(frozen=True)
class Resources:
    """What one worker takes of the cluster."""

    cpus: float
    gpus: float
    threads: int  # of its process
    concurrency: int | None = None  # calls at a time; None: Ray's own bound

    def options(self) -> dict[str, Any]:
        """Write them as Ray wants them; the threads are bounded before any library reads the environment."""
        threads = str(self.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "runtime_env": {"env_vars": environment}}
        return options if self.concurrency is None else {**options, "max_concurrency": self.concurrency}

    def __str__(self) -> str:
        return f"{self.cpus:g} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


@dataclass(frozen=True)
class ClusterNode:
    """A node of the cluster and what is free of it."""

    id: str  # Ray's
    address: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.address} {self.cpus:g} CPUs, {self.gpus:g} GPUs"

    def without(self, need: Resources, count: int) -> "ClusterNode":
        """What is left beside so many workers."""
        return replace(self, cpus=self.cpus - count * need.cpus, gpus=self.gpus - count * need.gpus)

    def holds(self, need: Resources) -> int:
        """How many workers there is room for."""
        parts = ((self.cpus, need.cpus), (self.gpus, need.gpus))
        return int(min((free / asked + _EPSILON for free, asked in parts if asked), default=10**6))


def choose_seats(
    nodes: Sequence[ClusterNode], need: Resources, count: int, placement: Placement, learners: Set[str]
) -> list[str]:
    """A node's id for each of `count` workers.

    Args:
        learners: ids of the learner's nodes, for those that belong near them or away from them.

    Raises:
        NoRoom: naming what is asked for and what each node has.
    """
    allowed = [node for node in nodes if _may_go(node, placement, learners)]
    room = {node.id: node.holds(need) for node in allowed}
    if sum(room.values()) < count:
        where = {Placement.near: " beside the learner", Placement.away: " away from the learner"}.get(placement, "")
        free = "; ".join(map(str, allowed)) or "no such node is there"
        raise NoRoom(f"{count} times {need} are asked for{where}; free there: {free}")
    if placement is Placement.pack:
        return _packed(room, count)
    taken = Counter[str]()
    for _ in range(count):
        left = [seat for seat in room if room[seat] > taken[seat]]
        taken[min(left, key=lambda seat: (taken[seat], taken[seat] - room[seat]))] += 1
    return list(taken.elements())


def _packed(room: dict[str, int], count: int) -> list[str]:
    """Fill the nodes that hold the most, and for the rest take the smallest that holds it."""
    seats: list[str] = []
    left = dict(room)
    while len(seats) < count:
        missing = count - len(seats)
        fits = [seat for seat in left if left[seat] >= missing]
        best = min(fits, key=lambda seat: left[seat]) if fits else max(left, key=lambda seat: left[seat])
        seats += [best] * min(missing, left.pop(best))
    return seats


def _may_go(node: ClusterNode, placement: Placement, learners: Set[str]) -> bool:
    if placement is Placement.near:
        return node.id in learners
    return placement is not Placement.away or (bool(learners) and node.id not in learners)
