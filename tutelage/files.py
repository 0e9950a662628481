"""Files of a run: written so that a reader sees all of one or nothing, and known again by their hashes."""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_whole(path: Path, content: bytes) -> None:
    """Put a file in its place at once, whoever else writes or reads it meanwhile; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text as `write_whole` does, in UTF-8."""
    write_whole(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, as `write_whole` does.

    Raises:
        ValueError: a number in `value` is not finite.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


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
