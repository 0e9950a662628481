"""Scores in an endpoint's answer: exact, or recognised as garbled."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.backends.server.answers import (
    check_positions,
    read_models,
    read_prompt_logprobs,
    scored_logprobs,
    scored_top,
)
from scoring.backends.server.client import GarbledAnswer

VOCABULARY = 12


def answer(rows: np.ndarray, ids: np.ndarray, top_k: int, ranked: bool) -> list[Any]:
    """Entries as vLLM writes them: the token that came first, then the most likely ones."""
    entries: list[Any] = [None]
    for token_id, row in zip(ids[1:].tolist(), rows, strict=True):
        order = np.argsort(-row, kind="stable").tolist()
        entry = {str(i): {"logprob": float(row[i]), "rank": order.index(i) + 1} for i in [token_id, *order[:top_k]]}
        entries.append({i: found if ranked else {"logprob": found["logprob"]} for i, found in entry.items()})
    return entries


def content(entries: Any) -> bytes:
    return json.dumps({"choices": [{"prompt_logprobs": entries}]}).encode()


def case(tokens: int, seed: int, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids [N] and log-probs [N - 1, V]; with few levels there are many ties."""
    generator = np.random.default_rng(seed)
    logits = generator.integers(0, levels, (tokens - 1, VOCABULARY)).astype(np.float64)
    rows = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    return generator.integers(0, VOCABULARY, tokens, dtype=np.int32), rows


@given(
    tokens=st.integers(2, 6),
    seed=st.integers(0, 1000),
    levels=st.sampled_from([1, 2, 50]),
    top_k=st.integers(1, VOCABULARY),
    ranked=st.booleans(),
)
def test_exactly_the_most_likely_ids_most_likely_first(
    tokens: int, seed: int, levels: int, top_k: int, ranked: bool
) -> None:
    ids, rows = case(tokens, seed, levels)
    found = check_positions(read_prompt_logprobs(content(answer(rows, ids, top_k, ranked))), ids, VOCABULARY)
    places = np.arange(1, tokens)
    np.testing.assert_array_equal(scored_logprobs(found, ids, places), rows[places - 1, ids[1:]])
    top_ids, top_logprobs = scored_top(found, places, top_k)
    np.testing.assert_array_equal(top_logprobs, -np.sort(-rows)[:, :top_k])
    np.testing.assert_array_equal(np.take_along_axis(rows, top_ids.astype(np.int64), -1), top_logprobs)
    assert all(len(set(row)) == top_k for row in top_ids.tolist())


@given(seed=st.integers(0, 1000), top_k=st.integers(1, 5), lost=st.integers(1, 5), ranked=st.booleans())
def test_a_missing_likely_id_is_noticed(seed: int, top_k: int, lost: int, ranked: bool) -> None:
    """Where ranks are told; without them the token that came could be taken for the last of them."""
    ids, rows = case(2, seed, 50)
    entries = answer(rows, ids, top_k, ranked)
    order = np.argsort(-rows[0], kind="stable")[:top_k].tolist()
    gone = order[min(lost, top_k) - 1]
    if gone == ids[1]:
        return
    del entries[1][str(gone)]
    if ranked or ids[1] in order:
        with pytest.raises(GarbledAnswer, match=f"not {top_k}"):
            scored_top(read_prompt_logprobs(content(entries)), np.array([1]), top_k)


def test_a_tiny_excess_is_rounding_and_becomes_zero() -> None:
    ids = np.array([1, 2], np.int32)
    found = check_positions(read_prompt_logprobs(content([None, {"2": {"logprob": 5e-5}}])), ids, VOCABULARY)
    assert scored_logprobs(found, ids, np.array([1]))[0] == 0


def test_what_is_garbled_is_told_in_one_short_line() -> None:
    for garbage in (b"\xff\xfe", b"", content([None, {"2": {"logprob": "x" * 5000}}])):
        with pytest.raises(GarbledAnswer) as caught:
            read_prompt_logprobs(garbage)
        assert 0 < len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_models_may_tell_their_length_or_not() -> None:
    cards = read_models(b'{"data": [{"id": "a", "max_model_len": 8}, {"id": "b"}]}')
    assert [(card.id, card.max_model_len) for card in cards] == [("a", 8), ("b", None)]
