"""Write docs/refusals.md: every refusal with its key and its fix, or fail if it is not up to date.

    PYTHONPATH=. python .ci/refusals.py            # writes it
    PYTHONPATH=. python .ci/refusals.py --check

What is listed: the bounds of all fields of the configuration, and from the source of all packages each
`Refusal(key, value, fix)`, the objective's rules, and each ValueError whose message begins with a key.
"""

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_args, get_type_hints

from orchestration.config.schema import RunConfig
from tutelage.settings import Settings

ROOT = Path(__file__).parents[1]
ROOMS = ("tutelage", "rollout", "scoring", "learner", "diagnostics", "orchestration")
PAGE = ROOT / "docs" / "refusals.md"
INTRODUCTION = """# What is refused

Everything that is refused before a run starts, or as soon as it is seen, with the setting that is named and what the
message says to do. `…` stands for what a message fills in: a value, a file, or the name of the one of several
settings that it is about. The page is written from the source by `PYTHONPATH=. python .ci/refusals.py`, and a test
holds it to it.
"""
_KEY = re.compile(r"[a-z_]+(\.[a-z_…]+)*=")  # a message that begins with a setting
Row = tuple[str, str]  # key, fix


def text_of(node: ast.expr | None, names: dict[str, ast.expr]) -> str:
    """A string as far as the source says it: what is filled in is "…", a name is what was last assigned to it."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part, names) for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)) if name in names:
            return text_of(names[name], {k: v for k, v in names.items() if k != name})
        case ast.Name(id=name) if name in names:
            return text_of(names[name], {k: v for k, v in names.items() if k != name})
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left, names) + text_of(right, names)
        case ast.IfExp(body=body, orelse=orelse):
            return f"{text_of(body, names)} / {text_of(orelse, names)}"
        case ast.FormattedValue(value=ast.Call(func=ast.Name(id="teacher_setting"))):
            return "teacher"
        case ast.BoolOp(values=[first, *_]):
            return text_of(first, names)
    return "…"


class Reader(ast.NodeVisitor):
    """Collects the rows of one file."""

    def __init__(self, constants: dict[str, ast.expr]) -> None:
        self.rows: list[Row] = []
        self._names = dict(constants)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        defaults = zip(reversed(node.args.args), reversed(node.args.defaults), strict=False)
        outer, self._names = self._names, self._names | {argument.arg: value for argument, value in defaults}
        self.generic_visit(node)
        self._names = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Assign(self, node: ast.Assign) -> None:
        self.generic_visit(node)
        for target in node.targets:
            if isinstance(target, ast.Name):
                self._names[target.id] = node.value
            elif isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = zip(target.elts, node.value.elts, strict=False)
                self._names |= {name.id: value for name, value in pairs if isinstance(name, ast.Name)}

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Name(id="Refusal"), args=[key, _, fix]):
                self.rows.append((text_of(key, self._names), text_of(fix, self._names)))
            case ast.Call(func=ast.Name(id="Rule"), args=[key, _, fix]):
                self.rows.append((f"objective.{text_of(key, self._names)}", text_of(fix, self._names)))
            case ast.Call(func=ast.Name(id="ValueError"), args=[words]) if _KEY.match(text_of(words, self._names)):
                key, _, fix = text_of(words, self._names).partition("=")
                self.rows.append((key, fix.partition(": ")[2] or fix))
        self.generic_visit(node)


def bounds_of(settings: type[Settings], prefix: str = "", seen: set[type] | None = None) -> Iterator[Row]:
    """The bounds of a configuration's fields by their full names; a part that stands in several places once."""
    seen = {settings} if seen is None else seen
    hints = get_type_hints(settings)
    for item in fields(settings):  # type: ignore[arg-type]
        bounds, hint = item.metadata.get("bounds"), hints[item.name]
        if bounds is not None:
            yield prefix + item.name, str(bounds)
        parts = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and issubclass(part, Settings)]
        for part in parts:
            if part not in seen:
                seen.add(part)
                yield from bounds_of(part, f"{prefix}{item.name}{'.…' if get_args(hint) else ''}.", seen)


def refusals_of(room: str) -> list[Row]:
    """The refusals of a package, each once, in the order of its files."""
    rows: dict[Row, None] = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        reader = Reader(dict(_constants(tree)))
        reader.visit(tree)
        rows |= dict.fromkeys(row for row in reader.rows if set("".join(row)) - set("…. "))
    return list(rows)


def _constants(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield node.targets[0].id, node.value


def page() -> str:
    """The whole page, in Markdown."""
    tables = [("Ranges", "must be", list(bounds_of(RunConfig)))]
    tables += [(f"{room}/", "what is said", refusals_of(room)) for room in ROOMS]
    lines = [INTRODUCTION]
    for title, head, rows in tables:
        lines += [f"## {title}", "", f"| setting | {head} |", "|---|---|"]
        lines += [f"| `{_cell(key)}` | {_cell(fix)} |" for key, fix in rows] + [""]
    return "\n".join(lines).rstrip() + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    written = page()
    if "--check" not in sys.argv:
        PAGE.write_text(written, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != written:
        sys.exit("docs/refusals.md is not what the source says: run python .ci/refusals.py")
