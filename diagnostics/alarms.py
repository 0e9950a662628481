"""Alarms: declared rules over windows of a run's metrics, and who watches them.

A window is the last steps that have the metric. A rule is out of bounds as `Comparison` says; after `patience` such
windows in a row it raises its alarm, once in a run.
"""

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from diagnostics.config import AlarmRule, Comparison, Remedy, Statistic

EVALUATED = "eval/"  # prefix of what only evaluations measure
_UPWARD = (Comparison.above, Comparison.rises_by, Comparison.grows_to)
_RATIOS = (Comparison.grows_to, Comparison.shrinks_to)
_STATISTICS: Mapping[Statistic, Callable[[Sequence[float]], float]] = {
    Statistic.mean: statistics.fmean,
    Statistic.median: statistics.median,
}


@dataclass(frozen=True)
class Fault:
    """A setting of a rule that cannot work."""

    setting: str  # the field of the rule
    value: object
    fix: str


@dataclass(frozen=True)
class Alarm:
    name: str  # of the rule
    rule: AlarmRule
    step: int
    since: int  # the first step of the windows that were out of bounds
    value: float  # of the rule's statistic, in the last window
    bound: float  # that it left

    @property
    def message(self) -> str:
        rule = self.rule
        side = "above" if rule.comparison in _UPWARD else "below"
        over = f"{rule.statistic.value} of {rule.window}"
        seen = f"{rule.metric} is {self.value:.3g} ({over}), {side} {self.bound:.3g} ({rule.comparison.value})"
        return f"step {self.step}: {self.name}: {seen}" + (f": {rule.matches}" if rule.matches else "")


def faults(rule: AlarmRule) -> list[Fault]:
    """What is wrong with a rule by itself."""
    found = [
        Fault(setting, value, "counts steps; must be at least 1")
        for setting, value in (("window", rule.window), ("patience", rule.patience))
        if value < 1
    ]
    if not rule.metric:
        found.append(Fault("metric", "''", "name one of metrics.jsonl, for instance rollout/truncated_share"))
    if rule.comparison in _RATIOS and rule.threshold <= 0:
        fix = f"multiplies what the run began with ({rule.comparison.value}); must be above 0"
        found.append(Fault("threshold", rule.threshold, fix))
    if rule.floor and rule.comparison is not Comparison.grows_to:
        found.append(Fault("floor", rule.floor, f"serves grows_to, and this rule is {rule.comparison.value}; set 0"))
    return found


class Watch:
    """Holds every step against the rules.

    A resumed run is watched as one that was never stopped: what its metrics.jsonl has goes through `observe` first.
    """

    def __init__(self, rules: Mapping[str, AlarmRule]) -> None:
        self.alarms: list[Alarm] = []  # all that were raised
        self._rules = [_RuleWatch(name, rule) for name, rule in rules.items()]

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """The alarms that are raised by what a step, or an evaluation after it, measured."""
        watches = [watch for watch in self._rules if watch.rule.metric in metrics]
        raised = [watch.observe(step, metrics[watch.rule.metric]) for watch in watches]
        found = [alarm for alarm in raised if alarm is not None]
        self.alarms += found
        return found

    def blind(self) -> dict[str, str]:
        """Rules that should have seen their metric by now and have not: its name, by the rule's."""
        return {
            watch.name: watch.rule.metric
            for watch in self._rules
            if watch.first is None and not watch.rule.optional and not watch.rule.metric.startswith(EVALUATED)
        }

    @property
    def may_roll_back(self) -> bool:
        return any(watch.rule.remedy is Remedy.roll_back for watch in self._rules)


def most_severe(alarms: Sequence[Alarm]) -> Alarm | None:
    """The alarm whose remedy goes furthest, None where all only warn."""
    for remedy in (Remedy.roll_back, Remedy.stop):
        found = [alarm for alarm in alarms if alarm.rule.remedy is remedy]
        if found:
            return min(found, key=lambda alarm: alarm.since)
    return None


class _RuleWatch:
    """One rule and the last steps that it needs."""

    def __init__(self, name: str, rule: AlarmRule) -> None:
        self.name, self.rule = name, rule
        self.first: float | None = None  # the statistic of the first window, as far as it is there
        self._recent: deque[tuple[int, float]] = deque(maxlen=rule.window + rule.patience - 1)
        self._seen = 0
        self._streak = 0  # windows out of bounds, up to the last
        self._raised = False

    def observe(self, step: int, value: float) -> Alarm | None:
        self._recent.append((step, value))
        self._seen += 1
        window = [value for _, value in list(self._recent)[-self.rule.window :]]
        current = _STATISTICS[self.rule.statistic](window)
        if self._seen <= self.rule.window:
            self.first = current
        if self._seen < self.rule.window or self._raised:
            return None
        bound = self._bound()
        out = current > bound if self.rule.comparison in _UPWARD else current < bound
        self._streak = self._streak + 1 if out else 0
        if self._streak < self.rule.patience:
            return None
        self._raised = True
        return Alarm(self.name, self.rule, step, self._recent[0][0], current, bound)

    def _bound(self) -> float:
        assert self.first is not None
        first, threshold = self.first, self.rule.threshold
        return {
            Comparison.above: threshold,
            Comparison.below: threshold,
            Comparison.rises_by: first + threshold,
            Comparison.falls_by: first - threshold,
            Comparison.grows_to: threshold * max(first, self.rule.floor),
            Comparison.shrinks_to: threshold * first,
        }[self.rule.comparison]
