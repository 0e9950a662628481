"""python -m orchestration.report FOLDER: write report.html of a run, a recipe or a diagnosis once more."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from diagnostics.report import RunRecord, render_diagnosis, render_recipe, render_run
from orchestration.files import write_text
from orchestration.run_directory import stage_folders
from orchestration.tracking import read_metrics, read_samples

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
    """The page of one run, as far as it has come."""
    record = RunRecord(
        name=folder.name,
        settings=_settings(folder),
        metrics=read_metrics(folder) if (folder / "metrics.jsonl").is_file() else [],
        summary=_optional(folder / "summary.json"),
        samples=read_samples(folder),
        preflight=_optional(folder / "preflight.json"),
        versions=_optional(folder / "versions.json") or {},
    )
    return _write(folder, render_run(record))


def write_recipe_report(folder: Path) -> Path:
    return _write(folder, render_recipe(folder.name, _settings(folder), _json(folder / "summary.json")))


def _write(folder: Path, page: str) -> Path:
    write_text(folder / PAGE, page)
    return folder / PAGE


def _settings(folder: Path) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.load(folder / "config.yaml")))


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _optional(path: Path) -> dict[str, Any] | None:
    return _json(path) if path.is_file() else None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m orchestration.report", description=__doc__)
    parser.add_argument("folder", type=Path, help="of a run, of a recipe, or of a diagnosis")
    try:
        print(write_report(parser.parse_args().folder))
    except NoReport as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
