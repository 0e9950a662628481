"""Writing files so that a reader sees the whole file or none of it."""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any


def hashes_of(directory: Path, but: str) -> dict[str, str]:
    """SHA-256 of every file below a directory, by its path in it; `but` names the one that holds the hashes."""
    files = sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / but)
    return {str(path.relative_to(directory)): _sha256(path) for path in files}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that nobody ever sees half of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(partial, path)
    except OSError:
        Path(partial).unlink(missing_ok=True)
        raise
