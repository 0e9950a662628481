"""The map in docs/architecture.md names every source file, with what its own docstring says of it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("tutelage", "rollout", "scoring", "learner", "diagnostics", "orchestration")
GUIDE = ROOT / "docs" / "architecture.md"


def expected() -> list[str]:
    """A line for each folder and each file, in the order of the map."""
    lines = []
    for room in ROOMS:
        for package in sorted((ROOT / room).rglob("__init__.py")):
            lines.append(f"| **`{package.parent.relative_to(ROOT)}/`** | {summary(package)} |")
            files = sorted(package.parent.glob("*.py"))
            lines += [f"| `{path.name}` | {summary(path)} |" for path in files if path != package]
    return lines


def summary(path: Path) -> str:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def test_the_map_is_that_of_the_files() -> None:
    text = GUIDE.read_text(encoding="utf-8")
    table = text[text.index("## The map") :]
    there = [line for line in table.splitlines() if line.startswith("| ") and "`" in line]
    assert there == expected()
