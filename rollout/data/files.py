"""Rows of files, each cell as the file has it: no number, date or text is turned into another on the way.

.jsonl .json .csv .tsv (also .gz) ─► lines, in UTF-8 ─┐
                                                      ├─► rows: text, true, false, null, lists, objects, literals
.parquet, saved datasets ─► Arrow columns ────────────┘
"""

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED = ".gz"
MOST_BYTES = 64 * 2**20  # of a line or a cell
_MOST_WHOLE = 2**30  # bytes of a JSON file that is one list, which has to be read at once
_LFS = b"version https://git-lfs"
_GZIP = b"\x1f\x8b"
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@dataclass(frozen=True)
class Literal:
    """A value that is no text in its file, as it is written there."""

    text: str
    kind: str  # "number", or the name of an Arrow type
    exact: bool = True  # False: a float so large that the file may have lost its last digits


@dataclass(frozen=True)
class Row:
    place: str  # for messages: "row 3 (line 4)"
    cells: Mapping[str, Any]  # text, bool, None, bytes, Literal, and lists and dicts of these


class FileFault(ValueError):
    """A file that cannot be read, from where it cannot."""

    def __init__(self, place: str, cause: str) -> None:
        super().__init__(f"{place}: {cause}" if place else cause)
        self.place, self.cause = place, cause


def format_of(name: str) -> str | None:
    """Return the suffix that says how a file is read; None if it is of no format that is."""
    stem = name.lower()
    suffix = Path(stem.removesuffix(COMPRESSED)).suffix
    readable = suffix in FORMATS and not (suffix == ".parquet" and stem.endswith(COMPRESSED))
    return suffix if readable else None


def read_rows(path: Path, name: str) -> Iterator[Row]:
    """Read a file row by row.

    Args:
        name: the file's own, where `path` is a copy of it under another one.

    Raises:
        FileFault: it is damaged, or a row is longer than `MOST_BYTES`.
    """
    with path.open("rb") as file:
        start = file.read(len(_LFS))
    if start == _LFS:
        raise FileFault("", "is a git-LFS pointer and not the data; fetch it with git lfs pull")
    suffix = format_of(name)
    if suffix == ".parquet":
        return _parquet_rows(path)
    if suffix in (".csv", ".tsv"):
        return _csv_rows(path, "\t" if suffix == ".tsv" else ",")
    return _json_rows(path)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1."""
    number = 0
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP
        with gzip.open(path) if compressed else path.open("rb") as file:
            while line := file.readline(MOST_BYTES + 1):
                number += 1
                if len(line) > MOST_BYTES:
                    raise FileFault(f"line {number}", f"is longer than {MOST_BYTES // 2**20} MiB")
                yield number, _decoded(line, number)
    except (OSError, EOFError, zlib.error) as error:
        raise FileFault(f"line {number + 1}", f"cannot be read: {error}") from error


def _decoded(line: bytes, number: int) -> str:
    if number == 1:
        encoding = _BOMS.get(line[:2])
        if encoding is not None:
            raise FileFault("", f"is in {encoding}; save it in UTF-8 (iconv -f {encoding} -t UTF-8)")
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        cause = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8; save the file in UTF-8"
        raise FileFault(f"line {number}", f"{cause} (iconv -f LATIN1 -t UTF-8, if it is in Latin-1)") from error
    if "\0" in text:
        raise FileFault(f"line {number}", "has a NUL character: the file is damaged, or not in UTF-8")
    return text


# ---- JSON ------------------------------------------------------------------------------------------------------


def _json_rows(path: Path) -> Iterator[Row]:
    """An object a line, or one list of objects."""
    index = 0
    lines = _lines(path)
    for number, line in lines:
        if not line.strip():
            continue
        if not index and line.lstrip().startswith("["):
            yield from _list_rows(line, lines, number)
            return
        place = f"row {index} (line {number})"
        yield Row(place, _object(_parsed(line, place), place))
        index += 1


def _list_rows(first: str, lines: Iterator[tuple[int, str]], number: int) -> Iterator[Row]:
    parts, size = ["\n" * (number - 1), first], len(first)  # so that an error has its line
    for _, line in lines:
        parts.append(line)
        size += len(line)
        if size > _MOST_WHOLE:
            raise FileFault("", f"is one JSON list of more than {_MOST_WHOLE // 2**30} GiB; write an object a line")
    for index, item in enumerate(_parsed("".join(parts), "")):
        yield Row(f"row {index}", _object(item, f"row {index}"))


def _parsed(text: str, place: str) -> Any:
    def number(token: str) -> Literal:
        return Literal(token, "number")

    try:
        return json.loads(
            text, parse_int=number, parse_float=number, parse_constant=number, object_pairs_hook=_without_twins
        )
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if place else f"line {error.lineno}, column {error.colno}"
        wanted = "no JSON object on one line" if place else "no JSON"
        raise FileFault(place, f"is {wanted}: {error.msg} ({at})") from error
    except RecursionError as error:
        raise FileFault(place, "is nested too deeply") from error
    except ValueError as error:
        raise FileFault(place, str(error)) from error


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"has {name!r} more than once; leave one")
    return cells


def _object(item: Any, place: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise FileFault(place, f'{str(item)[:80]!r} is no row; give an object, as {{"prompt": …}}')
    return item


# ---- CSV -------------------------------------------------------------------------------------------------------


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Cells are text; an empty one is null."""
    csv.field_size_limit(MOST_BYTES)
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] = []
    index = 0
    try:
        for cells in reader:
            place = f"row {index} (line {reader.line_num})"
            if not cells:
                continue
            if not header:
                header = cells
                _check_header(header)
                continue
            if len(cells) != len(header):
                cause = f"has {len(cells)} cells and the header {len(header)}"
                raise FileFault(place, f"{cause}; put cells with {delimiter!r} or line ends into double quotes")
            yield Row(place, {name: cell or None for name, cell in zip(header, cells, strict=True)})
            index += 1
    except csv.Error as error:
        raise FileFault(f"row {index} (line {reader.line_num})", f"is no CSV: {error}") from error


