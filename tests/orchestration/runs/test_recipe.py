"""Recipes: how the stages are composed from the run and their overrides, and what is refused before any starts."""

import json
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from orchestration.config.compose import register_schema
from orchestration.config.schema import RunConfig
from orchestration.results.directory import RunDirectory, open_recipe_directory
from orchestration.runs.artifact import seal, verify
from orchestration.runs.recipe import PlannedStage, compose_stages
from orchestration.runs.recipe_run import carry_out, plan
from tutelage.cluster import Session
from tutelage.files import write_json, write_text
from tutelage.settings import ConfigError

RECIPES = sorted((Path(__file__).parents[3] / "conf" / "recipe").glob("*.yaml"))


def composed(folder: Path, *overrides: str) -> list[PlannedStage]:
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        run = cast(RunConfig, OmegaConf.to_object(compose("config", overrides=list(overrides))))
        return compose_stages(run, folder, "config", overrides)


def stages(**overrides: Sequence[str]) -> str:
    """A recipe as on the command line."""
    listed = [f"{{name: {name}, overrides: {json.dumps(list(values))}}}" for name, values in overrides.items()]
    return f"recipe.stages=[{', '.join(listed)}]"


def test_a_stage_is_the_run_with_its_own_overrides_over_it(tmp_path: Path) -> None:
    recipe = stages(a=["pipeline.steps=2", "objective=gkd"], b=["learner.learning_rate=0.5"])
    first, second = composed(tmp_path, "pipeline.steps=7", "objective=minillm", "seed=3", recipe)
    assert (first.config.pipeline.steps, second.config.pipeline.steps) == (2, 7)
    assert (first.config.objective.name, second.config.objective.name) == ("gkd", "minillm")
    assert second.config.learner.learning_rate == 0.5 != first.config.learner.learning_rate
    assert first.config.seed == second.config.seed == 3
    assert (first.folder, second.folder) == (tmp_path / "1-a", tmp_path / "2-b")
    assert first.config.run_dir == str(tmp_path / "1-a")
    assert not first.config.recipe.stages


def test_a_stage_begins_with_the_model_of_the_one_before_it(tmp_path: Path) -> None:
    first, second, third = composed(tmp_path, "student.model=models/base", stages(a=[], b=[], c=[]))
    assert first.config.student.model == "models/base"
    assert second.config.student.model == str(tmp_path / "1-a" / "final")
    assert third.config.student.model == str(tmp_path / "2-b" / "final")
    assert {stage.base_model for stage in (first, second, third)} == {"models/base"}


def test_a_teacher_stays_the_runs_own(tmp_path: Path) -> None:
    settings = ["student.model=models/base", "teacher.model=${student.model}", "teacher.context=Be brief."]
    recipe = stages(a=[], b=[], c=["teacher.model=stage:a"])
    taught_by = [stage.config.teacher.model for stage in composed(tmp_path, *settings, recipe)]
    assert taught_by == ["models/base", "models/base", str(tmp_path / "1-a" / "final")]


