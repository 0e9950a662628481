"""Perturbed weights of a DeepSpeed learner, whatever the ZeRO stage, and the way back."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from learner.config import LearnerConfig, LearnerSetup, StudentConfig
from learner.engine import LearnerEngine
from learner.objectives import ObjectiveConfig
from learner.packing import pack
from learner.weights.source import CausalLMSource
from tests.integration.ranks import Ranks
from tests.learner.examples import make_examples
from tutelage.settings import DType

pytestmark = pytest.mark.integration


def _weights(engine: LearnerEngine) -> dict[str, torch.Tensor]:
    source = CausalLMSource(engine.module, engine.config.zero_stage, torch.float32, 2**20)
    return {name: weight.clone() for name, weight in source}


def perturb_and_restore(model: Path, config: LearnerConfig) -> tuple[float, list[np.ndarray], list[float]]:
    """On each rank: the smallest move of any weight, log-probs of the three states, and two losses."""
    engine = LearnerEngine(LearnerSetup(str(model), StudentConfig(), config, ObjectiveConfig(), 10))
    batch = pack(make_examples(), dist.get_world_size(), 40, 0)
    states, logprobs = [_weights(engine)], [_logprobs(engine, batch)]
    engine.perturb(5, 0.1)
    states.append(_weights(engine))
    logprobs.append(_logprobs(engine, batch))
    with pytest.raises(ValueError, match="perturbed"):
        engine.step(batch)
    with pytest.raises(ValueError, match="already"):
        engine.perturb(5, 0.1)
    engine.restore_weights()
    engine.restore_weights()
    states.append(_weights(engine))
    logprobs.append(_logprobs(engine, batch))
    assert all(torch.equal(states[0][name], states[2][name]) for name in states[0])
    moves = [float((states[1][name] - weight).norm() / (weight.norm() or 1.0)) for name, weight in states[0].items()]
    losses = [engine.step(pack(make_examples(), dist.get_world_size(), 40, version)).loss for version in (0, 1)]
    engine.close()
    return min(moves), logprobs, losses


def _logprobs(engine: LearnerEngine, batch: object) -> np.ndarray:
    return np.concatenate([logprobs for _, logprobs in sorted(engine.logprobs(batch).items())])


def train_only(model: Path, config: LearnerConfig) -> list[float]:
    engine = LearnerEngine(LearnerSetup(str(model), StudentConfig(), config, ObjectiveConfig(), 10))
    losses = [engine.step(pack(make_examples(), dist.get_world_size(), 40, version)).loss for version in (0, 1)]
    engine.close()
    return losses


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(0, DType.float32), (2, DType.bfloat16), (3, DType.float32)],
)
def test_the_weights_move_come_back_and_train_as_if_nothing_had_been(
    two: Ranks, tiny_tied: Path, stage: int, dtype: DType
) -> None:
    config = LearnerConfig(ranks=2, zero_stage=stage, dtype=dtype, learning_rate=1e-3)
    for moved, (before, perturbed, after), losses in two.run(perturb_and_restore, tiny_tied, config):
        assert moved > 0.05
        np.testing.assert_array_equal(before, after)
        assert np.abs(perturbed - before).mean() > 0.05
        assert losses == two.run(train_only, tiny_tied, config)[0]
