"""python -m tests.faults.soak [minutes] [seconds]: a run of the lab that loses somebody every so many seconds.

Whoever it is, the driver too, is killed, or stopped and left for dead. The same run without faults comes first; the one
with faults takes about the minutes, and must end with its model. An engine's answers depend in their last bits on what
else it does, and an engine that takes over does something else: so it writes one answer at a time.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file

from orchestration.results.provenance import machine
from tests.integration.launching import Launched

STEPS_PER_MINUTE = 20  # of the minutes asked for; with faults it takes two or three times as long as without
STOPPED = 0.25  # share of those that do not die at once
LATE = 60  # seconds after which somebody that was stopped counts as lost
VICTIMS = ("ray::LearnerWorker", "ray::RolloutWorker", "ray::ScoringWorker", "EngineCore", "orchestration.launch")


def victims(run: Launched) -> dict[str, list[int]]:
    """The living processes of a run that may be killed, by what they are."""
    listing = subprocess.run(["ps", "-wweo", "pid,sid,stat,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 3) for line in listing.splitlines()[1:]]
    mine = [(int(pid), args) for pid, sid, stat, args in lines if int(sid) == run.process.pid and stat[0] != "Z"]
    found = {name: [pid for pid, args in mine if name in args] for name in VICTIMS}
    found["orchestration.launch"] = [run.process.pid]
    return {name: pids for name, pids in found.items() if pids}


def soak(folder: Path, settings: list[str], seconds: float, rng: random.Random) -> tuple[Launched, Counter[str]]:
    """Run to the end, with a kill every so many seconds; a driver that was killed is started again."""
    lost: Counter[str] = Counter()
    run, next_kill = Launched(folder, *settings), time.monotonic() + seconds
    while True:
        exit_code = run.process.poll()
        if exit_code == 0:
            return run, lost
        if exit_code == -signal.SIGKILL:
            run = Launched(folder, *settings)
        elif exit_code is not None:
            raise SystemExit(f"the run ended with {exit_code}:\n{run.text()[-5000:]}")
        if time.monotonic() > next_kill:
            next_kill = time.monotonic() + seconds
            there = victims(run)
            name = rng.choice(sorted(there))
            stops = name != "orchestration.launch" and rng.random() < STOPPED  # nobody looks after the driver
            with suppress(ProcessLookupError):
                os.kill(rng.choice(there[name]), signal.SIGSTOP if stops else signal.SIGKILL)
                lost[f"{name} {'stopped' if stops else 'killed'}"] += 1
                print(f"step {max(run.steps(), default=0)}: {name} {'stopped' if stops else 'killed'}", flush=True)
        time.sleep(0.5)


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 120.0
    folder = Path(mkdtemp(prefix="soak"))
    settings = [
        *("experiment=lab/compatible", "pipeline.max_staleness=0", "pipeline.batch_size=8", "rollout.max_num_seqs=1"),
        *("scoring.max_tokens_per_forward=1", "rollout.dtype=float32", "preflight.enabled=false"),
        *(f"pipeline.steps={int(STEPS_PER_MINUTE * minutes)}", "checkpoint.every=10", "checkpoint.keep=2"),
        *("evaluation.every=0", "evaluation.prompts=16", "evaluation.teacher=false", "recovery.max_restarts=1000"),
        *(f"timeouts.{name}={LATE}" for name in ("rollout", "weight_sync", "learning", "scoring", "checkpoint")),
    ]
    started = time.monotonic()
    undisturbed = Launched(folder / "undisturbed", *settings)
    if undisturbed.wait(3600 * 4):
        raise SystemExit(undisturbed.text()[-5000:])
    alone = time.monotonic() - started
    run, lost = soak(folder / "soaked", settings, seconds, random.Random(0))
    ours, theirs = (load_file(one.run_dir / "final" / "model.safetensors") for one in (run, undisturbed))
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    once = run.steps() == undisturbed.steps()
    losses = [[row["train/loss"] for row in one.step_rows()] for one in (run, undisturbed)]
    took = (time.monotonic() - started - alone) / 60
    print(f"{sum(lost.values())} losses in {took:.1f} minutes, {alone / 60:.1f} without: {dict(lost)}")
    print(
        f"{len(run.steps())} steps, each once: {once}; the same losses: {losses[0] == losses[1]}; "
        f"the same model: {same}; {machine()}"
    )
    if not (same and once and losses[0] == losses[1]):
        sys.exit(f"see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
