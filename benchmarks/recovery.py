"""How long a run takes to recover from a death, over what its workers took to start, and what looking out for it costs.

    python -m benchmarks.recovery [--json PATH]

The lab's compatible pair, two rollout workers, one learner. A rollout worker is killed; when another one has its place,
the learner is. The start is from the run's first word about its workers to the first answers; the recovery of a rollout
worker is from the kill to the newcomer's first day, that of the learner from the kill to the first step after it. Both
starts load the same models on the same cores, the first one all of them at once.

Looking out for deaths: the CPU-seconds of all processes, Ray's included, that a crew spends on asking its three workers
whether they live, every 10 s, over those of the run's steps in that time, for each of the run's two crews.
"""

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.processes import cpu_seconds, running, tree
from benchmarks.report import finish, print_table
from tutelage.cluster import Cluster
from tutelage.crew import HEALTH_SECONDS, Crew
from tutelage.placement import Resources
from tutelage.settings import ClusterConfig, RecoveryConfig
from tutelage.worker import Worker

SETTINGS = (
    "experiment=lab/compatible", "rollout.workers=2", "cluster.cpus=4", "pipeline.steps=5000", "checkpoint.every=5",
    "evaluation.every=0", "evaluation.teacher=false", "preflight.enabled=false", "tracking=disabled",
)  # fmt: skip
DEADLINE = 900.0
CREWS = 2  # rollout workers, and a teacher's
_LINE = re.compile(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3}) \w+ (.*)")


class Log:
    """The run.log of a run that is under way."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def times(self, words: str) -> list[float]:
        """When lines with these words were written, in seconds since the epoch."""
        text = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
        found = [match for match in map(_LINE.fullmatch, text.splitlines()) if match is not None and words in match[3]]
        return [datetime.fromisoformat(match[1]).timestamp() + int(match[2]) / 1000 for match in found]

    def wait(self, words: str, after: float) -> float:
        """When such a line was first written after a time.

        Raises:
            TimeoutError: it does not come.
        """
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            later = [moment for moment in self.times(words) if moment > after]
            if later:
                return later[0]
            time.sleep(0.1)
        raise TimeoutError(f"{self._path}: no {words!r}")


class Idle:
    """A worker that does nothing else than answer."""

    def ping(self) -> None:
        pass


async def look_cpu_seconds(looks: int = 300) -> float:
    """CPU-seconds of one look at a crew of three."""
    cluster, recovery = Cluster.join(ClusterConfig(cpus=4, object_store_gib=0.2)), RecoveryConfig()
    try:
        resources = Resources(cpus=0.5, gpus=0, threads=1)
        crew = Crew("idle", _nobody, cluster, recovery, resources)
        names = cluster.names("idle", 3)
        for worker in await cluster.start(Idle, names=names, resources=resources, deadline=300, patience=0):
            crew.enlist(worker)
        await crew.strike_off_the_dead()
        before = _all_cpu_seconds(os.getpid())
        for _ in range(looks):
            assert not await crew.strike_off_the_dead()
        return (_all_cpu_seconds(os.getpid()) - before) / looks
    finally:
        cluster.leave()


async def _nobody(names: Sequence[str]) -> list[Worker]:
    raise AssertionError(f"{names} are wanted, though nobody has died")


def _all_cpu_seconds(root: int) -> float:
    return sum(cpu_seconds(root, lambda process: "").values())


def kill(driver: int, name: str) -> float:
    """Kill one of the run's actors of a class; returns when."""
    pid = next(process.pid for process in tree(driver, running()) if f"ray::{name}" in process.title)
    os.kill(pid, signal.SIGKILL)
    return time.time()


def measure(folder: Path) -> dict[str, float]:
    log, began = Log(folder / "run" / "run.log"), time.time()
    with (folder / "out").open("w") as output:
        command = [sys.executable, "-m", "orchestration.launch", *SETTINGS, f"run_dir={folder / 'run'}"]
        run = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        start = log.wait("the student answers them before training", began) - log.wait("starting the workers", began)
        steady = log.wait("step 20 ", began)
        before = _all_cpu_seconds(run.pid)
        until = log.wait("step 60 ", steady)
        cpu_rate = (_all_cpu_seconds(run.pid) - before) / (until - steady)
        killed = kill(run.pid, "RolloutWorker")
        rollout = log.wait("takes the place of the one that was lost", killed) - killed
        meanwhile = sum(killed < moment < killed + rollout for moment in log.times(" loss "))
        step = (killed - steady) / max(1, len([m for m in log.times(" loss ") if steady < m < killed]))
        killed = log.wait(" loss ", log.wait(" loss ", time.time()))
        killed = kill(run.pid, "LearnerWorker")
        learner = log.wait(" loss ", log.wait("the run begins again", killed)) - killed
    finally:
        run.send_signal(signal.SIGINT)
        run.wait(DEADLINE)
    return {
        "start_seconds": start,
        "step_seconds": step,
        "rollout_worker_seconds": rollout,
        "steps_meanwhile": float(meanwhile),
        "learner_seconds": learner,
        "rollout_worker_over_start": rollout / start,
        "learner_over_start": learner / start,
        "cpu_seconds_per_second": cpu_rate,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    look = asyncio.run(look_cpu_seconds())
    figures |= {
        "look_cpu_seconds": look,
        "looks_over_steps": CREWS * look / (HEALTH_SECONDS * figures["cpu_seconds_per_second"]),
    }
    print_table("Recovery", ("", "value"), list(figures.items()))
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
