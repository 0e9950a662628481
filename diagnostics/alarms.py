"""Alarms: declared rules over windows of a run's metrics, and who watches them.

A window is the last steps that have the metric. A rule is out of bounds as its comparison says; after `patience` such
windows in a row it raises its alarm, once in a run.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diagnostics.config import COMPARISONS, STATISTICS, AlarmRule, Remedy

EVALUATED = "eval/"  # prefix of what only evaluations measure


@dataclass(frozen=True)
class Alarm:
    """A rule that was out of bounds long enough, and what was seen."""

    name: str  # of the rule
    rule: AlarmRule
    step: int
    since: int  # the first step of the windows that were out of bounds
    value: float  # of the rule's statistic, in the last window
    bound: float  # that it left

    @property
    def message(self) -> str:
        rule = self.rule
        side = "above" if COMPARISONS[rule.comparison].upward else "below"
        over = f"{rule.statistic} of {rule.window}"
        seen = f"{rule.metric} is {self.value:.3g} ({over}), {side} {self.bound:.3g} ({rule.comparison})"
        return f"step {self.step}: {self.name}: {seen}" + (f": {rule.matches}" if rule.matches else "")


class Watch:
    """Holds every step against the rules.

    A resumed run is watched as one that was never stopped: what its metrics.jsonl has goes through `observe` first.
    """

    def __init__(self, rules: Mapping[str, AlarmRule]) -> None:
        self.alarms: list[Alarm] = []  # all that were raised
        self._rules = [_RuleWatch(name, rule) for name, rule in rules.items()]

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[Alarm]:
        """Return the alarms that are raised by what a step, or an evaluation after it, measured."""
        watches = [watch for watch in self._rules if watch.rule.metric in metrics]
        raised = [watch.observe(step, metrics[watch.rule.metric]) for watch in watches]
        alarms = [alarm for alarm in raised if alarm is not None]
        self.alarms += alarms
        return alarms

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
        matching = [alarm for alarm in alarms if alarm.rule.remedy is remedy]
        if matching:
            return min(matching, key=lambda alarm: alarm.since)
    return None


class _RuleWatch:
    """One rule and the last steps that it needs."""

    def __init__(self, name: str, rule: AlarmRule) -> None:
        self.name, self.rule = name, rule
        self._statistic, self._comparison = STATISTICS[rule.statistic], COMPARISONS[rule.comparison]
        self.first: float | None = None  # the statistic of the first window, as far as it is there
        self._recent: deque[tuple[int, float]] = deque(maxlen=rule.window + rule.patience - 1)
        self._seen = 0
        self._streak = 0  # windows out of bounds, up to the last
        self._raised = False

    def observe(self, step: int, value: float) -> Alarm | None:
        self._recent.append((step, value))
        self._seen += 1
        window = [value for _, value in list(self._recent)[-self.rule.window :]]
        current = self._statistic(window)
        if self._seen <= self.rule.window:
            self.first = current
        if self._seen < self.rule.window or self._raised:
            return None
        assert self.first is not None  # a whole window was seen
        bound = self._comparison.bound(self.rule, self.first)
        out = current > bound if self._comparison.upward else current < bound
        self._streak = self._streak + 1 if out else 0
        if self._streak < self.rule.patience:
            return None
        self._raised = True
        return Alarm(self.name, self.rule, step, self._recent[0][0], current, bound)
