"""New weights over vLLM's own GPU backends, through the same publisher. Nothing here runs without a GPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.actor import ActorHandle
from transformers import PreTrainedModel

from learner.config import LearnerConfig
from learner.records import PublishReport
from learner.weights.publisher import WeightPublisher
from rollout.worker import RolloutWorker
from tests.integration.students import ENGINE, perturbed, reference_logprobs, request, sampled
from tutelage.records.trajectory import Trajectory
from tutelage.settings import WeightTransfer

pytestmark = [
    pytest.mark.integration,
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
TOLERANCE = 2e-2  # nats: GPU kernels may use TF32


class Publisher:
    """Rank 0 of a learner on a GPU."""

    def __init__(self, path: str, seed: int, config: LearnerConfig, worker: ActorHandle) -> None:
        self.model: PreTrainedModel = perturbed(Path(path), seed).cuda()
        self.publisher = WeightPublisher(self.model, 0, config, {"rollout-0": worker}, 120)

    def publish(self, version: int) -> PublishReport:
        return self.publisher.publish(version)


def generate(worker: ActorHandle) -> list[Trajectory]:
    return [ray.get(ref) for ref in worker.generate.remote([request(i) for i in range(4)])]


@pytest.mark.parametrize(("backend", "gpus"), [(WeightTransfer.ipc, 0.4), (WeightTransfer.nccl, 1.0)])
@pytest.mark.parametrize("model", ["tiny_tied", "tiny_untied"])
def test_logprobs_agree_after_an_update(
    local_ray: None, request: pytest.FixtureRequest, model: str, backend: WeightTransfer, gpus: float
) -> None:
    if backend is WeightTransfer.nccl and torch.cuda.device_count() < 2:
        pytest.skip("nccl joins the learner's GPU with the engine's: needs two")
    path: Path = request.getfixturevalue(model)
    settings = replace(ENGINE, gpus_per_worker=gpus, gpu_memory_utilization=0.3)
    worker = ray.remote(RolloutWorker).options(num_cpus=1, num_gpus=gpus).remote(str(path), settings, backend.value, 0)
    config = LearnerConfig(zero_stage=0, weight_transfer=backend)
    publisher = ray.remote(Publisher).options(num_cpus=1, num_gpus=gpus).remote(str(path), 5, config, worker)
    report = ray.get(publisher.publish.remote(1), timeout=600)
    assert report.version == 1
    expected_model = perturbed(path, 5)
    for trajectory in generate(worker):
        expected = sampled(reference_logprobs(expected_model, trajectory), trajectory)
        np.testing.assert_allclose(trajectory.sampling_logprobs, expected, atol=TOLERANCE)
    ray.kill(publisher)
    ray.get(worker.shutdown.remote(), timeout=60)
    ray.kill(worker)
