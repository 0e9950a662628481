"""Fixtures of the integration tests: one Ray, one rollout worker for each tiny model, and the launching of runs."""

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import ray

from tests.integration.launching import KeptWorkers, Launched, Series
from tests.integration.ranks import Ranks
from tests.integration.students import Student

WORDS = ("red", "blue", "green", "small", "large", "old", "new", "warm")


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
    folder = tmp_path_factory.mktemp("data")
    for name, count in (("train", 40), ("heldout", 4)):
        pairs = [(WORDS[i % 8], WORDS[i // 8]) for i in range(count)]
        rows = [{"prompt": f"{name} {a} {b} ?", "completion": f"{a} {b}", "answer": a} for a, b in pairs]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"student.model={tiny_tied}", f"teacher.model={tiny_untied}", "teacher.context=null", "scoring.dtype=float32",
        f"data.train.path={folder}/train.jsonl", f"data.heldout.path={folder}/heldout.jsonl",
        "rollout.dtype=float32", "learner.dtype=float32", "rollout.max_model_len=256", "rollout.kv_cache_gib=0.2",
        "sampling.max_tokens=8", "evaluation.max_tokens=8", "evaluation.prompts=4", "pipeline.batch_size=4",
        "learner.learning_rate=1e-3", "experiment=quickstart", "tracking.samples_every=1", "tracking.samples=4",
        "evaluation.teacher=false", "tracking=disabled",  # each takes long to start
    ]  # fmt: skip


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