def test_a_stage_may_begin_elsewhere_and_learn_from_an_earlier_one(tmp_path: Path) -> None:
    recipe = stages(a=[], b=["student.model='${student.model}'", "teacher.model=stage:a"], c=["student.model=stage:a"])
    _, second, third = composed(tmp_path, "student.model=models/base", recipe)
    first_model = str(tmp_path / "1-a" / "final")
    assert (second.config.student.model, second.config.teacher.model) == ("models/base", first_model)
    assert third.config.student.model == first_model
    assert third.base_model == "models/base"


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        (stages(a=[], b=["pipeline.stepz=2"]), ["stage 'b'", "pipeline.stepz", "did you mean pipeline.steps"]),
        (stages(a=[], b=["objective=gdk"]), ["stage 'b'", "objective=gdk", "did you mean gkd"]),
        (stages(a=["pipeline.batch_size=0"]), ["stage 'a'", "pipeline.batch_size=0"]),
        (stages(a=["objective.name=gkd"]), ["stage 'a'", "objective.name=gkd"]),
        (stages(a=["run_dir=x"]), ["stage 'a'", "run_dir", "as a whole"]),
        (stages(a=["resume=auto"]), ["stage 'a'", "resume", "as a whole"]),
        (stages(a=["+recipe/x=y"]), ["stage 'a'", "recipe", "as a whole"]),
        (stages(a=["teacher.model=stage:b"], b=[]), ["stage 'a'", "teacher.model=stage:b", "it is the first"]),
        (stages(a=[], b=["teacher.model=stage:c"]), ["teacher.model=stage:c", "there is a"]),
        ("recipe.stages=[{name: a}, {name: a}]", ["recipe.stages[1].name=a", "2 stages"]),
        ("recipe.stages=[{name: a/b}]", ["recipe.stages[0].name=a/b", "names a folder"]),
    ],
)
def test_a_wrong_stage_is_named_with_its_fix(recipe: str, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        composed(tmp_path, recipe)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_is_shipped_composes(path: Path, tmp_path: Path) -> None:
    assert len(composed(tmp_path, "experiment=reasoning_gym", f"recipe={path.stem}")) >= 2


@pytest.fixture
def tiny(tmp_path: Path, tiny_tied: Path, tiny_untied: Path) -> list[str]:
    """Settings of a recipe on tiny models."""
    for name in ("train", "heldout"):
        write_text(tmp_path / f"{name}.jsonl", json.dumps({"prompt": f"{name} red ?", "answer": "red"}) + "\n")
    return [
        f"student.model={tiny_tied}", f"teacher.model={tiny_untied}", "teacher.context=null",
        f"data.train.path={tmp_path}/train.jsonl", f"data.heldout.path={tmp_path}/heldout.jsonl",
        "rollout.max_model_len=256", "sampling.max_tokens=8", "evaluation.max_tokens=8", "cluster.cpus=4",
    ]  # fmt: skip


def test_all_stages_are_checked_before_the_first_starts(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    plan(composed(folder, *tiny, stages(a=[], b=["teacher.model=${student.model}", "student.model=stage:a"])))
    with pytest.raises(ConfigError, match=r"stage 'b': data\.train\.path=nowhere\.jsonl"):
        plan(composed(folder, *tiny, stages(a=[], b=["data.train.path=nowhere.jsonl"])))
    with pytest.raises(ConfigError, match=r"stage 'b': rollout\.workers=7: the workers ask for 8 CPUs"):
        plan(composed(folder, *tiny, stages(a=[], b=["rollout.workers=7"])))
    assert not folder.exists()


def test_a_model_that_is_still_to_be_trained_is_not_the_one_it_is_trained_from(
    tiny: list[str], tiny_tied: Path, tmp_path: Path
) -> None:
    itself = [f"teacher.model={tiny_tied}"]
    with pytest.raises(ConfigError, match=r"stage 'a': teacher\.model=.*nothing to learn"):
        plan(composed(tmp_path / "run", *tiny, stages(a=itself)))
    plan(composed(tmp_path / "run", *tiny, stages(a=[], b=itself)))


def finish(stage: PlannedStage, files: Mapping[str, str]) -> None:
    """As if the stage had run."""
    (stage.folder / "final").mkdir(parents=True)
    write_text(stage.folder / "config.yaml", OmegaConf.to_yaml(stage.composed, resolve=True))
    for name, text in files.items():
        write_text(stage.folder / "final" / name, text)
    write_json(stage.folder / "summary.json", {"status": "completed", "steps": 2, "wall_seconds": 3.0})
    seal(stage.folder, stage.name, "distil", stage.base_model)


def test_a_finished_stage_keeps_its_settings_and_its_model(tiny: list[str], tmp_path: Path) -> None:
    done = composed(tmp_path / "run", *tiny, stages(a=[]))
    finish(done[0], {"model.safetensors": "weights"})
    plan(done)
    with pytest.raises(ConfigError, match=r"stage 'a': learner\.learning_rate=0\.5: was"):
        plan(composed(tmp_path / "run", *tiny, stages(a=["learner.learning_rate=0.5"])))
    write_text(done[0].folder / "final" / "model.safetensors", "others")
    with pytest.raises(ConfigError, match=r"stage 'a': .*final/model\.safetensors was altered"):
        plan(done)


def test_a_finished_stage_without_the_one_before_it_is_refused(tiny: list[str], tmp_path: Path) -> None:
    both = composed(tmp_path / "run", *tiny, stages(a=[], b=[]))
    finish(both[1], {"model.safetensors": "weights"})
    with pytest.raises(ConfigError, match="2-b is finished, though 1-a"):
        plan(both)


def opened(folder: Path, recipe: Sequence[PlannedStage]) -> RunDirectory:
    return open_recipe_directory(folder, OmegaConf.structured(RunConfig), [stage.folder.name for stage in recipe])


def outcome(folder: Path) -> tuple[str, list[str]]:
    summary = json.loads((folder / "summary.json").read_text())
    return summary["status"], [stage["status"] for stage in summary["stages"]]


def test_a_stage_whose_manifest_a_kill_forestalled_is_sealed_and_not_run_again(tiny: list[str], tmp_path: Path) -> None:
    recipe = composed(tmp_path / "run", *tiny, stages(a=[]))
    finish(recipe[0], {"model.safetensors": "weights"})
    (recipe[0].folder / "artifact.json").unlink()
    assert carry_out(recipe, opened(tmp_path / "run", recipe), Session()) == 0
    assert verify(recipe[0].folder).stage == "a"
    assert outcome(tmp_path / "run") == ("completed", ["completed"])


def test_a_stage_that_cannot_start_fails_the_recipe(tiny: list[str], tmp_path: Path) -> None:
    recipe = composed(tmp_path / "run", *tiny, stages(a=[], b=[], c=[]))
    finish(recipe[0], {"model.safetensors": "weights"})  # which is no checkpoint to begin with
    with pytest.raises(SystemExit) as caught:
        carry_out(recipe, opened(tmp_path / "run", recipe), Session())
    assert caught.value.code == 1
    assert outcome(tmp_path / "run") == ("failed", ["completed", "failed", "not started"])


def test_ctrl_c_between_two_stages_interrupts_the_recipe(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = composed(tmp_path / "run", *tiny, stages(a=[], b=[]))

    def press_ctrl_c(_: RunConfig) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("orchestration.runs.recipe_run.prepare", press_ctrl_c)
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)  # other tests of this process may have theirs
    try:
        assert carry_out(recipe, opened(tmp_path / "run", recipe), Session()) == 130
    finally:
        signal.signal(signal.SIGINT, earlier or signal.SIG_DFL)  # none: it was not set from Python
    assert outcome(tmp_path / "run") == ("interrupted", ["interrupted", "not started"])
