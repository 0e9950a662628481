"""What one check of a preflight found."""

from dataclasses import dataclass
from enum import Enum


class Status(Enum):
    passed = "pass"
    warned = "warn"  # the run means something, less than it could
    failed = "fail"  # the run would mean nothing


@dataclass(frozen=True)
class Check:
    name: str
    status: Status
    seen: str  # in plain words, with figures
    fix: str = ""  # what to change; empty where all is well


def worst(checks: "list[Check]") -> Status:
    """The status of all checks together."""
    found = {check.status for check in checks}
    return next((status for status in (Status.failed, Status.warned) if status in found), Status.passed)
