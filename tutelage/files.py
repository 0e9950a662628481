"""Files of a run: written so that a reader sees all of one or nothing, and known again by their hashes."""

import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", f"os error {errno.ENOSPC}")  # of other languages
_SEAL = "sha256"  # in an object, of all else in it
_NOTHING_LEFT = 2**20  # bytes; what is written last may have been taken away again


def write_whole(path: Path, content: bytes, durable: bool = True) -> None:
    """Put a file in its place at once, whoever else writes or reads it meanwhile; its folder is made if need be.

    Args:
        durable: it is on disk when this returns, whatever happens to the machine then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(content)
        if durable:
            sync(partial)
        os.replace(partial, path)
        if durable:
            sync(path.parent)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Have the content of a file, or the names in a folder, on disk before anything that counts on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: Path) -> None:
    """Have everything below a folder on disk, and the folder itself."""
    for path in sorted(folder.rglob("*"), reverse=True):  # what a folder names before the folder
        sync(path)
    sync(folder)


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_whole` does, in UTF-8; halves of characters, which it does not have, as escapes."""
    write_whole(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, as `write_whole` does.

    Raises:
        ValueError: a number in `value` is not finite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object as `write_json` does, with a digest of it, for `read_sealed`."""
    write_json(path, {_SEAL: _digest(value), **value})


def read_sealed(path: Path) -> tuple[dict[str, Any], bool] | None:
    """Read what `write_sealed` wrote, and whether it has a digest: older versions wrote none.

    None where it is missing, cut short or altered, even by one bit.
    """
    try:
        value = json.loads(path.read_bytes())
        seal = value.pop(_SEAL, None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    if not isinstance(value, dict) or (seal is not None and seal != _digest(value)):
        return None
    return value, seal is not None


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hash a file with SHA-256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_of(folder: Path, but: str | None = None) -> dict[str, str]:
    """Hash every file below a folder, by its path in it; `but` names one that is left out."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in files}
    return {name: sha256(path) for name, path in names.items() if name != but}


def differences(expected: Mapping[str, str], actual: Mapping[str, str]) -> list[str]:
    """Name the files that are missing, new or altered, by their hashes; none where all is as expected."""
    problems = [f"{name} is missing" for name in expected.keys() - actual.keys()]
    problems += [f"{name} was added" for name in actual.keys() - expected.keys()]
    problems += [f"{name} was altered" for name in expected.keys() & actual.keys() if expected[name] != actual[name]]
    return sorted(problems)


def full_disk(path: Path, error: Exception) -> str | None:
    """Say which file system is full where that is what an error means; None: it means something else.

    Args:
        path: that was being written, there or not.
        error: whatever was raised, in this process or as another one has worded it.
    """
    folder = next((parent for parent in (path, *path.absolute().parents) if parent.exists()), Path("/"))
    free = shutil.disk_usage(folder).free
    said = getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_WORDS)
    if not said and free > _NOTHING_LEFT:
        return None
    mount = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if os.path.ismount(parent))
    return (
        f"no space left on the file system {mount}, where {path} was being written ({free / 2**20:.1f} MiB are free); "
        "make room there, or choose another with output_root, run_dir, scoring.cache_dir, TMPDIR or HF_HOME"
    )


def explained(error: OSError) -> str:
    """Say which path an operation on files failed for, why, and what to set."""
    path = None if error.filename is None else Path(os.fsdecode(error.filename))
    full = full_disk(path or Path(tempfile.gettempdir()), error) if error.errno in _FULL else None
    if full is not None or error.errno is None:
        return full or str(error)  # an error without a number is one that was worded for people
    if path is None:
        return f"{error.strerror}; see that HOME, TMPDIR and output_root are folders that can be written"
    return f"{path}: {error.strerror}; {_advice(path)}"


def _advice(path: Path) -> str:
    """What decides where a path lies."""
    home = Path(os.environ.get("HOME", "/"))
    if path.is_relative_to(os.environ.get("TMPDIR", "/tmp")):  # what was asked for, not what could be had instead
        return "set TMPDIR to a folder that can be written"
    if home != Path("/") and path.is_relative_to(home):
        return "set output_root, run_dir, or for caches HF_HOME and TUTELAGE_CACHE to folders that can be written"
    return "set output_root, run_dir, or whatever names this path to one that can be read and written"
