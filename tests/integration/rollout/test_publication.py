"""From real DeepSpeed ranks into a running engine."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.actor import ActorHandle

from learner.config import LearnerConfig, LearnerSetup, StudentConfig
from learner.objectives import ObjectiveConfig
from learner.records import PublishReport
from learner.worker import LearnerWorker
from tests.integration.students import ONE_THREAD, Student, load, perturbed, reference_logprobs, request, sampled
from tutelage.settings import DType, WeightTransfer

pytestmark = pytest.mark.integration


@contextmanager
def learner(path: Path, config: LearnerConfig) -> Iterator[list[ActorHandle]]:
    """The ranks of a learner with the weights of the checkpoint at `path`."""
    actor = ray.remote(LearnerWorker).options(num_cpus=1, runtime_env=ONE_THREAD)
    ranks = [actor.remote() for _ in range(config.ranks)]
    try:
        address = ray.get(ranks[0].address.remote(), timeout=120)
        setup = LearnerSetup(str(path), StudentConfig(), config, ObjectiveConfig(), 10, seed=0)
        call_all(
            ranks,
            "setup",
            [(setup, rank, address) for rank in range(config.ranks)],
        )
        yield ranks
    finally:
        for rank in ranks:
            ray.kill(rank)


def call_all(ranks: Sequence[ActorHandle], method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
    refs = [getattr(rank, method).remote(*args) for rank, args in zip(ranks, arguments, strict=True)]
    return ray.get(refs, timeout=120)


def publish(ranks: Sequence[ActorHandle], student: Student) -> list[PublishReport]:
    """As the learner's `publish` does, with a version of our choice: the engine is shared with other tests."""
    version = student.version + 1
    call_all(ranks, "connect", [({"rollout-0": student.worker}, 60.0) for _ in ranks])
    return ray.get([rank.__ray_call__.remote(lambda self: self._publisher.publish(version)) for rank in ranks])


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (2, 3)])
def test_every_zero_stage_sends_whole_weights(tied_student: Student, tmp_path: Path, ranks: int, stage: int) -> None:
    model = perturbed(tied_student.path, 51 + stage)
    model.save_pretrained(tmp_path)
    config = LearnerConfig(
        ranks=ranks,
        zero_stage=stage,
        dtype=DType.float32,
        weight_bucket_mib=1,
        weight_transfer=WeightTransfer.shared_memory,
    )
    with learner(tmp_path, config) as processes:
        reports = publish(processes, tied_student)
    expected = tied_student.publish(model, bucket_mib=1)  # from this process, unsharded
    assert reports[0].checksum == expected.checksum and reports[0].nbytes == expected.nbytes
    assert {report.version for report in reports} == {expected.version - 1}
    for trajectory in tied_student.generate([request(i) for i in range(2)]):
        logprobs = sampled(reference_logprobs(model, trajectory), trajectory)
        np.testing.assert_allclose(trajectory.sampling_logprobs, logprobs, atol=1e-3)
    tied_student.publish(load(tied_student.path))
