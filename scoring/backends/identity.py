"""Fingerprints of what computed a score: scores are kept by what computed them, not by what it was called."""

from collections.abc import Iterator
from pathlib import Path

import xxhash

_READ_BYTES = 16 * 2**20


def digest_of(*texts: str) -> str:
    """Tell lists of texts apart: 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    _add(digest, *texts)
    return digest.hexdigest()


def checkpoint_digest(path: str) -> str:
    """Hash config.json and all weights of a checkpoint, names and contents."""
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
