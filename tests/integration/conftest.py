"""Fixtures of the integration tests: one Ray, and one rollout worker for each tiny model, shared by all."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tests.integration.students import Student


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tied_student(local_ray: None, tiny_tied: Path) -> Iterator[Student]:
    student = Student.start(tiny_tied)
    yield student
    student.stop()


@pytest.fixture(scope="session")
def untied_student(local_ray: None, tiny_untied: Path) -> Iterator[Student]:
    student = Student.start(tiny_untied)
    yield student
    student.stop()


@pytest.fixture(scope="session", params=["tied", "untied"])
def student(request: pytest.FixtureRequest) -> Student:
    return request.getfixturevalue(f"{request.param}_student")
