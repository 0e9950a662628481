"""What ends the driver: signals, kills at named calls, and a Ray that dies under it; nothing of it is left behind."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
import torch
from safetensors.torch import load_file

from orchestration.results.directory import whole_checkpoints
from orchestration.runs.run import TRY_AGAIN
from tests.integration.launching import Launched, descendants, injected, left_in_session, tiny_run_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900), pytest.mark.faults]

REPEATABLE = (
    "pipeline.max_staleness=0", "pipeline.steps=4", "checkpoint.every=2", "scoring.max_tokens_per_forward=1",
    "preflight.enabled=false",
)  # fmt: skip
TEMPORARY: dict[Path, Path] = {}  # folder for temporary files of a run's processes, by the run's own
KILLED: set[Path] = set()  # folders of runs whose driver was killed
Plan = Callable[[str, int, str], Callable[[], bool]]
RECORDER = "orchestration.runs.recorder:Recorder"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def launch(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path, tiny_untied: Path
) -> Iterator[Callable[..., Launched]]:
    settings = tiny_run_settings(tmp_path_factory.mktemp("data"), tiny_tied, tiny_untied)
    started: list[Launched] = []

    def start(run_dir: Path, *overrides: str) -> Launched:
        # A short name: Ray puts sockets below it.
        temporary = TEMPORARY.setdefault(run_dir, Path(mkdtemp(prefix="t")))
        environment = injected(folder) | {"TMPDIR": str(temporary)}
        started.append(Launched(run_dir, *settings, *REPEATABLE, *overrides, environment=environment))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.kill(signal.SIGKILL)
    for temporary in TEMPORARY.values():
        shutil.rmtree(temporary, ignore_errors=True)


@pytest.fixture
def plan(folder: Path) -> Iterator[Plan]:
    """Plan a fault; what is returned says whether it has come."""

    def write(point: str, call: int, action: str) -> Callable[[], bool]:
        fault = {"id": len(list(folder.iterdir())), "point": point, "call": call, "action": action, "where": {}}
        (folder / "fault.json").write_text(json.dumps(fault))
        calls = folder / f"calls-{fault['id']}"
        return lambda: calls.is_file() and calls.stat().st_size >= call

    yield write
    (folder / "fault.json").unlink(missing_ok=True)


def assert_ended(run: Launched, exit_code: int, status: str | None, seconds: float = 90, or_code: int = 0) -> None:
    assert run.wait(seconds) in (exit_code, or_code or exit_code), run.text()
    left = left_in_session(run.process.pid)
    if status is None:  # Ray was killed, or by its driver's death; two agents of it try for minutes to tell its server
        left = [args for args in left if args.strip() not in ("ray::DashboardAgent", "ray::RuntimeEnvAgent")]
    assert left == [] and "Traceback" not in run.text()
    if status is None:
        KILLED.add(run.run_dir)  # what outlives it for minutes may write to its folder once more
    else:
        assert run.summary()["status"] == status
        assert run.run_dir in KILLED or list(TEMPORARY[run.run_dir].iterdir()) == []


def assert_same_model(run: Launched, undisturbed: Launched) -> None:
    assert run.steps() == undisturbed.steps() == [1, 2, 3, 4]
    losses = [[row["train/loss"] for row in one.step_rows()] for one in (run, undisturbed)]
    assert losses[0] == losses[1]
    ours, theirs = (load_file(one.run_dir / "final" / "model.safetensors") for one in (run, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def process_of_ray(run: Launched, name: str) -> int:
    listing = subprocess.run(["ps", "-wweo", "pid,sid,args"], capture_output=True, text=True, check=True).stdout
    lines = [line.split(None, 2) for line in listing.splitlines()[1:]]
    (pid,) = (int(pid) for pid, sid, args in lines if int(sid) == run.process.pid and f"/{name} " in f"{args} ")
    return pid


@pytest.fixture(scope="module")
def undisturbed(launch: Callable[..., Launched], tmp_path_factory: pytest.TempPathFactory) -> Launched:
    run = launch(tmp_path_factory.mktemp("undisturbed") / "run")
    assert_ended(run, 0, "completed", 400)
    return run


@pytest.mark.parametrize(
    ("point", "call"),
    [
        (f"{RECORDER}.step", 3),
        (f"{RECORDER}.save", 1),
        ("orchestration.results.directory:RunDirectory.commit_checkpoint", 2),
    ],
)
def test_a_driver_that_is_killed_goes_on_where_it_was(
    point: str,
    call: int,
    launch: Callable[..., Launched],
    plan: Plan,
    undisturbed: Launched,
    tmp_path: Path,
    matrix_row: list[str],
) -> None:
    where = f"{point.partition(':')[2]}, call {call}"
    matrix_row += ["driver", "kill", where, "nothing left behind; `resume=auto` ends with the same losses and `final/`"]
    plan(point, call, "kill")
    assert_ended(launch(tmp_path / "run"), -signal.SIGKILL, None, 400)
    again = launch(tmp_path / "run")
    assert_ended(again, 0, "completed", 400)
    assert_same_model(again, undisturbed)


def test_a_second_ctrl_c_ends_a_run_whose_learner_hangs(
    launch: Callable[..., Launched],
    plan: Plan,
    tmp_path: Path,
    matrix_row: list[str],
) -> None:
    matrix_row += ["learner", "stop, then Ctrl-C twice", "LearnerEngine.step, call 3", "130, nothing left behind"]
    has_struck = plan("learner.engine:LearnerEngine.step", 3, "stop")
    run = launch(tmp_path / "run")
    run.wait_until(has_struck, 200)
    run.kill(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        run.wait(5)  # the step in flight is finished first
    run.kill(signal.SIGINT)
    assert_ended(run, 130, None, 30)
    assert left_in_session(run.process.pid) == []


def test_ctrl_c_ends_a_run_that_is_just_starting(
    launch: Callable[..., Launched], tmp_path: Path, matrix_row: list[str]
) -> None:
    matrix_row += ["driver", "Ctrl-C", "before and in the start of Ray and of the workers", "130, nothing left behind"]
    for index, words in enumerate(("resources", "starting the workers")):
        run = launch(tmp_path / f"run{index}")
        run.wait_until(lambda run=run, words=words: words in run.text(), 60)
        run.kill(signal.SIGINT)
        assert_ended(run, 130, None, 60)


def test_sigterm_leaves_a_checkpoint_within_its_time(
    launch: Callable[..., Launched], plan: Plan, tmp_path: Path, matrix_row: list[str]
) -> None:
    result = "143 with a checkpoint; with a learner that hangs, 143 when `timeouts.preemption` is over"
    matrix_row += ["driver", "SIGTERM", "in a step", result]
    run = launch(tmp_path / "run", "pipeline.steps=2000", "checkpoint.every=0")
    run.wait_for_step(2)
    os.kill(run.process.pid, signal.SIGTERM)
    assert_ended(run, 143, "preempted", 60)
    assert [path.name for path in (run.run_dir / "checkpoints").iterdir()] == [f"step-{run.summary()['steps']:06d}"]
    has_struck = plan("learner.engine:LearnerEngine.step", 2, "stop")
    again = launch(tmp_path / "run", "pipeline.steps=2000", "checkpoint.every=0", "timeouts.preemption=5")
    again.wait_until(has_struck, 200)
    os.kill(again.process.pid, signal.SIGTERM)
    assert_ended(again, 143, "preempted", 60)
    assert "the 5 s that SIGTERM leaves (timeouts.preemption) are over" in " ".join(again.text().split())


def test_where_nobody_may_be_replaced_the_dead_one_is_named(
    launch: Callable[..., Launched], tmp_path: Path, matrix_row: list[str]
) -> None:
    where = "in generation, recovery.max_restarts=0"
    matrix_row += ["rollout worker", "kill", where, "named, a checkpoint, status 1, nothing left behind"]
    overrides = ("pipeline.max_staleness=1", "pipeline.steps=2000", "checkpoint.every=0", "recovery.max_restarts=0")
    run = launch(tmp_path / "run", *overrides)
    run.wait_for_step(2)
    (worker,) = descendants(run.process.pid, "RolloutWorker")
    os.kill(worker, signal.SIGKILL)
    assert_ended(run, 1, "failed", 120)
    assert "rollout-0 died" in run.text()
    (checkpoint,) = (path.name for path in (run.run_dir / "checkpoints").iterdir())
    assert checkpoint == f"step-{run.summary()['steps']:06d}"
    assert max(row["rollout/staleness_max"] for row in run.step_rows()) == 1


def test_a_supervised_driver_that_is_killed_is_started_again(
    launch: Callable[..., Launched], plan: Plan, undisturbed: Launched, tmp_path: Path, matrix_row: list[str]
) -> None:
    where = "Recorder.step, call 3, recovery.restart_driver=true"
    matrix_row += ["driver", "kill", where, "started again by itself; the same losses and `final/`"]
    plan(f"{RECORDER}.step", 3, "kill")
    run = launch(tmp_path / "run", "recovery.restart_driver=true")
    assert run.wait(400) == 0 and "the driver died (SIGKILL); it is started again" in run.text(), run.text()
    assert_same_model(run, undisturbed)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_supervised_driver_outlives_its_ray(
    name: str, launch: Callable[..., Launched], tmp_path: Path, matrix_row: list[str]
) -> None:
    result = "the driver goes with it and is started again by itself; every step once"
    matrix_row += [name, "kill", "in a step, recovery.restart_driver=true", result]
    steps = {"raylet": 300, "gcs_server": 1500}[name]  # Ray looks for a lost server for a minute before it ends
    run = launch(tmp_path / "run", "recovery.restart_driver=true", f"pipeline.steps={steps}", "checkpoint.every=50")
    run.wait_until(lambda: bool(whole_checkpoints(run.run_dir)), 200)
    os.kill(process_of_ray(run, name), signal.SIGKILL)
    assert run.wait(800) == 0 and "it is started again" in run.text(), run.text()
    assert run.steps() == list(range(1, steps + 1)) and run.summary()["status"] == "completed"


def test_a_supervised_driver_is_interrupted_and_refused_like_any(
    launch: Callable[..., Launched], tmp_path: Path
) -> None:
    refused = launch(tmp_path / "refused", "recovery.restart_driver=true", "pipeline.batch_size=0")
    assert refused.wait(100) == 1 and refused.text().count("pipeline.batch_size=0") == 1
    for number, exit_code, status in ((signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "preempted")):
        run = launch(tmp_path / status, "recovery.restart_driver=true", "pipeline.steps=2000", "checkpoint.every=0")
        run.wait_for_step(2)
        os.kill(run.process.pid, number) if number == signal.SIGTERM else run.kill(number)
        assert_ended(run, exit_code, status, 60)


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_ray_that_dies_ends_the_run_in_order(
    name: str, launch: Callable[..., Launched], tmp_path: Path, matrix_row: list[str]
) -> None:
    result = "Ray ends the driver (status 1, no summary), or it ends itself (75); checkpoints whole, no process left"
    matrix_row += [name, "kill", "in a step", result]
    run = launch(tmp_path / "run", "pipeline.steps=2000")
    run.wait_until(lambda: len(list((run.run_dir / "checkpoints").glob("step-*[0-9]"))) > 0, 200)
    os.kill(process_of_ray(run, name), signal.SIGKILL)
    assert_ended(run, 1, None, 120, or_code=TRY_AGAIN)
    assert whole_checkpoints(run.run_dir)
