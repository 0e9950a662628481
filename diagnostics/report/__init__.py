"""Self-contained pages for people: of a run, of a recipe and of a diagnosis. Nothing in them is fetched."""

from diagnostics.report.diagnosis_page import render_diagnosis
from diagnostics.report.recipe_page import render_recipe
from diagnostics.report.run_page import RunRecord, render_run

__all__ = ["RunRecord", "render_diagnosis", "render_recipe", "render_run"]
