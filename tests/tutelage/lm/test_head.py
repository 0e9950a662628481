"""What models make of their LM head's output, against the models themselves."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    NanoChatConfig,
    PreTrainedConfig,
)

from tests.scoring.reference import Reference, load_teacher, random_request
from tutelage.lm.head import LogitTransform

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "plain": (LlamaConfig(**SHAPE), LogitTransform()),
    "divided": (GraniteConfig(logits_scaling=8.0, **SHAPE), LogitTransform(1 / 8)),
    "multiplied": (CohereConfig(logit_scale=0.0625, **SHAPE), LogitTransform(0.0625)),
    "multiplied, second kind": (Cohere2Config(logit_scale=0.25, **SHAPE), LogitTransform(0.25)),
    "capped": (Gemma2Config(final_logit_softcapping=3.0, **SHAPE), LogitTransform(cap=3.0)),
    "uncapped": (Gemma3TextConfig(final_logit_softcapping=None, **SHAPE), LogitTransform()),
    "capped by default": (NanoChatConfig(**SHAPE), LogitTransform(cap=15.0)),
}


@pytest.mark.parametrize(("config", "expected"), CONFIGS.values(), ids=CONFIGS)
def test_head_and_transform_give_the_models_logits(config: PreTrainedConfig, expected: LogitTransform) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    transform = LogitTransform.of(config)
    assert transform == expected
    ids = torch.randint(3, 300, (1, 12))
    with torch.inference_mode():
        states = model.base_model(input_ids=ids).last_hidden_state[0]
        logits = transform.apply_(model.get_output_embeddings()(states))
        torch.testing.assert_close(logits, model(input_ids=ids).logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("transform", [LogitTransform(0.25), LogitTransform(2.0, 3.0), LogitTransform(cap=0.5)])
def test_the_slope_is_the_derivative(transform: LogitTransform) -> None:
    u = torch.linspace(-4, 4, 33, dtype=torch.float64).requires_grad_()
    capped = (
        u * transform.factor if transform.cap is None else (u * transform.factor / transform.cap).tanh() * transform.cap
    )
    capped.sum().backward()
    logits = transform.apply_(u.detach().clone())
    torch.testing.assert_close(logits, capped.detach())
    torch.testing.assert_close(transform.slope(logits, out=torch.empty_like(logits)), u.grad)


def test_a_teacher_with_scaled_logits_marks_as_the_model_does(tmp_path: Path) -> None:
    config = CONFIGS["divided"][0]
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    request = random_request(7, 9, vocabulary=300)
    teacher = load_teacher(tmp_path)
    (signal,) = teacher.score([request])
    expected = Reference(tmp_path).logprobs(request)
    np.testing.assert_allclose(signal.logprobs, expected[np.arange(9), request.response_ids], atol=1e-5)
    assert teacher.lm_head().transform == LogitTransform(1 / 8)


def test_a_model_whose_logits_are_made_in_an_unknown_way_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a known way that is forgotten stands for an unknown one."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS["divided"][0], dtype=torch.float32).save_pretrained(tmp_path)
    assert load_teacher(tmp_path).vocabulary_size == 300
    monkeypatch.setattr("tutelage.lm.head._DIVISORS", ())
    with pytest.raises(ValueError, match=r"not known here \(GraniteForCausalLM\)"):
        load_teacher(tmp_path)