def _check_header(names: Sequence[str]) -> None:
    twins = [name for name, count in Counter(names).items() if count > 1]
    if twins:
        raise FileFault("", f"has column {twins[0]!r} more than once; rename one")


# ---- Arrow -----------------------------------------------------------------------------------------------------


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        file = pq.ParquetFile(path)
        _check_header(file.schema_arrow.names)
        yield from arrow_rows(file.iter_batches(batch_size=1024))
    except (pa.ArrowException, OSError) as error:
        raise FileFault("", f"cannot be read as Parquet: {error}") from error


def arrow_rows(batches: Iterable[pa.RecordBatch | pa.Table]) -> Iterator[Row]:
    """Rows of Arrow tables, numbered through."""
    index = 0
    for batch in batches:
        columns = [_values(column) for column in batch.columns]
        for number in range(batch.num_rows):
            cells = {name: column[number] for name, column in zip(batch.schema.names, columns, strict=True)}
            yield Row(f"row {index}", cells)
            index += 1


def _values(column: Any) -> list[Any]:
    """Values of an Arrow array, as the file has them."""
    if isinstance(column, pa.ChunkedArray):
        return [value for chunk in column.chunks for value in _values(chunk)]
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _values(column.storage)
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode())
    if pa.types.is_floating(kind):
        return [_float(scalar.as_py(), kind) for scalar in column]
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return [None if value is None else Literal(format(value, "f" if pa.types.is_decimal(kind) else "d"), str(kind))
                for value in column.to_pylist()]  # fmt: skip
    if pa.types.is_temporal(kind):
        texts = column.cast(pa.int64()) if pa.types.is_duration(kind) else pc.cast(column, pa.string())
        return [None if text is None else Literal(_without_zeros(str(text)), str(kind)) for text in texts.to_pylist()]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return [_values(scalar.values) if scalar.is_valid else None for scalar in column]
    if pa.types.is_struct(kind):
        fields = [_values(field) for field in column.flatten()]
        names = [field.name for field in kind]
        return [
            {name: field[number] for name, field in zip(names, fields, strict=True)} if valid else None
            for number, valid in enumerate(column.is_valid().to_pylist())
        ]
    return list(column.to_pylist())


def _float(value: float | None, kind: pa.DataType) -> Literal | None:
    """A float in the fewest digits that mean it; whole ones without a point, as integers with gaps become floats."""
    if value is None or np.isnan(value):
        return None
    number = np.dtype(kind.to_pandas_dtype()).type(value)
    if not np.isfinite(number) or number != np.trunc(number):
        return Literal(str(number), str(kind))
    exact = abs(float(number)) < 2.0 ** (np.finfo(number.dtype).nmant + 1)
    return Literal(f"{float(number) + 0.0:.0f}", str(kind), exact)


def _without_zeros(time: str) -> str:
    """A time without a fraction of a second that is 0."""
    before, point, fraction = time.partition(".")
    return before if point and not fraction.strip("0") else time
