"""Weights & Biases is asked whether it takes the key before anything is started."""

from pathlib import Path

import pytest

from orchestration.config.schema import TrackingConfig, WandbMode
from orchestration.results.tracker import Tracker, check_login
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
