"""python -m tests.faults.soak [minutes] [seconds]: a run in which somebody is killed every so many seconds.

The same run without faults comes first; the one with faults takes at least the minutes, and must end with its model.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file

from orchestration.results.provenance import machine
from tests.integration.launching import Launched, tiny_run_settings
from tests.models import make_tiny_model

STEPS_PER_MINUTE = 100  # that a run without faults is given for each minute of the one with them
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
    killed: Counter[str] = Counter()
    run, next_kill = Launched(folder, *settings), time.monotonic() + seconds
    while True:
        exit_code = run.process.poll()
        if exit_code == 0:
            return run, killed
        if exit_code == -signal.SIGKILL:
            run = Launched(folder, *settings)
        elif exit_code is not None:
            raise SystemExit(f"the run ended with {exit_code}:\n{run.text()[-5000:]}")
        if time.monotonic() > next_kill:
            next_kill = time.monotonic() + seconds
            there = victims(run)
            name = rng.choice(sorted(there))
            os.kill(rng.choice(there[name]), signal.SIGKILL)
            killed[name] += 1
            print(f"step {max(run.steps(), default=0)}: {name} was killed", flush=True)
        time.sleep(0.5)


def main() -> None:
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 120.0
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 120.0
    folder = Path(mkdtemp(prefix="soak"))
    models = [make_tiny_model(folder / name, tied=tied) for name, tied in (("student", True), ("teacher", False))]
    (folder / "data").mkdir()
    settings = [
        *tiny_run_settings(folder / "data", *models),
        *("pipeline.max_staleness=0", "scoring.max_tokens_per_forward=1", "preflight.enabled=false"),
        *(f"pipeline.steps={int(STEPS_PER_MINUTE * minutes)}", "checkpoint.every=20", "evaluation.every=0"),
        "recovery.max_restarts=1000",
    ]
    started = time.monotonic()
    undisturbed = Launched(folder / "undisturbed", *settings)
    if undisturbed.wait(3600 * 4):
        raise SystemExit(undisturbed.text()[-5000:])
    alone = time.monotonic() - started
    run, killed = soak(folder / "soaked", settings, seconds, random.Random(0))
    ours, theirs = (load_file(one.run_dir / "final" / "model.safetensors") for one in (run, undisturbed))
    same = all(torch.equal(ours[name], theirs[name]) for name in theirs)
    once = run.steps() == undisturbed.steps()
    print(f"{dict(killed)} killed in {(time.monotonic() - started - alone) / 60:.1f} minutes; {alone / 60:.1f} without")
    print(f"{len(run.steps())} steps, each once: {once}; the same model: {same}; {machine()}")
    if not (same and once):
        sys.exit(f"see {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
