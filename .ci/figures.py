"""Prints what the house holds to, figure by figure, and fails when one exceeds its limit.

A function's length is its lines from `def` to the end of its body, docstring included, decorators not.
A small helper is a function or method of at most three lines, its docstring aside, that is called in one place and
named nowhere else: reading it costs a jump and saves nothing. What is handed on as a value or called through an
actor cannot be inlined and is none, nor is what is decorated or whose name is defined more than once (interfaces).
Usage: figures.py [--verbose] [ROOT]        with --verbose it lists the small helpers even while they are few enough
"""

import argparse
import ast
import math
import re
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("tutelage", "rollout", "scoring", "learner", "diagnostics", "orchestration")
MEASURED = (*PACKAGES, "benchmarks")
FUNCTION_LINES, FILE_LINES, FOLDER_FILES, HELPER_LINES, HELPERS_PER_1000 = 60, 400, 20, 3, 1.5
Function = ast.FunctionDef | ast.AsyncFunctionDef
Documented = ast.Module | ast.ClassDef | Function


@dataclass(frozen=True)
class Source:
    path: Path  # below the root
    nodes: tuple[ast.AST, ...]
    lines: int


@dataclass(frozen=True)
class Figure:
    name: str
    value: float
    limit: float
    offenders: Sequence[str] = ()

    @property
    def exceeded(self) -> bool:
        return self.value > self.limit


def sources(root: Path, *folders: str) -> list[Source]:
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return [
        Source(path.relative_to(root), tuple(ast.walk(ast.parse(text, str(path)))), len(text.splitlines()))
        for path, text in texts.items()
    ]


def nodes(read: Sequence[Source], kind: type | tuple[type, ...]) -> Iterator[tuple[str, ast.AST]]:
    """Yield where each node of a kind stands, as file:line, and the node."""
    for source in read:
        for node in source.nodes:
            if isinstance(node, kind):
                yield f"{source.path}:{getattr(node, 'lineno', 1)}", node


def counted(name: str, offenders: Sequence[str]) -> Figure:
    return Figure(name, len(offenders), 0, offenders)


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def contracts(root: Path) -> Figure:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True)
    broken = [line.strip() for line in run.stdout.splitlines() if re.search(r" BROKEN\b", line)]
    if run.returncode and not broken:
        raise RuntimeError(f"lint-imports failed\n{run.stdout}\n{run.stderr}")
    return counted("import contracts broken", broken)


def classes_twice(packages: Sequence[Source]) -> Figure:
    places = defaultdict(list)
    for place, node in nodes(packages, ast.ClassDef):
        places[node.name].append(place)
    twice = [f"{', '.join(where)}: {name}" for name, where in places.items() if len(where) > 1]
    return counted("class names defined twice", twice)


def full_folders(read: Sequence[Source]) -> Figure:
    files = Counter(source.path.parent for source in read)
    full = [f"{folder}: {count} files" for folder, count in files.items() if count > FOLDER_FILES]
    return counted(f"folders of more than {FOLDER_FILES} files", full)


def small_helpers(packages: Sequence[Source], users: Sequence[Source]) -> Figure:
    named = Counter(_name(node) for _, node in nodes(users, (ast.Name, ast.Attribute)))
    called = Counter(_name(node.func) for _, node in nodes(users, ast.Call))
    defined = Counter(node.name for _, node in nodes(packages, Function))
    offenders = [
        f"{source.path}:{function.lineno}: {function.name}"
        for source in packages
        for parent in source.nodes
        if isinstance(parent, ast.Module | ast.ClassDef)
        for function in parent.body
        if isinstance(function, Function) and _is_small(function)
        if named[function.name] == called[function.name] == defined[function.name] == 1
    ]
    share = 1000 * len(offenders) / max(sum(source.lines for source in packages), 1)
    return Figure(f"one-caller helpers <= {HELPER_LINES} lines, per 1,000 lines", share, HELPERS_PER_1000, offenders)


