"""Wall-clock spans of the stages of a run."""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


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
