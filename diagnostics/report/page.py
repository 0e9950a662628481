"""What all pages share: the templates, and style and script written into each page."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from diagnostics.report.figures import ends, figure
from diagnostics.report.tables import Cell, Table
from diagnostics.report.tokens import TokenView, legend, token_view

Folded = tuple[str, Sequence[Markup], Sequence[Table]]  # title, charts and tables of what is shown on demand


@dataclass(frozen=True)
class Figure:
    """One number that is read first."""

    label: str
    value: str
    interval: str = ""

    @classmethod
    def of(cls, label: str, value: Mapping[str, Any], signed: bool = False) -> "Figure":
        """A mean with its interval."""
        return cls(label, figure(value["mean"], signed), ends(value, signed))


@dataclass(frozen=True)
class Headline:
    """What came out, in plain words."""

    tone: str  # "good", "careful", "bad" or "neutral"
    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    picture: Markup | None = None
    evidence: Sequence[str] = ()
    command: str | None = None
    warnings: Sequence[tuple[str, Sequence[str]]] = ()  # title and lines of each list


@dataclass(frozen=True)
class Section:
    """A part of the page; what it does not have is left out."""

    anchor: str
    title: str
    text: str = ""
    charts: Sequence[Markup] = ()
    tables: Sequence[Table] = ()
    folded: Sequence[Folded] = ()
    tokens: TokenView | None = None
    short: str = ""  # in the list of sections; none: the title
    legend: Sequence[tuple[str, str]] = ()  # label and colour of the curves of all charts

    @property
    def is_empty(self) -> bool:
        return not (self.text or self.charts or self.tables or self.folded or self.tokens)


@dataclass(frozen=True)
class Page:
    """All that a page says, in its order."""

    title: str
    subtitle: str
    facts: Sequence[str]
    headline: Headline
    sections: Sequence[Section]
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


def render(page: Page) -> str:
    """Write one HTML document that needs nothing else."""
    sections = [section for section in page.sections if not section.is_empty]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(page=page, sections=sections, settings="\n".join(_settings(page.settings)))
    )


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("diagnostics.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    folder = files("diagnostics.report")
    environment.globals["style"] = Markup(folder.joinpath("style.css").read_text(encoding="utf-8"))
    environment.globals["script"] = Markup(folder.joinpath("tokens.js").read_text(encoding="utf-8"))
    environment.globals["legend"] = legend()
    return environment


def _settings(value: Any, prefix: str = "") -> Iterator[str]:
    """One line a setting, as an override of a command has it."""
    if isinstance(value, Mapping) and (value or not prefix):
        for name, item in value.items():
            yield from _settings(item, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield f"{prefix}={'null' if value is None else str(value).lower() if isinstance(value, bool) else value}"


def models_of(config: Mapping[str, Any]) -> str:
    """Say who learns from whom."""
    student, teacher = ((config.get(role) or {}).get("model") for role in ("student", "teacher"))
    if student is None:
        return ""
    told = ", told more" if (config.get("teacher") or {}).get("context") else ""
    others = "".join(f", {key}" for key in config.get("further_teachers") or {})
    return f"student {student} · teacher {teacher or student}{told}{others}"


def check_table(checks: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out the checks of a preflight, what failed first."""
    order = {"fail": 0, "warn": 1, "pass": 2}
    rows = [
        [
            Cell(check["status"], kind=f"status {check['status']}"),
            Cell(str(check["name"]).replace("_", " ")),
            Cell(str(check.get("seen", ""))),
            Cell(str(check.get("fix", ""))),
        ]
        for check in sorted(checks, key=lambda check: order.get(check["status"], 0))
    ]
    return Table("", ["", "check", "what was seen", "what to change"], rows)


def preflight_section(preflight: Mapping[str, Any] | None) -> Section:
    """Show the checks of preflight.json; empty where there are none."""
    checks = (preflight or {}).get("checks") or []
    if not checks:
        return Section("preflight", "Preflight")
    counts = {word: sum(check["status"] == status for check in checks) for status, word in _STATUSES.items()}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    seconds = (preflight or {}).get("seconds")
    took = f", in {seconds:.0f} s" if seconds is not None and seconds >= 1 else ""
    return Section("preflight", "Preflight", f"{said}{took}.", tables=[check_table(checks)])


def token_section(trajectories: Sequence[Mapping[str, Any]], text: str = "") -> Section:
    """Show trajectories as `token_view` reads them, and their worst tokens; empty where there are none."""
    view = token_view(trajectories)
    return Section("tokens", "Token by token", text, tokens=view, tables=view.worst if view else [])


_STATUSES = {"fail": "failed", "warn": "to look at", "pass": "passed"}
