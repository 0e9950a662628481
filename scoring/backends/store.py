"""Teacher signals on disk: one safetensors file for each request, found by the content of what was asked.

    <cache_dir>/<teacher's identity>/teacher.json            who that is, for people
                                     lm_head.safetensors     once hidden states are kept, without which they say nothing
                                     3f/3fa9….safetensors    the scores of one response, and its request's SHA-256

Files are written beside their place and renamed there, so several workers and runs may share a directory; of two that
write the same scores the later one stays. What is read is checked against digests in the file itself.

Shape suffixes: V vocabulary, d hidden size.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tutelage.files import write_whole
from tutelage.lm.head import LMHead, LogitTransform
from tutelage.records.signal import ScoringRequest, TeacherSignal

FORMAT = "tutelage marks 1"  # as the first files say it: a new word would make them unreadable
_HEAD, _ABOUT = "lm_head.safetensors", "teacher.json"
_READ_BYTES = 16 * 2**20  # of a checkpoint at a time
Array = NDArray[Any]


class Unreadable(ValueError):
    """A file that is not what its name says; the message says why."""


@dataclass(frozen=True)
class Coverage:
    """How much was asked about the tokens of a response."""

    top_k: int
    entropy: bool
    hidden_states: bool

    @classmethod
    def of(cls, request: ScoringRequest) -> "Coverage":
        return cls(request.top_k, request.entropy, request.hidden_states)

    def covers(self, other: "Coverage") -> bool:
        """Whether what was asked answers the other as well."""
        return self | other == self

    def __or__(self, other: "Coverage") -> "Coverage":
        """What answers both."""
        return Coverage(
            top_k=max(self.top_k, other.top_k),
            entropy=self.entropy or other.entropy,
            hidden_states=self.hidden_states or other.hidden_states,
        )


@dataclass(frozen=True)
class CacheEntry:
    extent: Coverage
    signal: TeacherSignal | None  # the answer to the request, bit for bit as it was given, where the extent covers it


class SignalStore:
    """What is kept of one teacher."""

    def __init__(self, cache_dir: str, identity: str) -> None:
        self.identity = identity
        self.folder = Path(cache_dir).expanduser() / identity

    def find(self, request: ScoringRequest) -> CacheEntry | None:
        """What is kept about this response and its support; None: nothing.

        Raises:
            Unreadable: the file there is damaged or not ours.
        """
        try:
            with self._opened(request) as file:
                extent = Coverage(**json.loads(file.metadata()["extent"]))
                if not extent.covers(Coverage.of(request)):
                    return CacheEntry(extent, None)
                return CacheEntry(extent, TeacherSignal.answering(request, partial(_checked, file)))
        except FileNotFoundError:
            return None

    def keep(self, request: ScoringRequest, signal: TeacherSignal) -> None:
        """Keep what was said; the signal must be the answer to the request.

        Raises:
            OSError: the directory cannot be written to.
        """
        kept = {name: rows for name, rows in signal.arrays.items() if name in request.row_shapes}
        about = {"request": _digest(request, hashlib.sha256()), "extent": json.dumps(asdict(Coverage.of(request)))}
        self._write(self.path(request), kept, about)

    def path(self, request: ScoringRequest) -> Path:
        name = _digest(request, xxhash.xxh3_128())
        return self.folder / name[:2] / f"{name}.safetensors"

    # What is kept of the teacher itself

    def keep_about(self, about: Mapping[str, object]) -> None:
        """Who the teacher is."""
        write_whole(self.folder / _ABOUT, (json.dumps({"format": FORMAT, **about}, indent=2) + "\n").encode())

    def about(self) -> dict[str, Any] | None:
        """What `keep_about` kept; None: nothing is kept of this teacher.

        Raises:
            Unreadable: the file there is damaged, or of another format.
        """
        path = self.folder / _ABOUT
        if not path.is_file():
            return None
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            if about["format"] == FORMAT:
                return about
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise Unreadable(f"{path}: {error!r}; delete its folder, and its scores are computed anew") from error
        raise Unreadable(f"{path}: its format is {about['format']!r}, not {FORMAT!r}; delete its folder")

    @property
    def has_head(self) -> bool:
        return (self.folder / _HEAD).is_file()

    def keep_head(self, head: LMHead) -> None:
        arrays = {"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias})
        self._write(self.folder / _HEAD, arrays, {"transform": json.dumps(asdict(head.transform))})

    def head(self) -> LMHead:
        """
        Raises:
            Unreadable: the file there is damaged or not ours.
        """
        with self._verified(self.folder / _HEAD) as file:
            transform = LogitTransform(**json.loads(file.metadata()["transform"]))
            bias = _checked(file, "bias") if "bias" in file.keys() else None  # noqa: SIM118, the file is no mapping
            return LMHead(_checked(file, "weight"), bias, transform)

    def _write(self, path: Path, arrays: Mapping[str, Array], about: Mapping[str, str]) -> None:
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        digests = {f"digest of {name}": _array_digest(array) for name, array in whole.items()}
        content = save(whole, {"format": FORMAT, "teacher": self.identity, **about, **digests})
        write_whole(path, content, durable=False)  # what is lost or damaged is computed anew

    @contextmanager
    def _opened(self, request: ScoringRequest) -> Iterator[Any]:
        with self._verified(self.path(request)) as file:
            if file.metadata().get("request") != _digest(request, hashlib.sha256()):
                raise Unreadable("it holds the answer to another request")
            yield file

    @contextmanager
    def _verified(self, path: Path) -> Iterator[Any]:
        """An open file of this teacher in this format; what goes wrong while it is read is the file's fault."""
        try:
            with safe_open(path, framework="numpy") as file:
                about = file.metadata() or {}
                for name, expected in (("format", FORMAT), ("teacher", self.identity)):
                    if about.get(name) != expected:
                        raise Unreadable(f"its {name} is {about.get(name)!r}, not {expected!r}")
                yield file
        except Unreadable as error:
            raise Unreadable(f"{path}: {error}") from None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise Unreadable(f"{path}: {error!r}") from error


def _checked(file: Any, name: str) -> Array:
    array = file.get_tensor(name)
    if file.metadata().get(f"digest of {name}") != _array_digest(array):
        raise Unreadable(f"the bytes of {name} are not those that were written")
    return array


def _array_digest(array: Array) -> str:
    return xxhash.xxh3_128_hexdigest(f"{array.dtype} {array.shape} ".encode() + array.tobytes())


def _digest(request: ScoringRequest, digest: Any) -> str:
    """Hash what the scores depend on, each part with its shape; a mask that scores all is no mask."""
    scored_mask = np.ones(len(request.response_ids), np.bool_) if request.scored_mask is None else request.scored_mask
    support = np.empty((0, 0), np.int32) if request.support_ids is None else request.support_ids
    arrays = [request.prompt_ids, request.response_ids, scored_mask, support]
    if request.stops is not None:
        arrays.append(np.array(request.stops.ids))
    for array in arrays:
        kind = np.bool_ if array.dtype == np.bool_ else np.int64
        digest.update(np.array([array.ndim, *array.shape], np.int64).tobytes())
        digest.update(array.astype(kind).tobytes())
    return str(digest.hexdigest())


# Who computed it: scores are kept by what computed them, not by what it was called


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
        with file.open("rb") as stream:
            while piece := stream.read(_READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def _add(digest: xxhash.xxh3_128, *texts: str) -> None:
    """Each with its length, so that no two lists of texts look alike."""
    for text in texts:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
