"""Training and held-out prompts together: blank ones, and a share that is held out."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.config import DataConfig, HeldoutConfig, PromptSourceConfig, Unusable
from rollout.data.sources import _divided, data_refusals, load_splits
from tests.factories import message
from tutelage.records.prompt import Message, Prompt, normalised


def prompts(texts: Sequence[str]) -> list[Prompt]:
    return [Prompt(str(index), (Message("user", text),)) for index, text in enumerate(texts)]


def data(folder: Path, texts: Sequence[str | None], **settings: object) -> DataConfig:
    for name in ("train", "heldout"):
        rows = [{"prompt": text} for text in (texts if name == "train" else ["else?"])]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train, heldout = (str(folder / f"{name}.jsonl") for name in ("train", "heldout"))
    return DataConfig(PromptSourceConfig(path=train), HeldoutConfig(path=heldout), **settings)  # type: ignore[arg-type]


def test_blank_prompts_are_refused_or_counted(tmp_path: Path) -> None:
    blank = data(tmp_path, ["a?", " \n", None, "b?"])
    with pytest.raises(ValueError, match=r"data\.blank_prompts=refuse: 2 of 4 prompts of data.train .*first: row '1'"):
        load_splits(blank)
    blank.blank_prompts = Unusable.drop
    splits = load_splits(blank)
    assert splits.blank == 2 and [prompt.id for prompt in splits.prompts["train"]] == ["0", "3"]


def test_a_column_of_blank_prompts_is_refused_in_any_case(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.train\.prompt_column=prompt: no prompt has a text"):
        load_splits(data(tmp_path, [" ", None], blank_prompts=Unusable.drop))


def test_a_share_is_held_out_and_not_trained_on(tmp_path: Path) -> None:
    config = data(tmp_path, [f"{number}?" for number in range(100)] + ["7?", " 7? "])
    config.heldout = HeldoutConfig(share=0.1)
    splits = load_splits(config)
    train, heldout = ({normalised(prompt) for prompt in splits.prompts[name]} for name in ("train", "heldout"))
    assert len(heldout) == 10 and len(train) == 90 and not train & heldout
    assert load_splits(config) == splits
    config.heldout = HeldoutConfig(share=0.1, seed=1)
    assert load_splits(config).prompts["heldout"] != splits.prompts["heldout"]
    with pytest.raises(ValueError, match=r"data\.heldout\.share=0\.5: data\.train has too few different prompts"):
        config.heldout = HeldoutConfig(share=0.5)
        config.train.limit = 1
        load_splits(config)


@given(st.lists(st.text(max_size=3), min_size=2), st.floats(0.01, 0.99), st.randoms())
def test_equal_prompts_are_on_one_side_whatever_their_order(texts: list[str], share: float, random: object) -> None:
    heldout, train = _divided(prompts(texts), share, seed=0)
    assert not {normalised(prompt) for prompt in heldout} & {normalised(prompt) for prompt in train}
    assert sorted(prompt.id for prompt in (*heldout, *train)) == sorted(str(index) for index in range(len(texts)))
    shuffled = list(texts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again, _ = _divided(prompts(shuffled), share, seed=0)
    assert {normalised(prompt) for prompt in again} == {normalised(prompt) for prompt in heldout}


def test_settings_of_other_prompts_are_refused_beside_a_share() -> None:
    config = DataConfig(PromptSourceConfig(path="x.jsonl"), HeldoutConfig(share=0.1, path="y.jsonl"))
    refusals = [*data_refusals(config)]
    assert [refusal.key for refusal in refusals] == ["data.heldout.path"] and "data.heldout.path=''" in refusals[0].fix
    assert "data.heldout.share=1.5: must be above 0 and below 1" in message("data.heldout.share=1.5")
