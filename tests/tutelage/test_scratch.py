"""What a run leaves among the system's temporary files: nothing, however it ended."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tutelage import scratch
from tutelage.scratch import Scratch

KILLED = """
import multiprocessing, os, signal, subprocess, sys, tempfile
from tutelage import scratch
scratch._LONGEST = 999
ours = scratch.Scratch()
lock = multiprocessing.get_context("spawn").Lock()
tempfile.mkdtemp()
print(ours.path, lock._semlock.name, flush=True)
os.killpg(0, signal.SIGKILL)  # nobody is left to tidy up
"""


@pytest.fixture(autouse=True)
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(scratch, "_LONGEST", len(str(tmp_path)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def semaphore(name: str) -> Path:
    return Path("/dev/shm", f"sem.{name.strip('/')}")


def test_temporary_files_go_to_it_and_with_it(system: Path) -> None:
    ours = Scratch()
    made = Path(tempfile.mkdtemp())
    child = subprocess.run(
        [sys.executable, "-c", "import tempfile; print(tempfile.mkdtemp())"], capture_output=True, text=True
    )
    assert made.parent == Path(child.stdout.strip()).parent == ours.path
    assert ours.path.stat().st_mode & 0o777 == 0o700
    ours.remove()
    assert list(system.iterdir()) == [] and tempfile.gettempdir() == str(system)


def test_what_a_killed_driver_left_goes_with_the_next_and_what_lives_stays(system: Path) -> None:
    living = Scratch()
    os.environ["TMPDIR"] = str(system)  # as in another process
    tempfile.tempdir = None
    lock: Any = multiprocessing.get_context("spawn").Lock()
    done = subprocess.run([sys.executable, "-c", KILLED], capture_output=True, text=True, start_new_session=True)
    left, name = done.stdout.split()
    assert Path(left).is_dir() and semaphore(name).exists() and semaphore(lock._semlock.name).exists()
    other = Scratch()
    assert not Path(left).exists() and not semaphore(name).exists()
    assert living.path.is_dir() and semaphore(lock._semlock.name).exists()
    other.remove()
    living.remove()
    assert semaphore(lock._semlock.name).exists()  # in use


def test_where_names_of_sockets_would_be_too_long_it_lies_elsewhere(
    system: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = system / ("deep" * 9)
    deep.mkdir()
    monkeypatch.setenv("TMPDIR", str(deep))
    ours = Scratch()
    assert ours.path.parent == Path("/tmp") and tempfile.gettempdir() == str(ours.path)
    ours.remove()
    assert not ours.path.exists()


def test_another_users_and_foreign_folders_are_left_alone(system: Path) -> None:
    (system / "tutelage-notes").mkdir()
    (system / "tutelage-notes" / "in_use.txt").touch()
    (system / "tutelage-outlived" / "r" / "session").mkdir(parents=True)
    Scratch().remove()
    assert (system / "tutelage-notes" / "in_use.txt").exists()
    assert not (system / "tutelage-outlived").exists()
