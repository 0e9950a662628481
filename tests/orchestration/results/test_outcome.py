"""What a start that trained nothing leaves behind; no worker is needed for it."""

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from orchestration.config.compose import build, register_schema
from orchestration.prepare.inputs import prepare
from orchestration.results.directory import open_run_directory
from orchestration.runs.recorder import Recorder


@pytest.mark.parametrize("status", ["interrupted", "failed"])
def test_the_page_of_a_start_that_trained_nothing(
    status: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    register_schema()
    overrides = ["experiment=lab/compatible", "tracking=offline", f"run_dir={tmp_path}/run", "data.train.size=64"]
    with initialize_config_module("conf", version_base="1.3"):
        composed = compose("config", overrides)
    config = build(composed, "full_reverse_kl")
    directory = open_run_directory(config, composed)
    Recorder(config, prepare(config), directory).conclude(status, {})
    directory.close()
    page = directory.path / "report.html"
    assert f"{status.capitalize()} after step 0 of 60" in page.read_text("utf-8")
    assert "report.html" in capsys.readouterr().out
    assert json.loads((directory.path / "summary.json").read_text())["status"] == status
    assert len(list((directory.path / "wandb").rglob("media/html/*.html"))) == 1
