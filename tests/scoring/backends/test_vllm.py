"""What a vLLM engine is asked and what is made of its answer, played by vLLM's own definition of both."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from vllm.logprobs import FlatLogprobs

from scoring.backends.vllm import engine_args, sampling_params, signal_of
from scoring.config import EngineConfig, ScoringConfig, TeacherConfig
from tests.scoring.reference import random_request
from tutelage.records.signal import ScoringRequest
from tutelage.settings import DType

VOCABULARY = 30


def full_logprobs(tokens: int, seed: int) -> NDArray[np.float32]:
    """[N - 1, V]: row i is the distribution of token i + 1; some tokens are impossible."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(tokens - 1, VOCABULARY))
    logits[generator.random(logits.shape) < 0.1] = -np.inf
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def answered(request: ScoringRequest, rows: NDArray[np.float32], by_id: bool) -> SimpleNamespace:
    """As vLLM documents the parameters that it is given here."""
    params, ids = sampling_params(request, by_id), request.ids_to_last_scored
    flat, scores = None, None
    if params.prompt_logprobs is not None:
        flat = FlatLogprobs()
        flat.append(None)
        for token_id, row in zip(ids[1:].tolist(), rows, strict=False):
            best = np.argsort(-row)[: params.prompt_logprobs].tolist()
            chosen = [token_id, *best]
            flat.append_fast(chosen, row[chosen].tolist(), iter(range(len(chosen))), [None] * len(chosen))
    if params.prompt_logprob_token_ids is not None:
        start, wanted = params.prompt_logprob_start, np.asarray(params.prompt_logprob_token_ids)
        assert len(wanted) == len(ids) - 1 - start
        found = np.take_along_axis(rows[start : start + len(wanted)], np.maximum(wanted, 0).astype(np.int64), -1)
        scores = np.where(wanted < 0, -np.inf, found)
    return SimpleNamespace(prompt_logprobs=flat, prompt_token_id_logprobs=scores)


@given(
    prompt=st.integers(1, 4),
    scored_mask=st.lists(st.booleans(), min_size=1, max_size=6).filter(any),
    support=st.integers(0, 3),
    top_k=st.integers(0, 4),
    seed=st.integers(0, 1000),
    runner=st.booleans(),
)
def test_the_marks_are_of_the_marked_tokens(
    prompt: int, scored_mask: list[bool], support: int, top_k: int, seed: int, runner: bool
) -> None:
    """Whether the engine scores given ids, as on GPUs, or not."""
    by_id = support > 0 or (runner and not top_k)
    request = random_request(prompt, len(scored_mask), seed, VOCABULARY, support, False, top_k=top_k)
    kept = np.array(scored_mask)
    request = replace(request, scored_mask=kept, support_ids=request.support_ids[kept] if support else None)
    rows = full_logprobs(prompt + len(scored_mask), seed)
    signal = signal_of(request, answered(request, rows, by_id), by_id)
    expected = np.maximum(rows[prompt - 1 :][kept], np.finfo(np.float32).min)
    np.testing.assert_array_equal(signal.logprobs, expected[np.arange(len(expected)), request.scored_ids])
    if support:
        of_support = np.take_along_axis(expected, request.support_ids.astype(np.int64), -1)
        np.testing.assert_array_equal(signal.support_logprobs, of_support)
    else:
        assert signal.support_logprobs is None
    if top_k:
        np.testing.assert_array_equal(signal.top_logprobs, -np.sort(-expected)[:, :top_k])
        np.testing.assert_array_equal(
            np.take_along_axis(expected, signal.top_ids.astype(np.int64), -1), signal.top_logprobs
        )
    else:
        assert signal.top_ids is None


def test_a_request_never_has_a_seed_nor_reads_a_cache(tiny_tied: Path) -> None:
    params = sampling_params(random_request(3, 4, entropy=False, top_k=2), by_id=False)
    assert params.seed is None and params.skip_reading_prefix_cache
    args = engine_args(str(tiny_tied), TeacherConfig(), ScoringConfig(max_tokens_per_forward=48))
    assert args.enable_prefix_caching is False and args.enable_chunked_prefill is True
    assert args.max_num_batched_tokens == 48 and args.max_num_seqs == 48


def test_a_sequence_leaves_room_for_the_token_that_is_generated(tiny_tied: Path) -> None:
    """The tiny model has 512 positions."""
    scoring = ScoringConfig(dtype=DType.float32, max_model_len=511, engine=EngineConfig(max_num_seqs=3))
    args = engine_args(str(tiny_tied), TeacherConfig(), scoring)
    assert args.max_model_len == 512 and args.max_num_seqs == 3 and args.dtype == "float32"
    with pytest.raises(ValueError, match=r"scoring.max_model_len=512.*rollout.max_model_len to 511"):
        engine_args(str(tiny_tied), TeacherConfig(), replace(scoring, max_model_len=512))
