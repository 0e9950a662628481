"""Self-contained pages for people: of a run, of a recipe and of a diagnosis. Nothing in them is fetched."""

from diagnostics.report.diagnosis import render_diagnosis
from diagnostics.report.run import RunRecord, render_recipe, render_run

__all__ = ["RunRecord", "render_diagnosis", "render_recipe", "render_run"]
