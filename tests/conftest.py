"""Fixtures that every test may use."""

from pathlib import Path

import pytest
from hypothesis import settings

from tests.models import make_tiny_model

settings.register_profile("untimed", deadline=None)  # how long an example takes depends on what else the machine does
settings.load_profile("untimed")

TESTS = Path(__file__).parent
SHARING = {  # files of tests that use the same workers, of which starting takes longest: one process runs them all
    "integration/rollout/": "engines of tiny models",
    "integration/orchestration/test_alarms.py": "models of the lab",
    "integration/orchestration/test_alignment.py": "models of the lab",
    "integration/orchestration/test_diagnose.py": "models of the lab",
    "integration/orchestration/test_lab.py": "models of the lab",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests are to be run one after the other: those of a file, and those that share workers."""
    for item in items:
        file = item.path.relative_to(TESTS).as_posix()
        group = next((group for start, group in SHARING.items() if file.startswith(start)), file)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint whose LM head shares the embedding."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_tied"), tied=True)


@pytest.fixture(scope="session")
def tiny_untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint with an LM head of its own."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_untied"), tied=False)
