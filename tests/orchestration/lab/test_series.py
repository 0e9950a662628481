"""A series skips what is finished, and does not take a run of other settings for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_module
from omegaconf import OmegaConf

from orchestration.lab.series import CONFIG, Job, perform
from orchestration.runs.recipe import compose_run
from tutelage.cluster import Session
from tutelage.files import write_json, write_text
from tutelage.settings import ConfigError

OVERRIDES = ("experiment=lab/compatible", "pipeline.steps=7")


@pytest.fixture
def hydra() -> Iterator[None]:
    with initialize_config_module("conf", version_base="1.3"):
        yield


def finish(folder: Path, *overrides: str) -> None:
    """Leave what tells a completed run with these settings."""
    folder.mkdir()
    composed, _ = compose_run(CONFIG, [*overrides, f"run_dir={folder}", "resume=auto"])
    write_text(folder / "config.yaml", OmegaConf.to_yaml(composed, resolve=True))
    write_json(folder / "summary.json", {"status": "completed"})


@pytest.mark.parametrize("more", [(), ("recipe=lab_cold_start",)])
def test_a_finished_run_is_not_started_again(hydra: None, tmp_path: Path, more: tuple[str, ...]) -> None:
    finish(tmp_path / "run", *OVERRIDES, *more)
    assert not perform(Job(tmp_path / "run", (*OVERRIDES, *more)), Session())


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        (OVERRIDES, (*OVERRIDES, "pipeline.steps=8"), "pipeline.steps=8: was 7"),
        (OVERRIDES, (*OVERRIDES, "student.model=lab/told"), "student.model=lab/told: was lab/student"),
        ((*OVERRIDES, "recipe=lab_cold_start"), (*OVERRIDES, "recipe=cold_start_then_distil"), "recipe.stages="),
        ((*OVERRIDES, "recipe=lab_cold_start"), OVERRIDES, "of a recipe and a plain run"),
    ],
)
def test_a_finished_run_of_other_settings_is_refused(
    hydra: None, tmp_path: Path, before: tuple[str, ...], now: tuple[str, ...], key: str
) -> None:
    finish(tmp_path / "run", *before)
    with pytest.raises(ConfigError) as caught:
        perform(Job(tmp_path / "run", now), Session())
    assert key in str(caught.value)
