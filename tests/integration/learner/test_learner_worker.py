"""The learner as Ray actors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file

from learner.config import LearnerConfig, LearnerSetup, StudentConfig
from learner.objectives import ObjectiveConfig
from learner.packing import pack
from learner.worker import LearnerWorker
from tests.learner.examples import make_examples
from tutelage.lm.head import LMHead
from tutelage.settings import DType

pytestmark = pytest.mark.integration


class Group:
    """Two ranks, called in lockstep."""

    def __init__(self, model: Path, config: LearnerConfig) -> None:
        actor = ray.remote(LearnerWorker).options(num_cpus=0.5, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
        self.actors = [actor.remote() for _ in range(2)]
        self.set_up(model, config)

    def set_up(self, model: Path, config: LearnerConfig) -> None:
        address = ray.get(self.actors[0].address.remote(), timeout=120)
        setup = LearnerSetup(str(model), StudentConfig(), config, ObjectiveConfig(), 10)
        refs = [actor.setup.remote(setup, rank, address) for rank, actor in enumerate(self.actors)]
        assert ray.get(refs, timeout=120) == [0, 0]

    def call(self, method: str, *args: Any) -> list[Any]:
        return ray.get([getattr(actor, method).remote(*args) for actor in self.actors], timeout=120)

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def test_two_actors_step_evaluate_save_resume_and_export(
    local_ray: None, tiny_tied: Path, tiny_untied: Path, tmp_path: Path
) -> None:
    config = LearnerConfig(ranks=2, dtype=DType.float32, zero_stage=3, learning_rate=1e-3)
    examples = make_examples(teacher_width=16)
    group = Group(tiny_untied, config)
    try:
        first, second = group.call("step", pack(examples, 2, 40, 0))
        assert first.policy_version == second.policy_version == 1
        assert first.metrics == second.metrics
        group.call("set_teacher_head", "teacher", LMHead(np.ones((576, 16), dtype=np.float32), None))
        records, same = group.call("evaluate", pack(examples, 2, 40, 1))
        assert records == same and [r.tokens for r in records] == [e.trajectory.loss_tokens for e in examples]
        group.call("save_checkpoint", str(tmp_path / "checkpoint"))
        group.call("step", pack(examples, 2, 40, 1))
        group.call("export", str(tmp_path / "first"))
        assert group.call("version") == [2, 2]
        assert group.call("load_checkpoint", str(tmp_path / "checkpoint"), str(tmp_path)) == [1, 1]
        group.call("step", pack(examples, 2, 40, 1))
        group.call("export", str(tmp_path / "again"))
        with pytest.raises(ValueError, match="publish: version 7 asked for, the weights are at 2"):
            group.call("publish", 7)
        group.set_up(tiny_tied, LearnerConfig(ranks=2, dtype=DType.float32, zero_stage=3))  # another run's student
        group.set_up(tiny_untied, config)
        group.call("step", pack(examples, 2, 40, 0))
        group.call("step", pack(examples, 2, 40, 1))
        group.call("export", str(tmp_path / "anew"))
    finally:
        group.stop()
    one, *others = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "again", "anew"))
    assert all(torch.equal(one[name], other[name]) for other in others for name in one)
