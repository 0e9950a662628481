"""A run as a user starts it, watched from outside; or several that share their workers."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1"}


class Run:
    """What a run leaves behind."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.output = run_dir.with_name(run_dir.name + ".out")

    def rows(self) -> list[dict[str, float]]:
        path = self.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def step_rows(self) -> list[dict[str, float]]:
        return [row for row in self.rows() if "train/loss" in row]

    def steps(self) -> list[int]:
        return [int(row["policy_version"]) for row in self.step_rows()]

    def summary(self) -> dict:
        return json.loads((self.run_dir / "summary.json").read_text())

    def trained_prompts(self) -> Counter[str]:
        return Counter(sample["prompt_id"] for sample in self.samples())

    def samples(self) -> list[dict]:
        """Every trajectory that was trained, in order of step and slot; as far as `tracking` keeps them."""
        files = sorted((self.run_dir / "samples").glob("step-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    def text(self) -> str:
        return self.output.read_text()


class Launched(Run):
    """A run in its own process group, so that a signal reaches it as it would from a terminal."""

    def __init__(self, run_dir: Path, *overrides: str) -> None:
        super().__init__(run_dir)
        command = [sys.executable, "-m", "orchestration.launch", f"run_dir={run_dir}", "resume=auto", *overrides]
        with self.output.open("a") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=os.environ | ONE_THREAD
            )

    def wait(self, seconds: float = 400) -> int:
        return self.process.wait(seconds)

    def wait_for_step(self, step: int, seconds: float = 400) -> None:
        self.wait_until(lambda: step in self.steps(), seconds)

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"ended early:\n{self.text()}"
            assert time.monotonic() < deadline, f"too slow:\n{self.text()}"
            time.sleep(0.1)

    def kill(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)


def descendants(driver: int, name: str) -> list[int]:
    """The processes of Ray actors of a class that descend from the driver."""
    listing = subprocess.run(["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listing.splitlines() if f"ray::{name}" in line]
    return sorted(int(pid) for pid, session, *_ in found if int(session) == driver)


def left_in_session(driver: int) -> list[str]:
    """What still runs of a run that is over, engines of dead workers too; it gets a moment to end."""
    for _ in range(50):
        listing = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 2) for line in listing.splitlines()[1:]]
        found = [args for sid, state, args in lines if int(sid) == driver and not state.startswith("Z")]
        if not found:
            break
        time.sleep(0.2)
    return found


class KeptWorkers:
    """A process that runs what it is told and keeps the workers in between; started with the first run."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, output: Path, command: str, overrides: Sequence[str], seconds: float) -> int:
        """Run it to its end and return the exit code; what takes longer is killed, workers and all."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.series"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
                env=os.environ | ONE_THREAD,
            )  # fmt: skip
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"output": str(output), "command": command, "overrides": overrides}) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answer = process.stdout.readline() if selector.select(seconds) else ""
        if not answer:
            self.close()
            raise AssertionError(f"too slow, or died:\n{output.read_text()}")
        return int(answer)

    def close(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(60)
            self._process = None


class Series:
    """Runs with settings in common, one after the other, whose workers are kept for those that can use them."""

    def __init__(self, workers: KeptWorkers, settings: Sequence[str]) -> None:
        self._workers, self._settings = workers, settings

    def run(
        self, run_dir: Path, *overrides: str, exit_code: int = 0, seconds: float = 400, command: str = "launch"
    ) -> Run:
        """Run it to its end, which must be this one.

        Args:
            command: "launch", "diagnose", "precompute" or "align".
        """
        run = Run(run_dir)
        job = [f"run_dir={run_dir}", *self._settings, *overrides]
        assert self._workers.run(run.output, command, job, seconds) == exit_code, run.text()
        return run
