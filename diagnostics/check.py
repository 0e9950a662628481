"""The outcome of one check of a preflight."""

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    """How a check came out."""

    passed = "pass"
    warned = "warn"  # the run means something, less than it could
    failed = "fail"  # the run would mean nothing


@dataclass(frozen=True)
class Check:
    """What was looked at, what was seen, and what to change."""

    name: str
    status: Status
    seen: str  # in plain words, with figures
    fix: str = ""  # what to change; empty where all is well


def worst(checks: "list[Check]") -> Status:
    """Return the status of all checks together."""
    statuses = {check.status for check in checks}
    return next((status for status in (Status.failed, Status.warned) if status in statuses), Status.passed)
