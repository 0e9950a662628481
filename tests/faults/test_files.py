"""Every file of a run, altered by one bit or cut short: the run goes on as it would have, or says which file it is.

A run is killed between two checkpoints; each time a copy of its folder, with one file spoilt, is gone on with.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.launching import KeptWorkers, Launched, Run, injected, tiny_run_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800), pytest.mark.faults]

SETTINGS = (
    "pipeline.max_staleness=0", "pipeline.steps=4", "checkpoint.every=1", "checkpoint.keep=2", "cluster.cpus=3",
    "scoring.max_tokens_per_forward=1", "preflight.enabled=false", "teacher.weights=ema",
    "teacher.context=Think.",
)  # fmt: skip


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path) -> list[str]:
    return [*tiny_run_settings(tmp_path_factory.mktemp("data"), tiny_tied, tiny_tied), *SETTINGS]


@pytest.fixture(scope="module")
def killed(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was killed in its third step, after two checkpoints."""
    folder, plans = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("plans")
    plan = {"id": 0, "point": "orchestration.runs.recorder:Recorder.step", "call": 3, "action": "kill", "where": {}}
    (plans / "fault.json").write_text(json.dumps(plan))
    run = Launched(folder / "run", *settings, environment=injected(plans))
    assert run.wait(400) == -signal.SIGKILL, run.text()
    return run.run_dir


@pytest.fixture(scope="module")
def workers() -> Iterator[KeptWorkers]:
    workers = KeptWorkers()
    yield workers
    workers.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def outcome(run: Run, exit_code: int, expected: Run, name: str) -> str:
    """What came of a start with a spoilt file; empty where it is as it should be."""
    text = "".join(run.text().split())  # messages are wrapped
    if exit_code in (1, 2):
        told = name in text and "Traceback" not in run.text()
        return "" if told else f"ends with {exit_code} and does not name the file:\n{run.text()[-1500:]}"
    if exit_code:
        return f"ends with {exit_code}"
    if run.steps() != expected.steps() and not (name in text and run.steps() == expected.steps()[-len(run.steps()) :]):
        return f"has steps {run.steps()}"  # rows that the file has lost are told
    losses = [[row["train/loss"] for row in one.step_rows()][-len(run.steps()) :] for one in (run, expected)]
    ours, theirs = (load_file(one.run_dir / "final" / "model.safetensors") for one in (run, expected))
    same = losses[0] == losses[1] and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return "" if same else "ends with other weights"


@pytest.fixture(scope="module")
def go_on(workers: KeptWorkers, settings: list[str]) -> Callable[[Path], tuple[Run, int]]:
    """Go on with a run's folder; returns its exit code as well."""

    def start(run_dir: Path) -> tuple[Run, int]:
        run = Run(run_dir)
        job = [f"run_dir={run_dir}", *settings, "resume=auto"]
        return run, workers.run(run.output, "launch", job, 400)

    return start


@pytest.fixture(scope="module")
def expected(killed: Path, go_on: Callable[[Path], tuple[Run, int]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What comes of the folder as it is."""
    whole = tmp_path_factory.mktemp("whole") / "run"
    shutil.copytree(killed, whole)
    run, exit_code = go_on(whole)
    assert exit_code == 0 and run.steps() == [1, 2, 3, 4], run.text()
    return run


def is_read_back(file: Path) -> bool:
    return "logs" not in file.parts and "step-000001" not in file.parts


@pytest.mark.parametrize("place", ["newest checkpoint", "all else"])
@pytest.mark.parametrize("spoil", [flip, cut])
def test_a_spoilt_file_is_named_or_makes_no_difference(
    place: str,
    spoil: Callable[[Path], None],
    killed: Path,
    expected: Run,
    go_on: Callable[[Path], tuple[Run, int]],
    tmp_path: Path,
    matrix_row: list[str],
) -> None:
    what = {flip: "a bit is flipped", cut: "cut in half"}[spoil]
    matrix_row += ["run folder", what, f"every file, {place}", "named and refused, or same"]
    there = [path.relative_to(killed) for path in sorted(killed.rglob("*")) if path.is_file() and path.stat().st_size]
    files = [file for file in there if is_read_back(file) and (file.parts[0] == "checkpoints") == (place != "all else")]
    assert files
    wrong = {}
    for file in files:
        name = str(file).replace("/", "_")
        shutil.copytree(killed, tmp_path / name / "run")
        spoil(tmp_path / name / "run" / file)
        try:
            found = outcome(*go_on(tmp_path / name / "run"), expected, file.name)
        except AssertionError as error:  # an exception has ended the process
            found = str(error)[-1500:]
        if found:
            wrong[name] = found
        shutil.rmtree(tmp_path / name)
    assert not wrong, "\n".join(f"{name}: {found}" for name, found in wrong.items())
