"""Whether an architecture computes the same on packed sequences as on each alone, tried on a small copy of it."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from tutelage.lm.packed import PACKED_SDPA, final_hidden_states
from tutelage.lm.prefix_tree import lay_out
from tutelage.lm.rope import fix_frequencies

_HEADS = 4
_VOCABULARY = 128
_WINDOW = 8  # of sliding-window layers, shorter than the longest sequence below
_LENGTHS = (17, 5, 11)
_SEVERAL_HEADS = {"num_attention_heads": _HEADS, "n_head": _HEADS, "n_heads": _HEADS, "num_heads": _HEADS}
_SMALL = {
    "vocab_size": _VOCABULARY, "vocab_size_per_layer_input": _VOCABULARY, "intermediate_size": 96, "n_inner": 96,
    "ffn_dim": 96, "ffn_hidden_size": 96, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32,
    "expert_ffn_hidden_size": 32, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "moe_num_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2, "moe_k": 2, "n_group": 1, "topk_group": 1,
}  # fmt: skip
_WIDTHS = ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WINDOWS = ("sliding_window", "window_size", "attention_window")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_MOST_PARAMETERS = 2 * 10**8  # of a small copy: what does not get smaller than this is not tried
AGREES = 1e-3  # relative to the largest state; float32 leaves about 1e-6, and what is wrong is above 0.1

_tried: dict[tuple[str, int | None], "PackingTrial"] = {}  # the stages of a recipe have the same models


@dataclass(frozen=True)
class PackingTrial:
    """What became of a small copy of an architecture."""

    difference: float | None = None  # between packed and alone, relative to the largest state; None: not compared
    problem: str = ""  # why packed attention cannot run it
    untried: str = ""  # why no small copy of it was made

    @property
    def refused(self) -> str:
        """What speaks against packing it; empty where nothing does, or where nothing is known."""
        if self.problem:
            return self.problem
        if self.difference is not None and not self.difference < AGREES:
            return f"packed sequences change each other's states by {self.difference:.1g} of the largest one"
        return ""


def try_packing(config: PreTrainedConfig, longest: int | None = None) -> PackingTrial:
    """Run a small copy of an architecture with random weights on packed sequences, and on each of them alone.

    Sizes alone differ from the model that the config describes: kinds of layers, heads, positions and factors stay.

    Args:
        longest: tokens of a sequence, as for `load_causal_lm`.
    """
    case = config.to_json_string(use_diff=False), longest
    if case not in _tried:
        _tried[case] = _try(config, longest)
    return _tried[case]


def _try(config: PreTrainedConfig, longest: int | None) -> PackingTrial:
    if getattr(config.get_text_config(), "num_attention_heads", None) is None:
        return PackingTrial(problem="its config names no attention heads: it carries a state from token to token")
    try:
        small = _small_copy(config.get_text_config())
        plain = _build(small, "eager")
        sequences = [torch.arange(n) * 37 % (_VOCABULARY - 2) + 1 for n in _LENGTHS]
        fix_frequencies(plain, longest)
        with torch.inference_mode():
            outputs = [plain.base_model(input_ids=sequence[None], use_cache=False) for sequence in sequences]
        alone: list[Tensor] = [output.last_hidden_state[0] for output in outputs]
    except Exception as error:  # a config of anybody's: what cannot be made small is judged when it is loaded
        return PackingTrial(untried=_in_one_line(error))
    try:
        packed = _build(small, PACKED_SDPA)
        packed.load_state_dict(plain.state_dict())
        fix_frequencies(packed, longest)
        tree = lay_out([sequence.numpy() for sequence in sequences], share=False)
        layout = (tree.token_ids, tree.position_ids, tree.segment_starts, tree.segment_parents)
        with torch.inference_mode():
            states = final_hidden_states(packed.base_model, *map(torch.from_numpy, layout))
    except KeyError as error:
        return PackingTrial(problem=f"it chooses its attention from classes of its own, which have no {error}")
    except Exception as error:  # whatever a forward of any architecture raises
        return PackingTrial(problem=_in_one_line(error))
    pairs = zip(alone, (states[torch.from_numpy(rows)] for rows in tree.rows), strict=True)
    return PackingTrial(max(float((ours - theirs).abs().max() / theirs.abs().max()) for theirs, ours in pairs))


def _build(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    """
    Raises:
        ValueError: the model would be large all the same; and what an architecture raises at its own config.
    """
    settings = copy.deepcopy(config)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(copy.deepcopy(config), trust_remote_code=False)
    size = sum(parameter.numel() for parameter in empty.parameters())
    if size > _MOST_PARAMETERS:
        raise ValueError(f"its smallest copy has {size:,} parameters")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            settings, trust_remote_code=False, attn_implementation=attention, dtype=torch.float32
        )
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2 if parameter.shape[-1] < 256 else 0.05)
    return model.eval()


def _small_copy(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same architecture with few narrow layers of few experts over few tokens; heads keep their size."""
    written = config.to_dict()
    there = {*written, *config.attribute_map}
    heads, layers = config.num_attention_heads, config.num_hidden_layers
    head_size = written.get("head_dim") or config.hidden_size // heads
    kinds = list(dict.fromkeys(written.get("layer_types") or []))
    count = min(layers, max(2, len(kinds)))
    values: dict[str, Any] = {**_SMALL, **_SEVERAL_HEADS}
    values |= dict.fromkeys(_WIDTHS, _HEADS * head_size) | dict.fromkeys(_LAYERS, count)
    values |= dict.fromkeys(_WINDOWS, _WINDOW) | dict.fromkeys(_TOKENS, 0)
    values["num_kv_shared_layers"] = 0  # layers that read the keys of earlier ones need a certain number of those
    per_layer: dict[str, Any] = {
        name: value[:count] for name, value in written.items() if isinstance(value, list) and len(value) == layers
    }
    if kinds:
        per_layer["layer_types"] = (kinds * count)[:count]
    changed = {name: value for name, value in values.items() if name in there and written.get(name, 1) is not None}
    key_heads = written.get("num_key_value_heads") or heads
    few = 1 if key_heads == 1 else _HEADS if key_heads == heads else 2
    changed |= {name: value for name, value in (("head_dim", head_size), ("num_key_value_heads", few)) if name in there}
    kept = {name: value for name, value in written.items() if name not in ("quantization_config", "auto_map")}
    own = {i: value for i, value in (written.get("per_layer_config") or {}).items() if int(i) < count}
    if "per_layer_config" in written:
        kept["per_layer_config"] = own
    aliases = {config.attribute_map.get(name, name): value for name, value in changed.items()}
    return type(config).from_dict({**kept, **aliases, **per_layer})


def _in_one_line(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return text if type(error) is ValueError else f"{type(error).__name__}: {text}"
