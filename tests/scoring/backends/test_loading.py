"""Where a teacher's model is put; on several devices it says the same."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from scoring.backends import loading
from scoring.backends.loading import _refuse_overflow, place
from tests.scoring.reference import load_teacher, random_request


def test_a_worker_with_several_gpus_spreads_its_model() -> None:
    assert place(0) == {"": "cpu"}
    assert place(0.5) == place(1) == {"": "cuda"}
    assert place(2) == "auto"


def test_a_model_that_is_split_says_the_same(tiny_untied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Split between memory and disk, by the same hooks that move states from GPU to GPU."""
    request = random_request(9, 20, support=3, top_k=4)
    (whole,) = load_teacher(tiny_untied).score([request])
    parts = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk",
             "model.norm": "cpu", "lm_head": "cpu"}  # fmt: skip
    monkeypatch.setattr(loading, "place", lambda _gpus: parts)
    teacher = load_teacher(tiny_untied)
    assert teacher._backbone.layers[1].mlp.up_proj.weight.is_meta  # fetched as its turn comes
    (split,) = teacher.score([request])
    np.testing.assert_array_equal(split.logprobs, whole.logprobs)
    np.testing.assert_array_equal(split.top_ids, whole.top_ids)
    np.testing.assert_allclose(teacher.reference_logprobs_for_check(request), whole.logprobs, atol=1e-4)


def test_gpus_that_cannot_hold_the_teacher_are_named() -> None:
    model = SimpleNamespace(hf_device_map={"model.layers.0": 0, "model.layers.1": 1, "lm_head": "cpu"})
    with pytest.raises(ValueError, match=r"scoring.gpus_per_worker=2: .*left to cpu"):
        _refuse_overflow(model, 2)  # type: ignore[arg-type]
    _refuse_overflow(model, 0)  # type: ignore[arg-type]
