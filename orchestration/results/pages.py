"""The HTML pages of runs, recipes and diagnoses, written from what lies in their folders."""

import json
from pathlib import Path
from typing import Any

from diagnostics.report.diagnosis_page import render_diagnosis
from diagnostics.report.run_page import RunRecord, render_recipe, render_run
from orchestration.results.directory import read_settings, stage_folders
from orchestration.results.tracker import read_metrics, read_samples
from tutelage.files import write_text

PAGE = "report.html"
DIAGNOSIS = "diagnosis.json"


class NoReport(ValueError):
    """The folder holds nothing to report on."""


def write_report(folder: Path) -> Path:
    """Write the page of whatever the folder holds; a recipe's stages each get theirs too.

    Raises:
        NoReport: it holds neither a run nor a diagnosis.
    """
    if (folder / DIAGNOSIS).is_file():
        return _write(folder, render_diagnosis(_json(folder / DIAGNOSIS)))
    if not (folder / "config.yaml").is_file():
        raise NoReport(f"{folder}: neither a run (config.yaml) nor a diagnosis ({DIAGNOSIS}) is there")
    stages = stage_folders(folder)
    if not stages:
        return write_run_report(folder)
    if not (folder / "summary.json").is_file():
        names = ", ".join(stage.name for stage in stages)
        raise NoReport(f"{folder}: the recipe has no summary.json yet; give the folder of one of its stages ({names})")
    for stage in stages:
        write_run_report(stage)
    return write_recipe_report(folder)


def write_run_report(folder: Path) -> Path:
    """Write the page of one run, as far as it has come."""
    record = RunRecord(
        name=folder.name,
        settings=read_settings(folder),
        metrics=read_metrics(folder) if (folder / "metrics.jsonl").is_file() else [],
        summary=_optional(folder / "summary.json"),
        samples=read_samples(folder),
        preflight=_optional(folder / "preflight.json"),
        versions=_optional(folder / "versions.json") or {},
    )
    return _write(folder, render_run(record))


def write_recipe_report(folder: Path) -> Path:
    """Write the page of a recipe that has its summary."""
    return _write(folder, render_recipe(folder.name, read_settings(folder), _json(folder / "summary.json")))


def _write(folder: Path, page: str) -> Path:
    write_text(folder / PAGE, page)
    return folder / PAGE


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _optional(path: Path) -> dict[str, Any] | None:
    return _json(path) if path.is_file() else None
