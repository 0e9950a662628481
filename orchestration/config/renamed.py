"""Settings that had other names in older versions, and what to write instead."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Renamed:
    """What a setting is called now."""

    key: str
    values: Mapping[str, str] = field(default_factory=dict)  # those that have another name as well

    def assignment(self, value: str | None) -> str:
        """The new key, with the new name of a value that was given to the old one."""
        return self.key if value is None else f"{self.key}={self.values.get(value, value)}"


RENAMED = {
    "objective.states": Renamed("objective.sequences"),
    "objective.states.student_share": Renamed("objective.sequences.on_policy_fraction"),
    "objective.states.others": Renamed("objective.sequences.other_source"),
    "objective.realisation": Renamed("objective.gradient", {"direct": "backprop"}),
    "objective.averaging": Renamed("objective.loss_reduction"),
}
