"""A run as a user starts it, watched from outside."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path


class Launched:
    """A run in its own process group, so that a signal reaches it as it would from a terminal."""

    def __init__(self, run_dir: Path, *overrides: str) -> None:
        self.run_dir = run_dir
        self.output = run_dir.with_name(run_dir.name + ".out")
        command = [sys.executable, "-m", "orchestration.launch", f"run_dir={run_dir}", "resume=auto", *overrides]
        with self.output.open("a") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

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

    def rows(self) -> list[dict[str, float]]:
        path = self.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def steps(self) -> list[int]:
        return [int(row["policy_version"]) for row in self.rows() if "train/loss" in row]

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

    def kill(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)
