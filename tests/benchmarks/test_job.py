"""Windows over a watched run, and the processes that are counted."""

import os
import subprocess
import sys
import time

import pytest

from benchmarks.job import StepTimes, role, window
from benchmarks.processes import Process, cpu_seconds, parse_busy, parse_stat, running, tree


def step_times(step: int, cpu: float) -> StepTimes:
    metrics = {"train/loss_tokens": 100.0 * step, "time/learning": 2.0, "train/loss": 0.0}
    cpus = {"learning": cpu, "ray": 1.0}
    return StepTimes(step, seconds=10.0 * step, cpu=cpus, metrics=metrics, machine=8.0 * step)


def test_a_window_leaves_out_the_warm_up_and_those_without_rollouts_beside_them() -> None:
    steps = [step_times(step, cpu=5.0 * step) for step in range(1, 8)]
    steady = window(steps, max_staleness=2)
    assert steady.steps == 3  # 3, 4 and 5
    assert steady.tokens == 1200
    assert steady.seconds == 30
    assert steady.cpu == {"learning": 15.0, "ray": 0.0}
    assert steady.stages == {"learning": 6.0}
    assert steady.neighbours == pytest.approx((24 - 15) / 30)
    assert steady.tokens_per_second == pytest.approx(40)
    assert steady.tokens_per_cpu_second == pytest.approx(80)


def test_a_run_without_a_steady_part_is_refused() -> None:
    with pytest.raises(ValueError, match="max_staleness=1"):
        window([step_times(1, 1.0), step_times(2, 2.0)], max_staleness=1)


def test_a_stat_line_is_read_whatever_the_process_calls_itself() -> None:
    numbers = " ".join(["0"] * 9 + ["100", "200", "300", "400"] + ["0"] * 30)
    found = parse_stat(f"12 (a ) (b) S 7 {numbers}", "")
    assert (found.pid, found.parent, found.title) == (12, 7, "a ) (b")
    assert found.cpu_seconds == pytest.approx(1000 / os.sysconf("SC_CLK_TCK"))


def test_waiting_is_no_work_of_the_machine() -> None:
    found = parse_busy("cpu  1 2 4 1000 1000 8 16 32 0 0\ncpu0 1 2 4 1000 1000 8 16 32 0 0\n")
    assert found == pytest.approx(63 / os.sysconf("SC_CLK_TCK"))


def test_the_tree_has_descendants_and_nobody_else() -> None:
    processes = [Process(pid, parent, "", 1.0) for pid, parent in [(5, 4), (2, 1), (4, 2), (3, 1), (6, 3)]]
    assert {process.pid for process in tree(2, processes)} == {2, 4, 5}


def test_a_childs_work_is_counted() -> None:
    before = cpu_seconds(os.getpid(), lambda process: "all")["all"]
    script = "import time\nwhile time.process_time() < 0.5: pass\nprint('done', flush=True)\ntime.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.05)
        assert cpu_seconds(os.getpid(), lambda process: "all")["all"] - before >= 0.45
        assert any(process.pid == child.pid for process in tree(os.getpid(), running()))
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("VLLM::EngineCore", "engine"),
        ("ray::ScoringWorker.score", "scoring"),
        ("/usr/bin/python -m orchestration.launch pipeline.steps=3", "driver"),
        ("/usr/bin/raylet --raylet_socket_name=x", "ray"),
    ],
)
def test_processes_are_named_by_what_they_do_in_a_run(title: str, name: str) -> None:
    assert role(Process(1, 0, title, 0.0)) == name
