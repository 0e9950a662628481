"""Models that would run and mean nothing, refused with the key of whoever names them."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    LlamaConfig,
    PreTrainedConfig,
    StableLmConfig,
)

from orchestration.prepare.architectures import CPU_HEAD_SIZES
from tests.factories import prepared, refusal

NAMES = {
    "student": ([], "student.model"),
    "teacher": ([], "teacher.model"),
    "a further teacher": (
        ["+teacher@further_teachers.maths=checkpoint", "further_teachers.maths.domains=[maths]"],
        "further_teachers.maths.model",
    ),
    "reference": (["objective=reward_extrapolation"], "objective.reference.model"),
    "an earlier teacher": ([], "probe.earlier_teacher"),
}
SHAPE = {"vocab_size": 576, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32,
         "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip


@pytest.fixture
def copied(tiny_untied: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_untied, tmp_path / "copy"))


def of_architecture(config: PreTrainedConfig, tokenizer: Path, directory: Path) -> Path:
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("who", NAMES)
def test_a_model_without_its_head_is_refused_whoever_names_it(who: str, overrides: list[str], copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copied / "model.safetensors")
    changes, key = NAMES[who]
    text = refusal(overrides, *changes, f"{key}={copied}")
    assert text.startswith(f"{key}={copied}: 1 of 21 weights are missing: lm_head.weight")


def test_everything_that_is_wrong_with_several_models_is_said_at_once(
    overrides: list[str], copied: Path, tmp_path: Path
) -> None:
    (copied / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    other = Path(shutil.copytree(copied, tmp_path / "other"))
    (other / "config.json").write_text("{")
    lines = refusal(overrides, f"teacher.model={copied}", f"probe.earlier_teacher={other}").splitlines()
    assert [line.partition("=")[0] for line in lines] == ["teacher.model", "probe.earlier_teacher"]


def test_a_tokenizer_with_more_ids_than_the_embedding_has_rows_is_refused(overrides: list[str], copied: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copied)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(copied)
    text = refusal(overrides, f"student.model={copied}", f"teacher.model={copied}", "teacher.context=hint")
    assert text.startswith(f"student.model={copied}: its embedding has 576 rows")
    assert "makes 2 ids beyond them (first '<think>', 576)" in text and "resize_token_embeddings" in text


def test_a_token_for_pictures_needs_no_row(overrides: list[str], copied: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(copied, extra_special_tokens={"image_token": "<image>"})
    tokenizer.save_pretrained(copied)
    assert prepared(overrides, f"student.model={copied}", f"teacher.model={copied}", "teacher.context=hint")


def test_ends_of_answers_that_no_answer_can_have_are_refused(overrides: list[str], copied: Path) -> None:
    settings = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [2, 4000]}))
    assert "ends answers with [4000]" in refusal(overrides, f"student.model={copied}")


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "two"}', '{"eos_token_id": [-1]}'])
def test_a_generation_config_that_says_nothing_is_refused(text: str, overrides: list[str], copied: Path) -> None:
    (copied / "generation_config.json").write_text(text)
    line = refusal(overrides, f"student.model={copied}")
    assert line.startswith(f"student.model={copied}: its generation_config.json")


def test_soft_caps_are_refused_without_flash_attention(overrides: list[str], tiny_tied: Path, tmp_path: Path) -> None:
    path = of_architecture(Gemma2Config(**SHAPE), tiny_tied, tmp_path / "gemma2")
    text = refusal(overrides, f"teacher.model={path}")
    assert text.startswith(f"teacher.model={path}: a gemma2 model cannot run on packed sequences") and "softcap" in text
    assert "teacher.backend=vllm" in text and "scoring.attention=flash_attention_2 on GPUs" in text
    engine = ["teacher.backend=vllm", "objective=sampled_reverse_kl", "sampling.stops=as_they_are"]
    assert prepared(overrides, f"teacher.model={path}", *engine)


def test_an_architecture_that_hides_where_sequences_end_is_refused(
    overrides: list[str], tiny_tied: Path, tmp_path: Path
) -> None:
    shape = {name: value for name, value in SHAPE.items() if name != "head_dim"}
    path = of_architecture(StableLmConfig(**shape), tiny_tied, tmp_path / "stablelm")
    text = refusal(overrides, f"student.model={path}")
    assert text.startswith(f"student.model={path}: a stablelm model cannot run on packed sequences")
    assert "docs/architectures.md" in text


def test_a_model_that_does_not_predict_text_is_refused(overrides: list[str], copied: Path) -> None:
    (copied / "config.json").write_text(json.dumps({"model_type": "vit", "architectures": ["ViTModel"]}))
    text = refusal(overrides, f"teacher.model={copied}")
    assert f"teacher.model={copied}: transformers cannot build a causal language model of its config.json" in text


def test_a_quantised_student_is_refused(overrides: list[str], copied: Path) -> None:
    settings = json.loads((copied / "config.json").read_text())
    quantised = {"quantization_config": {"quant_method": "fp8"}}
    (copied / "config.json").write_text(json.dumps(settings | quantised))
    assert "those cannot be trained" in refusal(overrides, f"student.model={copied}")


def test_a_teacher_is_not_quantised_twice(overrides: list[str], copied: Path) -> None:
    settings = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(settings | {"quantization_config": {"quant_method": "fp8"}}))
    text = refusal(overrides, f"teacher.model={copied}", "teacher.quantization=int8")
    assert f"teacher.quantization=int8: the weights of {copied} are quantised already; set none" in text


def test_a_type_with_code_of_its_own_is_refused_with_the_key_of_whoever_names_it(
    overrides: list[str], copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    settings = json.loads((copied / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (copied / "config.json").write_text(json.dumps(settings | own))
    for key in ("student", "teacher"):
        text = refusal(overrides, f"{key}.model={copied}")
        assert f"{key}.model={copied}: comes with code of its own (own: auto_map)" in text
        assert f"set {key}.trust_remote_code=true" in text


def test_head_sizes_of_the_cpu_engine_are_vllms() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    assert list(CPU_HEAD_SIZES) == CPUAttentionBackend.get_supported_head_sizes()


def test_heads_without_a_kernel_are_refused(overrides: list[str], tiny_tied: Path, tmp_path: Path) -> None:
    path = of_architecture(LlamaConfig(**(SHAPE | {"head_dim": 48})), tiny_tied, tmp_path / "narrow")
    assert f"student.model={path}: its heads have size 48" in refusal(overrides, f"student.model={path}")
    assert prepared(overrides, f"teacher.model={path}")
    engine = [f"teacher.model={path}", "teacher.backend=vllm", "objective=sampled_reverse_kl"]
    assert f"teacher.model={path}: its heads have size 48" in refusal(overrides, *engine)
