"""A rollout worker with a tiny float32 model, and the transformers model that its log-probs are held against."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.actor import ActorHandle
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.config import LearnerConfig
from learner.records import PublishReport
from learner.weights.publisher import WeightPublisher
from rollout.config import RolloutConfig
from rollout.worker import RolloutWorker
from tutelage.records.trajectory import RolloutRequest, Trajectory
from tutelage.settings import DType, WeightTransfer
from tutelage.stops import AS_THEY_ARE, TurnEnds

MAX_MODEL_LEN = 384
ENGINE = RolloutConfig(dtype=DType.float32, max_model_len=MAX_MODEL_LEN, max_num_seqs=64, kv_cache_gib=0.25, threads=1)
ONE_THREAD = {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}


def start_worker(path: Path, ends: TurnEnds = AS_THEY_ARE) -> ActorHandle:
    actor = ray.remote(RolloutWorker).options(num_cpus=1, runtime_env=ONE_THREAD)
    return actor.remote(str(path), ENGINE, "shared_memory", 0, ends)


@dataclass
class Student:
    path: Path
    worker: ActorHandle
    model: PreTrainedModel  # float32, what the worker's engine should hold

    @classmethod
    def start(cls, path: Path) -> "Student":
        worker = start_worker(path)
        ray.get(worker.ready.remote(), timeout=300)
        return cls(path, worker, load(path))

    def stop(self) -> None:
        ray.get(self.worker.shutdown.remote(), timeout=60)
        ray.kill(self.worker)

    @property
    def version(self) -> int:
        return ray.get(self.worker.ready.remote(), timeout=60).policy_version

    def generate(self, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
        """In the order of their slots."""
        trajectories = [ray.get(ref) for ref in self.worker.generate.remote(requests)]
        return sorted(trajectories, key=lambda trajectory: trajectory.slot)

    def prompt_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        return ray.get(self.worker.prompt_logprobs.remote(token_ids), timeout=60)

    def publisher(
        self,
        model: PreTrainedModel,
        timeout_s: float = 60,
        bucket_mib: float = 512,
        transfer: WeightTransfer = WeightTransfer.shared_memory,
    ) -> WeightPublisher:
        config = LearnerConfig(zero_stage=0, weight_bucket_mib=bucket_mib, weight_transfer=transfer)  # type: ignore[arg-type]
        return WeightPublisher(model, 0, config, {"rollout-0": self.worker}, timeout_s)

    def publish(
        self,
        model: PreTrainedModel,
        bucket_mib: float = 512,
        transfer: WeightTransfer = WeightTransfer.shared_memory,
    ) -> PublishReport:
        self.model = model
        return self.publisher(model, bucket_mib=bucket_mib, transfer=transfer).publish(self.version + 1)


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def perturbed(path: Path, seed: int, scale: float = 0.05) -> PreTrainedModel:
    """The checkpoint with noise on every weight, the norms' and the LM head's too."""
    model = load(path)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def reference_logprobs(model: PreTrainedModel, trajectory: Trajectory) -> torch.Tensor:
    """[T, V]: log-probs at the trajectory's temperature of every id at each of its T positions."""
    ids = np.concatenate([trajectory.prompt_ids, trajectory.response_ids]).astype(np.int64)
    logits = model(torch.from_numpy(ids)[None]).logits[0, len(trajectory.prompt_ids) - 1 : -1]
    return torch.log_softmax(logits.float() / trajectory.temperature, dim=-1)


def sampled(logprobs_TV: torch.Tensor, trajectory: Trajectory) -> NDArray[np.float32]:
    """[T], of the tokens that were sampled."""
    ids = torch.from_numpy(trajectory.response_ids.astype(np.int64))
    return logprobs_TV.gather(1, ids[:, None])[:, 0].numpy()


def request(slot: int, *, max_tokens: int = 24, prompt_tokens: int = 20, **settings: float) -> RolloutRequest:
    """A request with a random prompt of its own, the same for the same slot."""
    prompt = np.random.default_rng(slot).integers(3, 576, prompt_tokens, dtype=np.int32)
    fields = {"seed": 1000 + slot, **settings}
    return RolloutRequest(slot, f"prompt-{slot}", 0, prompt, max_tokens=max_tokens, **fields)  # type: ignore[arg-type]
