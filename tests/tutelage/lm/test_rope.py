"""Rotary frequencies: the same for a sequence alone and beside a longer one, and those of the engine."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Phi3Config, PreTrainedConfig, PreTrainedModel

from tutelage.lm.packed import final_hidden_states, load_causal_lm
from tutelage.lm.prefix_tree import lay_out

SHAPE = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2, "pad_token_id": 0}  # fmt: skip
ORIGINAL = 32  # tokens: longer sequences have the long factors
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL,
            "short_factor": [1.0] * 8, "long_factor": [4.0, 5, 6, 7, 8, 9, 10, 11]}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "phi3 longrope": Phi3Config(
        max_position_embeddings=128,
        original_max_position_embeddings=ORIGINAL,
        rope_parameters={**LONGROPE},
        **SHAPE,
    ),
    "llama longrope": LlamaConfig(max_position_embeddings=128, rope_parameters={**LONGROPE}, **SHAPE),
    "dynamic": LlamaConfig(
        max_position_embeddings=ORIGINAL,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
        **SHAPE,
    ),
}
SHORT, LONG = torch.arange(20) % 7 + 1, torch.arange(50) % 11 + 1


def saved(name: str, directory: Path) -> str:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(directory)
    return str(directory)


def states(model: PreTrainedModel, *sequences: torch.Tensor) -> list[torch.Tensor]:
    tree = lay_out([sequence.numpy() for sequence in sequences], False)
    fields = (tree.token_ids, tree.position_ids, tree.segment_starts, tree.segment_parents)
    with torch.inference_mode():
        packed = final_hidden_states(model.base_model, *map(torch.from_numpy, fields))
    return [packed[torch.from_numpy(rows)] for rows in tree.rows]


def plain(path: str, sequence: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model.base_model(input_ids=sequence[None]).last_hidden_state[0]


@pytest.mark.parametrize("longest", [ORIGINAL, 128, None])
@pytest.mark.parametrize("name", CONFIGS)
def test_what_a_sequence_is_packed_with_changes_nothing(name: str, longest: int | None, tmp_path: Path) -> None:
    model = load_causal_lm(saved(name, tmp_path), torch.float32, longest=longest)
    (alone,) = states(model, SHORT)
    for beside in ([SHORT, LONG], [LONG, SHORT]):
        index = 0 if beside[0] is SHORT else 1
        torch.testing.assert_close(states(model, *beside)[index], alone, atol=1e-5, rtol=1e-5)
    (again,) = states(model, SHORT)
    torch.testing.assert_close(again, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_within_the_original_length_are_as_transformers_has_them(name: str, tmp_path: Path) -> None:
    path = saved(name, tmp_path)
    model = load_causal_lm(path, torch.float32, longest=ORIGINAL)
    torch.testing.assert_close(states(model, SHORT)[0], plain(path, SHORT), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["phi3 longrope", "llama longrope"])
def test_long_factors_are_those_of_every_sequence_where_long_ones_may_come(name: str, tmp_path: Path) -> None:
    """vLLM chooses by max_model_len; for a sequence that is long itself transformers says the same."""
    path = saved(name, tmp_path)
    model = load_causal_lm(path, torch.float32, longest=128)
    torch.testing.assert_close(states(model, LONG)[0], plain(path, LONG), atol=1e-5, rtol=1e-5)
    beginning = states(model, LONG[:20])[0]
    torch.testing.assert_close(beginning, states(model, LONG)[0][:20], atol=1e-5, rtol=1e-5)
    assert (beginning - plain(path, LONG[:20])).abs().max() > 0.1  # short factors, which no engine uses here
