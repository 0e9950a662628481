"""Fixtures of the tests with a made-up endpoint."""

from pathlib import Path

import pytest

from scoring.backends.server import client as endpoint_module
from tests.scoring.backends.server.work import TOKENIZER


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE", 0.01)
