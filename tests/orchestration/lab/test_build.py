"""The lab's models: those that are shipped are those that the command makes, and experiments name no others."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestration.lab.build import MADE, RECIPES, Recipe, build, missing
from orchestration.prepare.checkpoints import LAB_MODELS, LAB_PREFIX, resolve_model
from tests.factories import CONF, configured

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment" / "lab").glob("*.yaml") if path.stem != "base")
NAMES = {recipe.name for recipe in RECIPES}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_shipped_model_was_made_by_its_recipe(recipe: Recipe) -> None:
    folder = Path(resolve_model(LAB_PREFIX + recipe.name))
    made = json.loads((folder / MADE).read_text())
    assert (made["name"], made["base"], tuple(made["overrides"])) == (recipe.name, recipe.base, recipe.overrides)
    weights = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert 500_000 <= sum(tensor.numel() for tensor in weights.values()) <= 1_000_000


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_names_models_of_the_lab_and_itself(name: str) -> None:
    config = configured(f"experiment=lab/{name}")
    assert config.name == f"lab/{name}"
    for model in (config.student.model, config.teacher.model):
        assert model.removeprefix(LAB_PREFIX) in NAMES


def test_what_is_missing_is_made_in_order_of_dependence(tmp_path: Path) -> None:
    assert [recipe.name for recipe in missing(["swapped", "stronger"], tmp_path)] == [
        "carries", "swapped", "student", "stronger",
    ]  # fmt: skip
    (tmp_path / "carries").mkdir()
    (tmp_path / "carries" / MADE).write_text("{}")
    assert [recipe.name for recipe in missing(["swapped"], tmp_path)] == ["swapped"]
    assert {recipe.name for recipe in missing([], LAB_MODELS)} == set()


def test_unknown_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows: no model of the lab"):
        build(["rows"], tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"student\.model=lab/rows: no model of the lab"):
        resolve_model("lab/rows", "student.model")
