"""One message and an exit code for what users can mend, whatever it was that raised."""

import errno
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from orchestration.cli import explain
from orchestration.config.compose import register_schema
from orchestration.runs.diagnosis import command_line
from tests.factories import message

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("student.model=~/models/a", "~/models/a"),
        ("student.model=/модели/ученик", "/модели/ученик"),
        ("teacher.context={answer}", "{answer}"),
        ("teacher.context=The answer is: {answer}.", "The answer is: {answer}."),
        ('data.system_prompt=say "yes", or no', 'say "yes", or no'),
        ("output_root=/tmp/größe [1]", "/tmp/größe [1]"),
    ],
)
def test_what_has_to_be_quoted_is_shown_quoted(override: str, value: str) -> None:
    """What the message says to write is what works."""
    text = message(override)
    written = shlex.split(text.partition("; write ")[2])
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        node = compose("config", overrides=written)
    for part in override.partition("=")[0].split("."):
        node = node[part]
    assert node == value


def test_a_run_is_named_by_a_key_of_its_own() -> None:
    assert "name=mine" in message("experiment=mine")
    assert "name=a/../b: names a folder" in message("name=a/../b")
    assert "name=" in message("name=''") and "name=/abs" in message("name=/abs")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/somewhere/out"),
            "/somewhere/out: Permission denied; set",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "no space left on the file system"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found"), "TMPDIR"),
        (ConnectionError("no cluster at auto"), "no cluster at auto"),
    ],
)
def test_errors_of_the_system_say_what_to_set(error: OSError, words: str) -> None:
    assert words in explain(error) and "\n" not in explain(error)


def test_a_folder_that_cannot_be_written_is_one_message() -> None:
    command = [sys.executable, "-m", "orchestration.launch", "experiment=lab/compatible", "dry_run=true"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*command, "output_root=/proc/x"], env=environment, capture_output=True, text=True, cwd="/")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: output_root=/proc/x: ")


def test_a_command_to_go_on_with_does_not_go_where_the_diagnosis_is() -> None:
    arguments = ["--config-dir=presets", "experiment=lab/compatible", "run_dir=/tmp/d", "teacher.context='a b'"]
    for program in ("launch", "diagnose"):
        command = shlex.split(command_line(program, arguments))
        assert command[:3] == ["python", "-m", f"orchestration.{program}"]
        assert command[3:] == [arguments[0], arguments[1], arguments[3]]