def _name(node: ast.AST) -> str:
    return getattr(node, "id", None) or getattr(node, "attr", "")


def _is_small(function: Function) -> bool:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if function.decorator_list or function.name.startswith("__") or not body:
        return False
    return (function.end_lineno or 0) - body[0].lineno < HELPER_LINES


def docstrings_of(read: Sequence[Source]) -> Figure:
    return counted(
        'docstrings that begin with "Of"',
        [
            f"{place}: {getattr(node, 'name', 'module')}"
            for place, node in nodes(read, Documented)
            if re.match(r"Of\b", ast.get_docstring(node) or "")
        ],
    )


def long_functions(read: Sequence[Source]) -> Figure:
    return counted(
        f"functions of more than {FUNCTION_LINES} lines",
        [
            f"{place}: {node.name} has {length(node)}"
            for place, node in nodes(read, Function)
            if length(node) > FUNCTION_LINES
        ],
    )


def not_annotated(read: Sequence[Source]) -> Figure:
    return counted(
        "functions not annotated",
        [f"{place}: {node.name}" for place, node in nodes(read, Function) if not _is_annotated(node)],
    )


def _is_annotated(function: Function) -> bool:
    given = function.args
    several = [argument for argument in (given.vararg, given.kwarg) if argument is not None]
    arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs, *several]
    if arguments and arguments[0].arg in ("self", "cls"):
        arguments = arguments[1:]
    return function.returns is not None and all(argument.annotation is not None for argument in arguments)


def long_files(read: Sequence[Source]) -> Figure:
    return counted(
        f"files of more than {FILE_LINES} lines",
        [f"{source.path}: {source.lines}" for source in read if source.lines > FILE_LINES],
    )


def imported_tests(read: Sequence[Source]) -> Figure:
    """Imports of test modules: what several tests need lies in factories, in a conftest.py or beside them."""
    offenders = []
    for place, node in nodes(read, (ast.Import, ast.ImportFrom)):
        base = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        modules = [f"{base}.{alias.name}" for alias in node.names]
        offenders += [f"{place}: {name}" for name in modules if re.search(r"(^|\.)tests\.(.*\.)?test_\w+", name)]
    return counted("imports of test modules", offenders)


def figures(root: Path) -> list[Figure]:
    packages, benchmarks, tests = sources(root, *PACKAGES), sources(root, "benchmarks"), sources(root, "tests")
    ours = [*packages, *benchmarks]
    return [
        classes_twice(packages),
        full_folders([*ours, *tests]),
        small_helpers(packages, ours),
        docstrings_of([*ours, *tests]),
        long_functions(ours),
        not_annotated([*ours, *tests]),
        long_files([*ours, *tests]),
        imported_tests([*ours, *tests]),
    ]


def percentile(values: list[int], share: float) -> int:
    """The smallest value that at least `share` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def print_sizes(root: Path) -> None:
    print(f"{'package':<16}{'files':>7}{'lines':>8}{'functions':>11}{'median':>8}{'p90':>6}{'max':>6}")
    for folder in MEASURED:
        read = sources(root, folder)
        lengths = [length(node) for _, node in nodes(read, Function)]
        if lengths:
            lines, median, p90 = (
                sum(source.lines for source in read),
                statistics.median(lengths),
                percentile(lengths, 0.9),
            )
            print(f"{folder:<16}{len(read):>7}{lines:>8}{len(lengths):>11}{median:>8g}{p90:>6}{max(lengths):>6}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    print_sizes(options.root)
    measured = [contracts(options.root), *figures(options.root)]
    print(f"\n{'figure':<56}{'now':>6}{'limit':>7}")
    for figure in measured:
        print(f"{figure.name:<56}{figure.value:>6.3g}{figure.limit:>7g}")
    for figure in measured:
        if figure.exceeded or options.verbose:
            print("".join(f"\n{offender} ({figure.name})" for offender in figure.offenders), end="")
    print()
    return int(any(figure.exceeded for figure in measured))


if __name__ == "__main__":
    sys.exit(main())
