"""Per-token arrays of records: declared once, on the field that holds one.

    entropy: NDArray[np.float32] | None = field(default=None, metadata=per_token(np.float32, filler=np.nan))

Whatever handles arrays follows from the declarations and names no field: spreading over a loss mask, packing into
micro-batches, keeping on disk, moving to a device.

The states of a whole vocabulary's teacher are thousands of numbers a token, so the driver passes on where they are
(`StoredRows`), and the learner's rank that needs them fetches them:

    scoring worker ─► object store of its node ──────────► np.asarray, in a rank
                          └─ reference ─► driver ─► batch ─┘

Shape suffixes: T tokens of a response, M of those that somebody spoke of.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import WorkerLost

if TYPE_CHECKING:
    from ray import ObjectRef

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

    def join(self, arrays: Sequence[Any], lengths: Sequence[int]) -> Any:
        """The arrays of several responses end to end; None where no response has one and it may be missing.

        Of `StoredRows` it is `StoredRows`.

        Raises:
            ValueError: only some have it, or of several widths.
        """
        if self.always:
            parts = [np.full(n, self.filler) if a is None else a for a, n in zip(arrays, lengths, strict=True)]
        else:
            parts = [array for array in arrays if array is not None]
        if not parts:
            return None
        stored = [part for part in parts if isinstance(part, StoredRows)]
        if stored and len(stored) == len(arrays):
            return StoredRows.end_to_end(stored)
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


def spread(rows: Any, mask: NDArray[np.bool_], filler: float) -> Any:
    """[T, …] from the rows [M, …] of the tokens where `mask` [T] is True, with `filler` at the others.

    Of `StoredRows` it is `StoredRows`.
    """
    if isinstance(rows, StoredRows):
        return rows.spread(mask, filler)
    everywhere = np.full((len(mask), *rows.shape[1:]), filler, dtype=rows.dtype)
    everywhere[mask] = rows
    return everywhere


@dataclass(frozen=True)
class _Block:
    """Rows about one response: arrays side by side, spread over a mask."""

    parts: "tuple[ObjectRef[Any], ...]"  # [M, columns] each
    rows: int  # M
    mask: NDArray[np.bool_] | None = None  # [T], M of them True; None: the rows are about all tokens
    filler: float = 0.0

    def __len__(self) -> int:
        return self.rows if self.mask is None else len(self.mask)


@dataclass(frozen=True)
class StoredRows:
    """An array [T, columns] in Ray's object store; stands for it wherever its length is enough.

    `np.asarray` fetches it.
    """

    blocks: tuple[_Block, ...]  # end to end

    @classmethod
    def at(cls, reference: "ObjectRef[Any]", rows: int) -> "StoredRows":
        return cls((_Block((reference,), rows),))

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    def spread(self, mask: NDArray[np.bool_], filler: float) -> "StoredRows":
        """As the function `spread`."""
        (block,) = self.blocks
        return StoredRows((replace(block, mask=mask, filler=filler),))

    @staticmethod
    def side_by_side(arrays: Sequence["StoredRows"]) -> "StoredRows":
        """All columns of several arrays about the same tokens."""
        blocks = [block for array in arrays for block in array.blocks]
        return StoredRows((replace(blocks[0], parts=tuple(part for block in blocks for part in block.parts)),))

    @staticmethod
    def end_to_end(arrays: Sequence["StoredRows"]) -> "StoredRows":
        return StoredRows(tuple(block for array in arrays for block in array.blocks))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """
        Raises:
            WorkerLost: a node that held some of it is gone.
        """
        import ray  # processes that grade and engines import the records, and never fetch
        from ray.exceptions import ObjectLostError

        rows = []
        for block in self.blocks:
            try:
                parts = ray.get(list(block.parts))
            except ObjectLostError as error:
                raise WorkerLost("a teacher's states are gone with the node that held them") from error
            beside = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
            rows.append(beside if block.mask is None else spread(beside, block.mask, block.filler))
        whole = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return whole if dtype is None else whole.astype(dtype, copy=False)
