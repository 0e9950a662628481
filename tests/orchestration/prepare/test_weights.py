"""Checkpoints that hold less than, or something else than, what their config.json needs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaModel,
    MixtralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

from orchestration.prepare.checkpoints import LAB_MODELS
from orchestration.prepare.weights import INDEX, SINGLE_FILE, checkpoint_refusals
from tutelage.settings import Refusal

SHAPE = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
         "num_key_value_heads": 1}  # fmt: skip
VISION = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
          "image_size": 28, "patch_size": 14}  # fmt: skip
ARCHITECTURES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "tied llama": LlamaConfig(tie_word_embeddings=True, **SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "gpt2, whose names change as it is loaded": GPT2Config(vocab_size=96, n_embd=32, n_layer=2, n_head=2),
    "neox": GPTNeoXConfig(**{k: v for k, v in SHAPE.items() if k != "num_key_value_heads"}),
    "phi3, whose projections are merged": Phi3Config(pad_token_id=0, **SHAPE),
    "mixtral, whose experts are merged": MixtralConfig(num_local_experts=2, **SHAPE),
    "qwen3 moe": Qwen3MoeConfig(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=16, **SHAPE),
    "text and pictures": Gemma3Config(text_config={**SHAPE, "head_dim": 16}, vision_config=VISION),
}


def refused(path: Path) -> list[Refusal]:
    return list(checkpoint_refusals(AutoConfig.from_pretrained(path), str(path), "teacher.model", False))


def only(path: Path) -> str:
    (refusal,) = refused(path)
    assert refusal.key == "teacher.model"
    return str(refusal)


@pytest.fixture
def checkpoint(tiny_untied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_untied, tmp_path / "copy"))


def rewritten(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    save_file(change(load_file(path / SINGLE_FILE)), path / SINGLE_FILE)
    return path


def without(tensors: dict[str, Tensor], word: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if word not in name}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_transformers_saves_is_whole(name: str, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name])
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / INDEX).is_file()
    assert not refused(tmp_path / "one") and not refused(tmp_path / "sharded")


def test_the_labs_models_are_whole() -> None:
    assert not [refusal for path in sorted(LAB_MODELS.iterdir()) for refusal in refused(path)]


def test_names_without_the_prefix_of_the_backbone_are_understood(checkpoint: Path) -> None:
    rewritten(checkpoint, lambda tensors: {name.removeprefix("model."): t for name, t in tensors.items()})
    assert not refused(checkpoint)


def test_a_lost_head_is_named(checkpoint: Path) -> None:
    text = only(rewritten(checkpoint, lambda tensors: without(tensors, "lm_head")))
    assert "1 of 21 weights are missing: lm_head.weight; they would be random numbers" in text
    assert "model.safetensors had 20" in text


def test_a_backbone_alone_has_no_head(tmp_path: Path) -> None:
    LlamaModel(ARCHITECTURES["llama"]).save_pretrained(tmp_path)
    assert "missing: lm_head.weight" in only(tmp_path)


def test_a_lost_layer_is_named(checkpoint: Path) -> None:
    text = only(rewritten(checkpoint, lambda tensors: without(tensors, "layers.1.")))
    assert "9 of 21 weights are missing: model.layers.1." in text and "and 5 more" in text


def test_a_lost_expert_is_named(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(ARCHITECTURES["mixtral, whose experts are merged"]).save_pretrained(tmp_path)
    assert any("experts.1" in name for name in load_file(tmp_path / SINGLE_FILE))
    assert "experts" in str(refused(rewritten(tmp_path, lambda tensors: without(tensors, "experts.1.")))[0])


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "causal_lm.", "student.policy."])
def test_a_wrappers_prefix_is_named(prefix: str, checkpoint: Path) -> None:
    text = only(rewritten(checkpoint, lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}))
    assert f"Its names begin with {prefix}" in text and f"take {prefix} off every name" in text


def test_other_shapes_are_named(checkpoint: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    text = only(rewritten(checkpoint, lambda tensors: {**tensors, name: tensors[name][:100].clone()}))
    assert f"first {name}: [100, 128] in model.safetensors, [256, 128] by config.json" in text


def test_a_config_of_fewer_layers_leaves_weights_unused(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    assert "9 weights that the model of its config.json (LlamaForCausalLM) does not use: model.layers.1." in only(
        checkpoint
    )


def test_a_bias_that_the_config_leaves_out_is_named(checkpoint: Path) -> None:
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}
    assert "self_attn.q_proj.bias" in only(rewritten(checkpoint, lambda tensors: tensors | bias))


def test_a_head_of_its_own_that_the_config_ties_is_named(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert "ties lm_head.weight to another weight" in only(checkpoint)
    rewritten(checkpoint, lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()})
    assert not refused(checkpoint)


def test_a_value_head_and_frequencies_of_older_versions_do_not_matter(checkpoint: Path) -> None:
    extra = {"v_head.weight": torch.zeros(1, 128), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(16)}
    assert not refused(rewritten(checkpoint, lambda tensors: tensors | extra))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_usual_storage_types_are_loaded(dtype: torch.dtype, checkpoint: Path) -> None:
    assert not refused(rewritten(checkpoint, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()}))


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float8_e4m3fn, "F8_E4M3"), (torch.float64, "F64"), (torch.int8, "I8")]
)
def test_other_storage_types_are_named(dtype: torch.dtype, name: str, checkpoint: Path) -> None:
    text = only(rewritten(checkpoint, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()}))
    assert f"21 weights are stored as {name}" in text and "float32, float16 or bfloat16" in text


def test_an_lfs_pointer_is_named(checkpoint: Path) -> None:
    (checkpoint / SINGLE_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n")
    text = only(checkpoint)
    assert text.startswith(f"teacher.model={checkpoint / SINGLE_FILE}: ") and "git lfs pull" in text


@pytest.mark.parametrize("kept", [0, 5, 8, 100, -1, -4096])
def test_a_file_that_was_cut_short_is_named(kept: int, checkpoint: Path) -> None:
    data = (checkpoint / SINGLE_FILE).read_bytes()
    (checkpoint / SINGLE_FILE).write_bytes(data[:kept])
    text = only(checkpoint)
    assert str(checkpoint / SINGLE_FILE) in text and f"{len(data[:kept]):,} bytes" in text and "cut short" in text


def test_a_header_that_claims_the_memory_of_the_machine_is_refused(checkpoint: Path) -> None:
    (checkpoint / SINGLE_FILE).write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "cannot be read as safetensors" in only(checkpoint)


def test_a_lost_shard_is_named(checkpoint: Path) -> None:
    sharded(checkpoint, 3)
    (checkpoint / "model-2.safetensors").unlink()
    assert "lists model-2.safetensors, not in the directory: a shard is lost" in only(checkpoint)


def test_a_lost_index_is_named(checkpoint: Path) -> None:
    sharded(checkpoint, 2)
    (checkpoint / INDEX).unlink()
    assert f"neither {SINGLE_FILE} nor {INDEX}" in only(checkpoint)


def test_a_weight_that_is_not_in_its_shard_is_named(checkpoint: Path) -> None:
    sharded(checkpoint, 2)
    save_file(without(load_file(checkpoint / "model-1.safetensors"), "model.norm"), checkpoint / "model-1.safetensors")
    save_file(without(load_file(checkpoint / "model-0.safetensors"), "model.norm"), checkpoint / "model-0.safetensors")
    assert "lists weights that are not in their files: model.norm.weight" in only(checkpoint)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "is no index of weights"),
        ("[]", "is no index of weights"),
        ('{"weight_map": {"a": "../../etc/model.safetensors"}}', "files of its own directory"),
        ("version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    ],
)
def test_a_broken_index_is_named(text: str, problem: str, checkpoint: Path) -> None:
    sharded(checkpoint, 2)
    (checkpoint / INDEX).write_text(text)
    assert problem in only(checkpoint) and str(checkpoint / INDEX) in only(checkpoint)


def test_a_weight_in_two_shards_is_named(checkpoint: Path) -> None:
    sharded(checkpoint, 2)
    both = load_file(checkpoint / "model-0.safetensors") | load_file(checkpoint / "model-1.safetensors")
    save_file(both, checkpoint / "model-0.safetensors")
    assert "in more than one file" in only(checkpoint)


def test_a_pipe_is_not_waited_for(checkpoint: Path) -> None:
    (checkpoint / SINGLE_FILE).unlink()
    os.mkfifo(checkpoint / SINGLE_FILE)
    assert "not a file" in only(checkpoint)


def test_a_link_to_nothing_is_named(checkpoint: Path) -> None:
    (checkpoint / SINGLE_FILE).unlink()
    (checkpoint / SINGLE_FILE).symlink_to("gone")
    assert "a link to nothing" in only(checkpoint)


def test_two_models_in_one_directory_are_refused(checkpoint: Path) -> None:
    shutil.copy(checkpoint / SINGLE_FILE, checkpoint / "old.safetensors")
    assert "old.safetensors beside model.safetensors" in only(checkpoint)
    (checkpoint / INDEX).write_text(json.dumps({"weight_map": {"lm_head.weight": "old.safetensors"}}))
    assert "may be two models" in only(checkpoint)


def test_a_config_of_more_layers_than_weights_is_not_built(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    assert "num_hidden_layers=1000000000, and the files have 21 weights" in only(checkpoint)


def test_a_quantised_checkpoint_is_checked_by_modules(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    (checkpoint / "config.json").write_text(json.dumps(config | quantised))
    rewritten(
        checkpoint, lambda tensors: {n: t.to(torch.float8_e4m3fn) if t.dim() > 1 else t for n, t in tensors.items()}
    )
    assert not refused(checkpoint)
    assert "lm_head.weight" in only(rewritten(checkpoint, lambda tensors: without(tensors, "lm_head")))


def sharded(path: Path, count: int, choose: Callable[[int], int] | None = None) -> None:
    """Split a checkpoint's one file into several with an index."""
    tensors = load_file(path / SINGLE_FILE)
    (path / SINGLE_FILE).unlink()
    files = {name: f"model-{(choose or (lambda i: i))(i) % count}.safetensors" for i, name in enumerate(tensors)}
    for file in {*files.values()}:
        save_file({name: tensors[name] for name in tensors if files[name] == file}, path / file)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": files}))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_split_passes_and_any_harm_is_named(
    data: st.DataObject, tiny_untied: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = Path(shutil.copytree(tiny_untied, tmp_path_factory.mktemp("split") / "copy"))
    tensors = load_file(path / SINGLE_FILE)
    victim = data.draw(st.sampled_from(sorted(tensors)))
    harm = data.draw(st.sampled_from(["none", "removed", "renamed", "reshaped"]))
    changed = {name: tensor for name, tensor in tensors.items() if name != victim or harm == "none"}
    if harm == "renamed":
        changed[f"{victim}_"] = tensors[victim]
    elif harm == "reshaped":
        changed[victim] = tensors[victim].flatten()[:-1].clone()
    save_file(changed, path / SINGLE_FILE)
    places = data.draw(st.lists(st.integers(0, 4), min_size=len(changed), max_size=len(changed)))
    sharded(path, 5, places.__getitem__)
    messages = [str(refusal) for refusal in refused(path)]
    assert bool(messages) == (harm != "none")
    assert all(victim in message for message in messages)
