"""Tables as the templates show them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostics.report.figures import describe, figure, interval, is_interval

SHOWN_ROWS = 200


@dataclass(frozen=True)
class Cell:
    """One field of a table."""

    text: str
    number: bool = False
    kind: str = ""  # a class of the style sheet
    note: str = ""
    href: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def is_right(self, column: int) -> bool:
        """Whether what the column holds is written to the right."""
        return any(row[column].number or row[column].kind == "context" for row in self.rows)

    @property
    def left_out(self) -> int:
        return max(0, len(self.rows) - SHOWN_ROWS)

    @property
    def shown(self) -> Sequence[Sequence[Cell]]:
        return self.rows[:SHOWN_ROWS]


def of_value(value: Any) -> Cell:
    """Write a value into a cell, numbers to the right."""
    if value is None or is_interval(value):
        return Cell(interval(value), number=True)
    if isinstance(value, bool):
        return Cell("yes" if value else "no")
    if isinstance(value, int):
        return Cell(str(value).replace("-", "−"), number=True)
    return Cell(figure(value), number=True) if isinstance(value, float) else Cell(str(value))


def of_statistics(title: str, groups: Mapping[str, Mapping[str, Any]], explained: bool = False) -> Table:
    """One row a statistic, one column a group."""
    names = dict.fromkeys(name for statistics in groups.values() for name in statistics)
    rows = []
    for name in names:
        known = describe(name)
        unit = f" ({known.unit})" if known.unit else ""
        rows.append(
            [
                Cell(known.label + unit, note=known.reading if explained else ""),
                *(of_value(statistics.get(name)) for statistics in groups.values()),
            ]
        )
    return Table(title, ["", *groups], rows)


def of_groups(title: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row a group, one column a statistic."""
    names = list(dict.fromkeys(name for statistics in groups.values() for name in statistics))
    rows = [[Cell(group), *(of_value(statistics.get(name)) for name in names)] for group, statistics in groups.items()]
    return Table(title, ["", *(describe(name).label for name in names)], rows)


def of_buckets(title: str, by_position: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """One row a bucket of positions, one column a statistic."""
    groups: dict[str, dict[str, Any]] = {}
    for name, buckets in by_position.items():
        for bucket in buckets:
            groups.setdefault(span(bucket["from"], bucket["to"]), {})[name] = bucket
    table = of_groups(title, groups)
    return Table(title, ["tokens", *table.columns[1:]], table.rows)


def span(start: float, stop: float) -> str:
    """Write the tokens from `start` to before `stop`, counted from 1, both ends in it."""
    first, last = int(start) + 1, int(stop)
    return str(first) if last <= first else f"{first}–{last}"


def of_records(title: str, records: Iterable[Any]) -> Table | None:
    """Whatever a list of mappings holds, one column a key; None if it is something else."""
    rows = list(records)
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[of_value(row.get(name)) for name in names] for row in rows]
    return Table(title, [name.replace("_", " ") for name in names], cells)


def with_intervals(record: Any) -> Any:
    """A row whose "x", "x_low" and "x_high" are one interval x."""
    if not isinstance(record, Mapping):
        return record
    ends = {name for name in record if f"{name}_low" in record and f"{name}_high" in record}
    parts = {f"{name}_{end}" for name in ends for end in ("low", "high")}
    return {
        name: {"mean": value, "low": record[f"{name}_low"], "high": record[f"{name}_high"]} if name in ends else value
        for name, value in record.items()
        if name not in parts
    }
