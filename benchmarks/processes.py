"""CPU time of a process and everything that it started, and of the whole machine, from /proc."""

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    title: str  # the command line, or the name that the process gave itself
    cpu_seconds: float  # of all its threads, and of its children that have ended


def parse_stat(stat: str, title: str) -> Process:
    """Read the line of /proc/PID/stat; the name in brackets may hold anything, brackets and blanks included."""
    before, _, after = stat.rpartition(")")
    pid, name = before.split(" (", 1)
    fields = after.split()
    ticks = sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime
    return Process(int(pid), int(fields[1]), title or name, ticks / _TICK)


def running() -> list[Process]:
    """Every process that can be seen now."""
    found = []
    for path in Path("/proc").iterdir():
        if not path.name.isdigit():
            continue
        try:
            title = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found.append(parse_stat((path / "stat").read_text(), title))
        except (FileNotFoundError, ProcessLookupError):  # it ended in between
            continue
    return found


def tree(root: int, processes: list[Process]) -> list[Process]:
    """The process `root` and its descendants."""
    children: Mapping[int, list[Process]] = defaultdict(list)
    for process in processes:
        children[process.parent].append(process)
    members = [process for process in processes if process.pid == root]
    for member in members:
        members.extend(children[member.pid])
    return members


def cpu_seconds(root: int, role: Callable[[Process], str]) -> dict[str, float]:
    """CPU seconds so far of `root` and its descendants, summed by role."""
    totals: dict[str, float] = defaultdict(float)
    for process in tree(root, running()):
        totals[role(process)] += process.cpu_seconds
    return dict(totals)


def parse_busy(stat: str) -> float:
    """CPU seconds from the first line of /proc/stat: everything but idling and waiting for discs."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, stat.splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICK


def machine_cpu_seconds() -> float:
    """CPU seconds that all processes of this machine, and what runs beside it on the host, have taken so far."""
    return parse_busy(Path("/proc/stat").read_text())
