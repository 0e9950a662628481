"""Buffers that processes of one node share."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tutelage.weights import DIRECTORY, PREFIX, SharedBuffer

WRITER = """
import sys
from pathlib import Path
from tutelage.weights import SharedBuffer
SharedBuffer.open(Path(sys.argv[1]), 64).data[7] = 42
"""


def test_another_process_writes_what_we_read() -> None:
    buffer = SharedBuffer.create(64)
    subprocess.run([sys.executable, "-c", WRITER, str(buffer.path)], check=True)
    assert buffer.data[7] == 42
    buffer.unlink()


def test_the_memory_outlives_the_name() -> None:
    buffer = SharedBuffer.create(64)
    reader = SharedBuffer.open(buffer.path, 64)
    buffer.unlink()
    buffer.unlink()
    buffer.data[0] = 3
    assert reader.data[0] == 3
    assert not buffer.path.exists()


def test_only_this_user_may_open_it() -> None:
    buffer = SharedBuffer.create(64)
    status = os.stat(buffer.path)
    buffer.unlink()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert status.st_uid == os.getuid()


def test_names_are_not_to_be_guessed() -> None:
    first, second = SharedBuffer.create(64), SharedBuffer.create(64)
    first.unlink()
    second.unlink()
    assert first.path != second.path
    assert len(first.path.name.removeprefix(PREFIX)) == 32


def test_a_full_directory_is_a_clear_error_and_leaves_nothing() -> None:
    with pytest.raises(ValueError, match=r"learner\.weight_bucket_mib"):
        SharedBuffer.create(2**50)
    assert not list(DIRECTORY.glob(f"{PREFIX}*"))


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/shm/other", "/dev/shm/tutelage-x/../y"])
def test_other_files_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a shared buffer"):
        SharedBuffer.open(Path(path), 64)


def test_a_buffer_of_another_node_is_a_clear_error() -> None:
    with pytest.raises(ValueError, match="learner's node"):
        SharedBuffer.open(DIRECTORY / f"{PREFIX}{'0' * 32}", 64)
