"""How far a run is: what its stage moves on, its recorder shows, and a checkpoint keeps."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cursor:
    """Where a run stands in its prompts: slots that were admitted but not trained, and the next new one."""

    next_slot: int = 0
    pending: tuple[int, ...] = ()
    replaced: int = 0  # groups dropped so far, each for one more


class StageClock:
    """Seconds during which each stage had something to do, however many workers were at it.

    Stages overlap, so their seconds may add up to more than the run's.
    """

    def __init__(self, earlier: Mapping[str, float] | None = None) -> None:
        """`earlier`: the seconds of the same run before it was interrupted."""
        self._busy: dict[str, int] = defaultdict(int)
        self._since: dict[str, float] = {}
        self._seconds: dict[str, float] = defaultdict(float, earlier or {})

    @contextmanager
    def span(self, stage: str) -> Iterator[None]:
        if self._busy[stage] == 0:
            self._since[stage] = time.perf_counter()
        self._busy[stage] += 1
        try:
            yield
        finally:
            self._busy[stage] -= 1
            if self._busy[stage] == 0:
                self._seconds[stage] += time.perf_counter() - self._since[stage]

    def active(self, stage: str) -> int:
        """How many spans of the stage are open now."""
        return self._busy[stage]

    def seconds(self, stage: str) -> float:
        running = time.perf_counter() - self._since[stage] if self._busy[stage] else 0.0
        return self._seconds[stage] + running

    def all_seconds(self) -> dict[str, float]:
        return {stage: self.seconds(stage) for stage in list(self._seconds) + list(self._since)}


@dataclass
class RunProgress:
    version: int = 0  # of the policy: one optimiser step makes one
    resumed_from: Cursor = field(default_factory=Cursor)  # where this start stood in the prompts when it began
    clock: StageClock = field(default_factory=StageClock)
    tokens: Counter[str] = field(default_factory=Counter)  # rolled out, scored, trained
    counts: Counter[str] = field(default_factory=Counter)  # of what the stage leaves out, by reason
