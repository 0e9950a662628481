"""The lab's tokenizer and untrained models."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestration.lab.untrained import make_tokenizer, write_untrained
from orchestration.prepare.inputs import prepare
from tests.factories import configured, student_reads
from tutelage.chat import Chat
from tutelage.records.prompt import Message, Prompt
from tutelage.stops import generation_ends, stop_token_ids

TOKENIZER = make_tokenizer()


def tokens(text: str) -> list[str]:
    return [TOKENIZER.decode([token]) for token in TOKENIZER(text)["input_ids"]]


def test_every_id_of_the_vocabulary_is_a_token() -> None:
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(512))


def test_digits_stand_alone_and_the_marker_is_one_token() -> None:
    assert tokens("7+6=13;5+8+1=14####843") == [*"7+6=13;5+8+1=14", "####", *"843"]
    assert tokens("reverse 58312")[-5:] == list("58312")


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text


def test_the_marker_survives_where_special_tokens_are_skipped() -> None:
    prompt = Prompt("1", (Message("user", "457+386="),), completion="####843")
    ids = Chat(TOKENIZER).render([prompt], completions=True)[0].completion_ids
    assert ids is not None
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "####843"
    assert ids[-1] == TOKENIZER.eos_token_id == TOKENIZER.pad_token_id


def test_the_chat_template() -> None:
    prompt = Prompt("1", (Message("system", "carry"), Message("user", "457+386=")))
    text = "<|system|>carry<|end|><|user|>457+386=<|end|><|assistant|>"
    assert TOKENIZER.decode(student_reads(TOKENIZER, prompt).ids) == text
    assert tokens("<|user|>1<|end|><|assistant|>") == ["<|user|>", "1", "<|end|>", "<|assistant|>"]


@pytest.mark.parametrize("layers", [3, 4])
def test_a_checkpoint_is_the_same_for_the_same_seed(layers: int, tmp_path: Path) -> None:
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        write_untrained(tmp_path / name, layers, seed)
    first, again, other = (
        {f.name: f.read_bytes() for f in (tmp_path / n).iterdir()} for n in ("first", "again", "other")
    )
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}
    assert 2e6 <= len(first["model.safetensors"]) <= 4.4e6


def test_a_checkpoint_is_a_model_with_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_untrained(tmp_path, 3, 0)
    assert capsys.readouterr() == ("", "")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert model.dtype is torch.float32
    assert 0.5e6 < sum(weight.numel() for weight in model.parameters()) < 1.1e6
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab() and tokenizer.chat_template == TOKENIZER.chat_template
    assert stop_token_ids(tokenizer, generation_ends(str(tmp_path))) == {TOKENIZER.eos_token_id}


def test_an_untrained_model_knows_nothing(tmp_path: Path) -> None:
    write_untrained(tmp_path, 3, 0)
    ids_BT = torch.tensor([TOKENIZER("<|user|>457+386=<|end|><|assistant|>7+6=13")["input_ids"]])
    with torch.no_grad():
        logits_BTV = AutoModelForCausalLM.from_pretrained(tmp_path)(ids_BT).logits
    loss = torch.nn.functional.cross_entropy(logits_BTV[0, :-1], ids_BT[0, 1:])
    assert loss.item() == pytest.approx(torch.tensor(512.0).log().item(), abs=0.3)


def test_a_run_on_it_is_prepared(tmp_path: Path) -> None:
    write_untrained(tmp_path / "student", 3, 0)
    write_untrained(tmp_path / "teacher", 4, 1)
    overrides = [
        *(f"{role}.model={tmp_path / role}" for role in ("student", "teacher")),
        "teacher.context=null",
        *(
            f"data.{half}.{setting}"
            for half in ("train", "heldout")
            for setting in ("kind=digit_tasks", "task=column_sums")
        ),
        "data.heldout.split=heldout",
        "data.verifier=final_answer",
        "rollout.max_model_len=128",
    ]
    found = prepare(configured(*overrides))
    assert (len(found.train), len(found.heldout), found.over_length) == (256, 32, 0)
    assert not {item.prompt.id for item in found.train} & {item.prompt.id for item in found.heldout}
