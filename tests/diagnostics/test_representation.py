from pathlib import Path

import numpy as np
import pytest
import torch

from diagnostics.representation import Reading, attention_agreement, compare_models, linear_cka
from tests.models import make_tiny_model


def test_cka_is_blind_to_rotation_and_scale_and_not_to_other_content() -> None:
    torch.manual_seed(0)
    left = torch.randn(50, 6)
    rotation = torch.linalg.qr(torch.randn(6, 6)).Q
    assert linear_cka(left, 3 * left @ rotation + 1) == pytest.approx(1.0)
    assert linear_cka(left, torch.randn(50, 4)) < 0.5


def test_attention_agrees_with_itself_and_not_with_what_looks_elsewhere() -> None:
    assert attention_agreement(torch.eye(3), torch.eye(3)) == 1
    assert attention_agreement(torch.eye(3), torch.eye(3)[[1, 2, 0]]) == 0


def test_a_model_is_like_itself_and_less_like_another(tmp_path: Path) -> None:
    one = make_tiny_model(tmp_path / "one", tied=True)
    other = make_tiny_model(tmp_path / "other", tied=True, seed=1)
    rng = np.random.default_rng(0)
    ids = [rng.integers(5, 300, 12).astype(np.int32) for _ in range(6)]
    same = compare_models(str(one), str(one), [Reading(x[:4], x[:4], x[4:]) for x in ids])
    assert [layer.layer for layer in same] == [1, 2]
    assert all(layer.cka == pytest.approx(1.0) and layer.attention_agreement == pytest.approx(1.0) for layer in same)
    told = compare_models(str(one), str(one), [Reading(x[:4], np.concatenate([x[:3], x[:4]]), x[4:]) for x in ids])
    different = compare_models(str(one), str(other), [Reading(x[:4], x[:4], x[4:]) for x in ids])
    assert all(a.cka > b.cka for a, b in zip(told, different, strict=True))
    assert all(layer.attention_agreement < 1 for layer in different)
