"""The real job, run as a user runs it and watched from outside: when each step was recorded, and at what CPU cost."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import OmegaConf

from benchmarks.processes import Process, cpu_seconds, machine_cpu_seconds
from orchestration.config.schema import RunConfig

CORES = 2
POLL_SECONDS = 0.05
TAIL_CHARACTERS = 3000
WARM_UP_STEPS = 2  # the first steps touch their memory for the first time, which virtual machines make expensive
# A run that is only there to be timed: hardly any evaluation, one checkpoint at the end, no checks, no tracking.
BARE = (
    "evaluation.every=0",
    "evaluation.prompts=2",
    "evaluation.max_tokens=2",
    "checkpoint.every=0",
    "preflight.enabled=false",
    "tracking=disabled",
    "tracking.samples_every=0",
)
_ROLES = {
    "VLLM::": "engine",
    "ray::RolloutWorker": "rollout actor",
    "ray::ScoringWorker": "scoring",
    "ray::LearnerWorker": "learning",
}


@dataclass(frozen=True)
class StepTimes:
    """What was seen when a step appeared in metrics.jsonl."""

    step: int
    seconds: float  # of a monotonic clock
    cpu: dict[str, float]  # CPU seconds by role since the run started
    metrics: dict[str, float]
    machine: float = 0.0  # CPU seconds of the whole machine


@dataclass(frozen=True)
class Window:
    """What a run did between two of its steps."""

    steps: int
    tokens: float  # trained
    seconds: float
    cpu: dict[str, float]  # seconds by role
    stages: dict[str, float]  # seconds by stage, as the run itself counts them
    machine: float = 0.0  # CPU seconds of the whole machine

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens / sum(self.cpu.values())

    @property
    def neighbours(self) -> float:
        """Cores that were busy with something else: the less, the more the times can be trusted."""
        return (self.machine - sum(self.cpu.values())) / self.seconds


def on_two_cores() -> None:
    """Keep this process and its children on the first two cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])


def role(process: Process) -> str:
    """Which part of a run a process belongs to; what is neither a worker nor the driver is Ray's own."""
    for prefix, name in _ROLES.items():
        if process.title.startswith(prefix):
            return name
    return "driver" if "orchestration.launch" in process.title else "ray"


def run_job(overrides: Sequence[str]) -> tuple[list[StepTimes], RunConfig]:
    """Run `orchestration.launch`; returns the times for each step, and the composed config.

    Raises:
        RuntimeError: the run failed; the message ends with what it printed last.
    """
    with tempfile.TemporaryDirectory(prefix="tutelage-benchmark-") as folder:
        run_dir, output = Path(folder) / "run", Path(folder) / "output"
        command = [sys.executable, "-m", "orchestration.launch", *BARE, *overrides, f"run_dir={run_dir}"]
        # Ray gives its workers a lower priority than other processes; what is compared here has the same.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        with output.open("w") as file:
            job = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, preexec_fn=on_two_cores
            )
        try:
            steps = list(_watch(job, run_dir / "metrics.jsonl"))
        finally:
            job.terminate()
            job.wait()
        if job.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {job.returncode}:\n{_tail(output)}")
        composed = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(run_dir / "config.yaml"))
        return steps, cast(RunConfig, OmegaConf.to_object(composed))


def _tail(output: Path) -> str:
    return output.read_text(errors="replace")[-TAIL_CHARACTERS:]


def _watch(job: subprocess.Popen[bytes], metrics: Path) -> Iterator[StepTimes]:
    """Yield the times as each training step appears, until the run ends."""
    seen = 0
    while job.poll() is None:
        time.sleep(POLL_SECONDS)
        if not metrics.exists():
            continue
        lines = metrics.read_text().split("\n")[:-1]  # what follows the last line break is not yet a whole line
        for line in lines[seen:]:
            row = json.loads(line)
            if "train/loss" in row:
                spent = cpu_seconds(job.pid, role)
                yield StepTimes(row["policy_version"], time.monotonic(), spent, row, machine_cpu_seconds())
        seen = len(lines)


def window(steps: Sequence[StepTimes], max_staleness: int) -> Window:
    """The steady part of a run: after its warm-up, and before rollouts run dry.

    With staleness s a run of n steps admits its last prompts when step n − s − 1 ends, so that up to step n − s every
    step has as many rollouts beside it as any other: what is rolled out in the window is what is trained in it.

    Raises:
        ValueError: the run was too short to have such a part.
    """
    first, last = steps[WARM_UP_STEPS - 1], steps[-1 - max_staleness]
    inside = [step.metrics for step in steps if first.step < step.step <= last.step]
    if not inside:
        raise ValueError(f"{len(steps)} steps are too few for max_staleness={max_staleness}")
    stages = [name for name in inside[0] if name.startswith("time/")]
    return Window(
        steps=len(inside),
        tokens=sum(row["train/loss_tokens"] for row in inside),
        seconds=last.seconds - first.seconds,
        cpu={name: spent - first.cpu.get(name, 0.0) for name, spent in last.cpu.items()},
        stages={name.removeprefix("time/"): sum(row[name] for row in inside) for name in stages},
        machine=last.machine - first.machine,
    )
