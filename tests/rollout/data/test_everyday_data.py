"""The everyday questions that the quickstart trains on and is judged by."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

DATA = Path(__file__).parents[3] / "conf" / "data"
SPLITS = ("train", "heldout")


def read_rows(split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / f"everyday_{split}.jsonl").read_text("utf-8").splitlines()]


def normalised_tokens(prompt: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", prompt.lower()))


def jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    return len(left & right) / len(left | right)


@pytest.mark.parametrize(("split", "least"), [("train", 360), ("heldout", 64)])
def test_each_split_is_large_enough(split: str, least: int) -> None:
    assert len(read_rows(split)) >= least


@pytest.mark.parametrize("split", SPLITS)
def test_rows_have_the_three_columns_and_a_question_of_sane_length(split: str) -> None:
    for row in read_rows(split):
        assert set(row) == {"id", "prompt", "domain"}
        assert row["prompt"] == row["prompt"].strip()
        assert 5 <= len(row["prompt"].split()) <= 25, row


def test_ids_are_unique_across_splits() -> None:
    ids = [row["id"] for split in SPLITS for row in read_rows(split)]
    assert len(ids) == len(set(ids))


def test_no_two_prompts_are_near_duplicates_within_or_across_splits() -> None:
    prompts = [row["prompt"] for split in SPLITS for row in read_rows(split)]
    pairs = combinations([(prompt, normalised_tokens(prompt)) for prompt in prompts], 2)
    assert [(a, b) for (a, a_tokens), (b, b_tokens) in pairs if jaccard(a_tokens, b_tokens) >= 0.8] == []


def test_domains_are_many_and_even_and_shared_by_the_splits() -> None:
    train, heldout = (Counter(row["domain"] for row in read_rows(split)) for split in SPLITS)
    assert set(train) == set(heldout)
    assert len(train) >= 20
    assert max(train.values()) <= 2 * min(train.values())
    assert max(heldout.values()) <= 2 * min(heldout.values())


def test_any_prefix_of_the_training_rows_mixes_domains() -> None:
    first = read_rows("train")[:20]
    assert len({row["domain"] for row in first}) == len(first)
