"""Fixtures that every test may use."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tests.models import make_tiny_model

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")

SHARING = {  # files of tests that use the same workers, of which starting takes longest
    "tests/integration/rollout/": "engines of tiny models",
    "tests/integration/orchestration/test_alarms.py": "models of the lab",
    "tests/integration/orchestration/test_alignment.py": "models of the lab",
    "tests/integration/orchestration/test_diagnose.py": "models of the lab",
    "tests/integration/orchestration/test_lab.py": "models of the lab",
}


class SharingWorkers(LoadFileScheduling):
    """One process of tests runs those of a file one after the other, and those that share workers."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        return next((group for start, group in SHARING.items() if file.startswith(start)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharingWorkers:
    return SharingWorkers(config, log)


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint whose LM head shares the embedding."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_tied"), tied=True)


@pytest.fixture(scope="session")
def tiny_untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with an LM head of its own."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_untied"), tied=False)
