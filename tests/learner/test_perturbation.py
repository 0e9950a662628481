"""Noise on every weight, and the way back."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from learner.perturbation import Perturbation


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_weight_moves_by_a_share_of_its_spread_and_comes_back_bit_for_bit(
    tiny_tied: Path, dtype: torch.dtype
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_tied, dtype=dtype)
    zeros = model.model.norm.weight.data.zero_()  # the noise of a weight that is all zeros has a spread of 1 x size
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    perturbation = Perturbation(model, sharded=False, seed=3, size=0.1)
    for name, weight in model.named_parameters():
        moved = (weight - before[name]).float().square().mean().sqrt()
        spread = before[name].float().square().mean().sqrt() or 1.0
        assert 0.07 < moved / spread < 0.13, name
    assert zeros.float().std() > 0.07
    assert model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    perturbation.restore()
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_the_noise_is_that_of_its_seed(tiny_tied: Path) -> None:
    def perturbed(seed: int) -> torch.Tensor:
        model = AutoModelForCausalLM.from_pretrained(tiny_tied, dtype=torch.float32)
        Perturbation(model, sharded=False, seed=seed, size=0.1)
        return model.lm_head.weight.detach()

    assert torch.equal(perturbed(1), perturbed(1)) and not torch.equal(perturbed(1), perturbed(2))
