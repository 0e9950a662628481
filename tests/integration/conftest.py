"""Fixtures of the integration tests: one Ray, one rollout worker for each tiny model, and the launching of runs."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tests.integration.launching import KeptWorkers, Launched, Series, tiny_run_settings
from tests.integration.ranks import Ranks
from tests.integration.students import Student


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Path]:
    """The folder of its session."""
    context = ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield Path(context.address_info["session_dir"])
    ray.shutdown()


@pytest.fixture(scope="session")
def tied_student(local_ray: Path, tiny_tied: Path) -> Iterator[Student]:
    student = Student.start(tiny_tied)
    yield student
    student.stop()


@pytest.fixture(scope="session")
def untied_student(local_ray: Path, tiny_untied: Path) -> Iterator[Student]:
    student = Student.start(tiny_untied)
    yield student
    student.stop()


@pytest.fixture(scope="session", params=["tied", "untied"])
def student(request: pytest.FixtureRequest) -> Student:
    return request.getfixturevalue(f"{request.param}_student")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path, tiny_untied: Path) -> list[str]:
    return tiny_run_settings(tmp_path_factory.mktemp("data"), tiny_tied, tiny_untied)


@pytest.fixture(scope="module")
def launch(settings: list[str]) -> Iterator[Callable[..., Launched]]:
    """Start a run in a directory, with overrides; what still runs at the end is killed."""
    started: list[Launched] = []

    def start(run_dir: Path, *overrides: str) -> Launched:
        started.append(Launched(run_dir, *settings, *overrides))
        return started[-1]

    yield start
    for run in started:
        if run.process.poll() is None:
            run.kill(signal.SIGKILL)


@pytest.fixture(scope="session")
def kept_workers() -> Iterator[KeptWorkers]:
    workers = KeptWorkers()
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def series(settings: list[str], kept_workers: KeptWorkers) -> Series:
    """Runs that need not be signalled: one after the other, with the same workers, those of other modules too."""
    return Series(kept_workers, settings)


@pytest.fixture(scope="module")
def one() -> Iterator[Ranks]:
    ranks = Ranks(1)
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two() -> Iterator[Ranks]:
    ranks = Ranks(2)
    yield ranks
    ranks.close()
