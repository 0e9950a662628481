"""Prints how long the functions of each package are and fails when one has more than 60 lines.

A function's length is its lines from `def` to the end of its body, docstring included, decorators not;
a function inside a function counts for itself and for the one around it.
Usage: function_lengths.py FOLDER...
"""

import ast
import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

LIMIT = 60
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Measured:
    name: str
    path: Path
    line: int
    lines: int


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def functions(folder: Path) -> Iterator[Measured]:
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), filename=str(path))):
            if isinstance(node, Function):
                yield Measured(node.name, path, node.lineno, length(node))


def percentile(values: list[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main(folders: list[str]) -> int:
    measured = {folder: list(functions(Path(folder))) for folder in folders}
    print(f"{'package':<16}{'functions':>10}{'median':>8}{'p90':>6}{'max':>6}")
    for folder, found in measured.items():
        if found:
            lines = [function.lines for function in found]
            median, p90 = statistics.median(lines), percentile(lines, 0.9)
            print(f"{folder:<16}{len(lines):>10}{median:>8g}{p90:>6}{max(lines):>6}")
    long = [function for found in measured.values() for function in found if function.lines > LIMIT]
    for function in long:
        print(f"{function.path}:{function.line}: {function.name} has {function.lines} lines, the limit is {LIMIT}")
    return 1 if long else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
