"""Weights & Biases is asked whether it takes the key before anything is started."""

import json
from pathlib import Path

import pytest

from orchestration.config.schema import TrackingConfig, WandbMode
from orchestration.results.tracker import X_AXIS, Tracker, check_login
from tutelage.settings import ConfigError


@pytest.mark.parametrize("key", ["not a key", "0" * 40])
def test_a_key_that_is_not_taken_is_one_message(key: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first has not the form of a key; nobody answers for the second."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"^tracking\.wandb=online: .*WANDB_API_KEY.*offline$"):
        check_login(TrackingConfig(wandb=WandbMode.online))
    check_login(TrackingConfig(wandb=WandbMode.offline))


@pytest.mark.integration
def test_a_run_that_begins_again_without_a_checkpoint_is_the_same_there(tmp_path: Path) -> None:
    ids = []
    for _ in range(2):
        tracker = Tracker(tmp_path, TrackingConfig(wandb=WandbMode.offline), {"name": "n"})
        ids.append(tracker.wandb_id)
        tracker.close(succeeded=False)
    assert ids[0] is not None and ids[0] == ids[1]


def test_rows_that_are_lost_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{X_AXIS: step, "train/loss": 1.0} for step in (1, 2, 3, 4)] + [{X_AXIS: 3, "eval/accuracy": 1.0}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = TrackingConfig(wandb=WandbMode.disabled)
    Tracker(tmp_path, settings, {}, from_version=3).close(succeeded=True)
    assert not caplog.records
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))
    Tracker(tmp_path, settings, {}, from_version=3).close(succeeded=True)
    assert f"{path} is damaged: the rows of 2 steps are lost (1, 2)" in caplog.text
