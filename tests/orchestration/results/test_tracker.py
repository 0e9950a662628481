"""Weights & Biases is asked whether it takes the key before anything is started."""

from pathlib import Path

import pytest

from orchestration.config.schema import TrackingConfig, WandbMode
from orchestration.results.tracker import check_login
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
