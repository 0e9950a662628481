"""Which teacher said something: scores are kept by what computed them, not by what it was called."""

from collections.abc import Iterator
from pathlib import Path

import xxhash

from scoring.config import ScoringConfig, TeacherBackend, TeacherConfig

_READ_BYTES = 16 * 2**20
_LOCAL_BACKENDS = (TeacherBackend.transformers, TeacherBackend.vllm)


def identity(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> str:
    """Of all that a teacher's scores depend on: 32 hexadecimal digits.

    For a model of the worker's own the checkpoint's contents, who runs it, and in which numbers; for a server its
    address and the name of the model, behind which other weights may come to stand.
    """
    return _identity(teacher.backend, path, teacher, scoring)


def _identity(backend: TeacherBackend, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> str:
    digest = xxhash.xxh3_128()
    if backend is TeacherBackend.server:
        _add(digest, "server", teacher.server.url, teacher.model)
    else:
        settings = backend.value, scoring.dtype.value, teacher.quantization.value
        _add(digest, *settings, checkpoint_digest(path))
    return digest.hexdigest()


def possible_identities(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> list[str]:
    """Of the teachers whose kept scores `teacher.backend=cache` may give out, the likeliest first."""
    backends = (TeacherBackend.server,) if teacher.server.url else _LOCAL_BACKENDS
    return [_identity(backend, path, teacher, scoring) for backend in backends]


def checkpoint_digest(path: str) -> str:
    """xxh3 of config.json and of all weights, names and contents."""
    digest = xxhash.xxh3_128()
    folder = Path(path)
    for file in [folder / "config.json", *sorted(folder.glob("*.safetensors"))]:
        _add(digest, file.name, str(file.stat().st_size))
        for piece in _pieces(file):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(_READ_BYTES):
            yield piece


def _add(digest: xxhash.xxh3_128, *texts: str) -> None:
    """Each with its length, so that no two lists of texts look alike."""
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
