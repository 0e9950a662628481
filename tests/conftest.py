"""Fixtures that every test may use."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.models import make_tiny_model

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint whose LM head shares the embedding."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_tied"), tied=True)


@pytest.fixture(scope="session")
def tiny_untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with an LM head of its own."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_untied"), tied=False)
