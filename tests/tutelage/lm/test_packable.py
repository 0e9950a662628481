"""Which architectures packed sequences leave as they are, tried on small copies."""

import pytest
from transformers import (
    BertConfig,
    FalconConfig,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    PreTrainedConfig,
    RecurrentGemmaConfig,
    StableLmConfig,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tutelage.lm.packable import try_packing

AGREEING = ("cohere2", "deepseek_v3", "gemma", "gemma3_text", "glm4", "gpt2", "gpt_neox", "granite", "llama", "mistral",
            "mixtral", "olmo2", "opt", "phi3", "qwen2", "qwen3", "qwen3_moe", "smollm3", "starcoder2")  # fmt: skip
REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "soft caps": (Gemma2Config(), "softcap"),
    "attention sinks": (GptOssConfig(), "attention"),
    "an attention class of its own": (FalconConfig(alibi=True), "packed_sdpa"),
    "no borders of sequences": (StableLmConfig(), "does not tell it where sequences end"),
    "recurrent layers that the config does not name": (RecurrentGemmaConfig(), "change each other's states"),
    "attention to later tokens": (BertConfig(), "change each other's states"),
}


@pytest.mark.parametrize("name", AGREEING)
def test_the_usual_architectures_agree(name: str) -> None:
    trial = try_packing(CONFIG_MAPPING[name]())
    assert not trial.untried and not trial.refused
    assert trial.difference is not None and trial.difference < 1e-4


@pytest.mark.parametrize("name", REFUSED)
def test_what_packing_would_change_is_refused(name: str) -> None:
    config, why = REFUSED[name]
    assert why in try_packing(config).refused


def test_a_large_model_is_tried_in_the_size_of_its_heads() -> None:
    config = LlamaConfig(
        hidden_size=16384, intermediate_size=53248, num_hidden_layers=126, num_attention_heads=128,
        num_key_value_heads=8, vocab_size=128256, bos_token_id=128000, eos_token_id=[128001, 128009],
    )  # fmt: skip
    trial = try_packing(config)
    assert trial.difference is not None and trial.difference < 1e-4


def test_what_cannot_be_made_small_is_not_judged() -> None:
    trial = try_packing(LlamaConfig(hidden_size=4 * 65536, num_attention_heads=1))
    assert trial.untried and not trial.refused
