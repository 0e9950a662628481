"""The packed forward against a plain transformers forward of each sequence alone."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3NextConfig,
)

from tutelage.lm.packed import final_hidden_states, load_causal_lm, refuse_unpackable_layers
from tutelage.lm.prefix_tree import lay_out

SHAPE = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
LENGTHS = (1, 17, 40, 2, 9)
CONFIGS = {
    "grouped query heads": LlamaConfig(num_key_value_heads=2, **SHAPE),
    "one head per query": LlamaConfig(num_key_value_heads=4, **SHAPE),
    "sliding window": MistralConfig(num_key_value_heads=2, sliding_window=8, **SHAPE),
    "mixed layers": Qwen3Config(
        num_key_value_heads=2,
        use_sliding_window=True,
        sliding_window=8,
        layer_types=["full_attention", "sliding_attention", "full_attention"],
        **SHAPE,
    ),
}


def save_random_model(config: PreTrainedConfig, directory: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


def states_of(model: PreTrainedModel, sequences: list[torch.Tensor], share: bool = True) -> list[torch.Tensor]:
    tree = lay_out([sequence.numpy() for sequence in sequences], share, shortest=3)
    fields = (tree.token_ids, tree.position_ids, tree.segment_starts, tree.segment_parents)
    states = final_hidden_states(model.base_model, *map(torch.from_numpy, fields))
    return [states[torch.from_numpy(rows)] for rows in tree.rows]


def packed_states(path: Path, sequences: list[torch.Tensor], share: bool = True) -> list[torch.Tensor]:
    model = load_causal_lm(str(path), torch.float32)
    with torch.inference_mode():
        return states_of(model, sequences, share)


def random_sequences(lengths: Sequence[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 300, (length,), generator=generator) for length in lengths]


def related_sequences() -> list[torch.Tensor]:
    """Two questions after one system prompt, one of them answered twice, once with nothing more."""
    system, first, second, answer, other = random_sequences((11, 6, 7, 9, 4))
    return [
        torch.cat([system, first, answer]),
        torch.cat([system, second, answer]),
        torch.cat([system, first, other]),
        torch.cat([system, first]),
        other,
    ]


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_plain(name: str, share: bool, tmp_path: Path) -> None:
    path = save_random_model(CONFIGS[name], tmp_path)
    sequences = [*random_sequences(LENGTHS), *related_sequences()]
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    for sequence, states in zip(sequences, packed_states(path, sequences, share), strict=True):
        with torch.inference_mode():
            expected = plain.base_model(input_ids=sequence[None]).last_hidden_state[0]
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_plain(tmp_path: Path) -> None:
    path = save_random_model(CONFIGS["mixed layers"], tmp_path)
    sequences = related_sequences()
    packed = load_causal_lm(str(path), torch.float32)
    torch.cat(states_of(packed, sequences)).square().sum().backward()
    plain = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    for sequence in sequences:
        plain.base_model(input_ids=sequence[None]).last_hidden_state.square().sum().backward()
    for (name, ours), theirs in zip(packed.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-3, rtol=1e-4, msg=name)


def test_recurrent_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="linear_attention"):
        refuse_unpackable_layers(Qwen3NextConfig())


def test_attention_soft_capping_is_refused(tmp_path: Path) -> None:
    config = Gemma2Config(num_key_value_heads=2, final_logit_softcapping=None, **SHAPE)
    path = save_random_model(config, tmp_path)
    with pytest.raises(ValueError, match="softcap"):
        packed_states(path, [torch.arange(5)])


def test_weights_that_make_no_numbers_are_said_to(tmp_path: Path) -> None:
    """Once "atol must be greater than or equal to zero, but got -nan"."""
    model = LlamaForCausalLM(CONFIGS["grouped query heads"])
    torch.nn.init.constant_(model.get_input_embeddings().weight, torch.nan)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no numbers"):
        load_causal_lm(str(tmp_path), torch.float32)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    model = LlamaForCausalLM(CONFIGS["grouped query heads"])
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_causal_lm(str(tmp_path), torch.float32)
