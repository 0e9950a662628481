"""A run as a user starts it, watched from outside; or several that share their workers."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
WORDS = ("red", "blue", "green", "small", "large", "old", "new", "warm")


def tiny_run_settings(folder: Path, student: Path, teacher: Path) -> list[str]:
    """Settings of a run that is as small as one can be; its prompts are written into the folder."""
    for name, count in (("train", 40), ("heldout", 4)):
        pairs = [(WORDS[i % 8], WORDS[i // 8]) for i in range(count)]
        rows = [{"prompt": f"{name} {a} {b} ?", "completion": f"{a} {b}", "answer": a} for a, b in pairs]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"student.model={student}", f"teacher.model={teacher}", "teacher.context=null", "scoring.dtype=float32",
        f"data.train.path={folder}/train.jsonl", f"data.heldout.path={folder}/heldout.jsonl",
        "rollout.dtype=float32", "learner.dtype=float32", "rollout.max_model_len=256", "rollout.kv_cache_gib=0.2",
        "sampling.max_tokens=8", "evaluation.max_tokens=8", "evaluation.prompts=4", "pipeline.batch_size=4",
        "learner.learning_rate=1e-3", "experiment=quickstart", "tracking.samples_every=1", "tracking.samples=4",
        "evaluation.teacher=false", "tracking=disabled",  # each takes long to start
    ]  # fmt: skip


def injected(folder: Path) -> dict[str, str]:
    """The environment of processes that do what fault.json in a folder plans: see tests/faults/injection."""
    root = Path(__file__).parents[2]
    places = [str(root / "tests" / "faults" / "injection"), str(root), os.environ.get("PYTHONPATH")]
    return {"PYTHONPATH": os.pathsep.join(filter(None, places)), "TUTELAGE_TEST_FAULTS": str(folder)}


class Run:
    """What a run leaves behind."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.output = run_dir.with_name(run_dir.name + ".out")

    def rows(self) -> list[dict[str, float]]:
        path = self.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

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
        return [json.loads(line) for file in files for line in file.read_bytes().splitlines()]

    def text(self) -> str:
        return self.output.read_text()


class Launched(Run):
    """A run in its own process group, so that a signal reaches it as it would from a terminal."""

    def __init__(
        self,
        run_dir: Path,
        *overrides: str,
        environment: Mapping[str, str] | None = None,
        through: Sequence[str] = (),
    ) -> None:
        """
        Args:
            through: a command that starts it elsewhere.
        """
        super().__init__(run_dir)
        launch = [sys.executable, "-m", "orchestration.launch", f"run_dir={run_dir}", "resume=auto", *overrides]
        command = [*through, *launch]
        with self.output.open("a") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
                env=os.environ | ONE_THREAD | (environment or {}),
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in what a script has begun
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

    def kill(self, number: signal.Signals) -> None:
        os.killpg(self.process.pid, number)


def descendants(driver: int, name: str) -> list[int]:
    """The processes of Ray actors of a class that descend from the driver."""
    listing = subprocess.run(["ps", "-eo", "pid,sid,args"], capture_output=True, text=True, check=True).stdout
    found = [line.split() for line in listing.splitlines() if f"ray::{name}" in line]
    return sorted(int(pid) for pid, session, *_ in found if int(session) == driver)


def left_in_session(driver: int, name: str = "", expected: int = 0) -> list[str]:
    """What still runs of a run that is over, engines of dead workers too; it gets a moment to end.

    Args:
        name: in the command lines that count.
        expected: so many may stay.
    """
    for _ in range(50):
        listing = subprocess.run(["ps", "-eo", "sid,stat,args"], capture_output=True, text=True, check=True).stdout
        lines = [line.split(None, 2) for line in listing.splitlines()[1:]]
        living = [args for sid, state, args in lines if int(sid) == driver and not state.startswith("Z")]
        found = [args for args in living if name in args]
        if len(found) <= expected:
            break
        time.sleep(0.2)
    return found


class KeptWorkers:
    """A process that runs what it is told and keeps the workers in between; started with the first run."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        """
        Args:
            environment: what the process and its workers have beside that of the tests.
        """
        self._environment = os.environ | ONE_THREAD | (environment or {})
        self._process: subprocess.Popen[str] | None = None

    def run(self, output: Path, command: str, overrides: Sequence[str], seconds: float) -> int:
        """Run it to its end and return the exit code; what takes longer is killed, workers and all."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.series"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
                env=self._environment,
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

    def left(self, name: str, expected: int) -> list[str]:
        """What runs beside the process, as `left_in_session`."""
        return left_in_session(self._process.pid, name, expected) if self._process is not None else []

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
