"""The page of a recipe: its stages, each with a page of its own."""

from collections.abc import Mapping
from typing import Any

from diagnostics.report.figures import ROLES, figure, interval, interval_of
from diagnostics.report.page import Headline, Page, Section, models_of, render
from diagnostics.report.tables import Cell, Table


def render_recipe(name: str, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The page of several stages, each with a page of its own in its folder.

    Args:
        summary: of the recipe: "status", "wall_seconds" and "stages", each of which has "name", "stage", "status",
            "folder" and "summary", the stage's own or None.
    """
    rows = []
    for stage in summary["stages"]:
        own = stage.get("summary") or {}
        evaluation = own.get("evaluation") or {}
        rows.append(
            [
                Cell(stage["folder"], href=f"{stage['folder']}/report.html" if own else ""),
                Cell(str(stage["stage"]).replace("_", " ")),
                Cell(stage["status"]),
                Cell(figure(own.get("wall_seconds")), number=True),
                *(Cell(interval(interval_of(evaluation, role, "accuracy")), number=True) for role in ROLES),
                *(Cell(interval(interval_of(evaluation, role, "reverse_kl")), number=True) for role in list(ROLES)[:2]),
            ]
        )
    columns = ["stage", "what it does", "status", "seconds", *(f"accuracy, {label}" for label in ROLES.values())]
    columns += ["reverse KL before", "reverse KL after"]
    alarms = [
        f"{stage['name']}: {line}"
        for stage in summary["stages"]
        for line in (stage.get("summary") or {}).get("alarms") or []
    ]
    tone = {"completed": "good", "failed": "bad"}.get(summary["status"], "careful")
    page = Page(
        title=str(settings.get("experiment") or name),
        subtitle=models_of(settings),
        facts=[name, f"{summary['wall_seconds']:.0f} s"],
        headline=Headline(
            tone,
            f"Recipe {summary['status']}",
            f"{len(rows)} stages; each has a page of its own.",
            warnings=[("Alarms", alarms)] if alarms else [],
        ),
        sections=[Section("stages", "Stages", tables=[Table("", columns, rows)])],
        settings=settings,
    )
    return render(page)
