"""Per-token arrays of records: declared once, on the field that holds one.

    entropy: NDArray[np.float32] | None = field(default=None, metadata=per_token(np.float32, filler=np.nan))

Whatever handles arrays follows from the declarations and names no field: spreading over a loss mask, packing into
micro-batches, keeping on disk, moving to a device.

Shape suffixes: T tokens of a response, M of those that somebody spoke of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DECLARATION = "per-token array"


@dataclass(frozen=True)
class PerToken:
    """The declaration of an array [T] or [T, columns] whose row t is about token t."""

    dtype: np.dtype[Any]
    filler: float  # stands at tokens of which nothing is known; of bools False
    columns: bool = False  # a second dimension: ids, their log-probs, or a state
    always: bool = False  # packed even for examples without it, as fillers; otherwise all examples of a batch have it
    source: str = ""  # what asks for it, for messages
    asked: Callable[[Any], tuple[int, ...] | None] | None = None  # shape of a row that answers a request; None: no part

    def learner_name(self, name: str) -> str:
        """Name in the learner, where several models' arrays meet: "teacher_" before that of what a teacher answers."""
        return name if self.asked is None else f"teacher_{name}"

    @property
    def packed_dtype(self) -> np.dtype[Any]:
        """Ids and numbers index tensors in the learner, so they are int64 there."""
        return np.dtype(np.int64) if self.dtype.kind == "i" else self.dtype

    def no_rows(self) -> NDArray[Any]:
        """[0] or [0, 1], as it would be packed."""
        return np.empty((0, 1) if self.columns else 0, self.packed_dtype)

    def join(self, arrays: Sequence[NDArray[Any] | None], lengths: Sequence[int]) -> NDArray[Any] | None:
        """The arrays of several responses end to end; None where no response has one and it may be missing.

        Raises:
            ValueError: only some have it, or of several widths.
        """
        if self.always:
            parts = [np.full(n, self.filler) if a is None else a for a, n in zip(arrays, lengths, strict=True)]
        else:
            parts = [array for array in arrays if array is not None]
        if not parts:
            return None
        if len(parts) != len(arrays) or len({part.shape[1:] for part in parts}) != 1:
            raise ValueError("the examples of a batch must all have it, with one width")
        return np.concatenate(parts).astype(self.packed_dtype)


def per_token(
    dtype: type[np.generic],
    filler: float = 0,
    *,
    columns: bool = False,
    always: bool = False,
    source: str = "",
    asked: Callable[[Any], tuple[int, ...] | None] | None = None,
) -> dict[str, PerToken]:
    """Metadata that declare a record's field to be a per-token array; the arguments are those of `PerToken`."""
    return {_DECLARATION: PerToken(np.dtype(dtype), filler, columns, always, source, asked)}


def declared(record: type) -> dict[str, PerToken]:
    """The per-token arrays of a record by the names of their fields, in order."""
    return {item.name: item.metadata[_DECLARATION] for item in fields(record) if _DECLARATION in item.metadata}


def spread(rows: NDArray[Any], mask: NDArray[np.bool_], filler: float) -> NDArray[Any]:
    """[T, …] from the rows [M, …] of the tokens where `mask` [T] is True, with `filler` at the others."""
    everywhere = np.full((len(mask), *rows.shape[1:]), filler, dtype=rows.dtype)
    everywhere[mask] = rows
    return everywhere
