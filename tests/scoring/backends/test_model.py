"""A teacher's scores against a plain float32 forward, however the requests are packed and chunked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.models import PADDED_VOCABULARY, make_tiny_model
from tests.scoring.reference import Reference, assert_matches, load_teacher, random_request
from tutelage.stops import StopClass

LENGTHS = ((20, 7), (3, 40), (1, 1), (9, 0), (50, 2), (12, 33))


@pytest.mark.parametrize("budget", [1, 60, 512])
@pytest.mark.parametrize("chunk", [5, 256])
def test_marks_equal_a_plain_forward(tiny_untied: Path, budget: int, chunk: int) -> None:
    teacher = load_teacher(tiny_untied, max_tokens_per_forward=budget, head_chunk_tokens=chunk)
    requests = [random_request(p, t, seed=p, support=4, top_k=3) for p, t in LENGTHS]
    reference = Reference(tiny_untied)
    for request, signal in zip(requests, teacher.score(requests), strict=True):
        assert_matches(signal, request, reference.logprobs(request))


def test_the_plain_forward_knows_what_marks_should_be(tiny_untied: Path) -> None:
    teacher = load_teacher(tiny_untied)
    requests = [random_request(p, t, seed=p) for p, t in LENGTHS if t]
    for request, signal in zip(requests, teacher.score(requests), strict=True):
        targets = torch.from_numpy(request.response_ids.astype(np.int64))[:, None]
        expected = Reference(tiny_untied).logprobs(request).gather(1, targets)[:, 0]
        np.testing.assert_allclose(teacher.reference_logprobs_for_check(request), expected, atol=1e-4)
        (again,) = teacher.score([request])  # packed attention is back
        np.testing.assert_allclose(again.logprobs, signal.logprobs, atol=1e-5)


def test_each_request_gets_what_it_asked_for(tiny_tied: Path) -> None:
    teacher = load_teacher(tiny_tied, head_chunk_tokens=8)
    bare = random_request(5, 6, seed=1)
    rich = random_request(4, 9, seed=2, support=2, top_k=5, hidden_states=True)
    first, second = teacher.score([bare, rich])
    assert (first.support_logprobs, first.top_ids, first.hidden_states) == (None, None, None)
    assert_matches(second, rich, Reference(tiny_tied).logprobs(rich))
    assert second.support_ids is rich.support_ids
    assert second.hidden_states is not None and second.hidden_states.dtype == np.float32


def test_hidden_states_times_head_give_the_log_probs(tiny_tied: Path) -> None:
    teacher = load_teacher(tiny_tied)
    request = random_request(11, 13, hidden_states=True)
    (signal,) = teacher.score([request])
    head = teacher.lm_head()
    assert head.bias is None and head.weight.dtype == np.float32
    logprobs = torch.from_numpy(signal.hidden_states @ head.weight.T).log_softmax(-1)
    np.testing.assert_allclose(logprobs[np.arange(13), request.response_ids], signal.logprobs, atol=1e-5)
    assert_matches(signal, request, logprobs)


def test_head_bias_counts(tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                                         num_attention_heads=2, num_key_value_heads=2, head_dim=16))  # fmt: skip
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    request = random_request(3, 5, vocabulary=64)
    plain = teacher.score([request])[0]
    teacher._head = replace(teacher._head, bias=torch.linspace(-3, 3, 64))
    (biased,) = teacher.score([replace(request, hidden_states=True)])
    head = teacher.lm_head()
    assert head.bias is not None
    logprobs = torch.from_numpy(biased.hidden_states @ head.weight.T + head.bias).log_softmax(-1)
    assert_matches(biased, request, logprobs)
    assert np.abs(biased.logprobs - plain.logprobs).max() > 0.1


def test_response_without_tokens(tiny_tied: Path) -> None:
    request = random_request(5, 0, support=3, top_k=2, hidden_states=True)
    request = replace(request, support_ids=np.empty((0, 3), np.int32))
    (signal,) = load_teacher(tiny_tied).score([request])
    assert signal.logprobs.shape == signal.entropy.shape == (0,)
    assert signal.support_logprobs is not None and signal.support_logprobs.shape == (0, 3)
    assert signal.top_ids is not None and signal.top_ids.shape == (0, 2)
    assert signal.hidden_states is not None and signal.hidden_states.shape == (0, 128)


def test_support_mass(tiny_tied: Path) -> None:
    request = random_request(5, 4)
    everything = np.tile(np.arange(576, dtype=np.int32), (4, 1))
    (signal,) = load_teacher(tiny_tied).score([replace(request, support_ids=everything)])
    np.testing.assert_allclose(np.exp(signal.support_logprobs).sum(-1), 1, atol=1e-5)


def test_padded_rows_are_part_of_the_softmax(tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path, tied=False, padded=True)
    request = random_request(5, 9, vocabulary=PADDED_VOCABULARY, support=3, top_k=4)
    teacher = load_teacher(path)
    assert teacher.vocabulary_size == PADDED_VOCABULARY
    assert_matches(teacher.score([request])[0], request, Reference(path).logprobs(request))


@pytest.mark.parametrize("field", ["prompt_ids", "response_ids", "support_ids"])
def test_unknown_ids_are_named(tiny_tied: Path, field: str) -> None:
    request = random_request(5, 4, support=2)
    ids = getattr(request, field).copy()
    ids.flat[-1] = 601
    with pytest.raises(ValueError, match=rf"{field} contains ids \[601\].*only 576 rows"):
        load_teacher(tiny_tied).score([replace(request, **{field: ids})])


def test_other_bad_requests(tiny_tied: Path) -> None:
    teacher = load_teacher(tiny_tied)
    with pytest.raises(ValueError, match="prompt_ids is empty"):
        teacher.score([random_request(0, 3)])
    with pytest.raises(ValueError, match="support_ids has 2 positions for 3"):
        teacher.score([replace(random_request(4, 3), support_ids=np.zeros((2, 4), np.int32))])
    with pytest.raises(ValueError, match="top_k=577"):
        teacher.score([random_request(4, 3, top_k=577)])


def test_no_row_of_logits_beyond_a_chunk(tiny_tied: Path) -> None:
    """The head sees `head_chunk_tokens` positions at a time, and response positions only."""
    teacher = load_teacher(tiny_tied, head_chunk_tokens=8)
    requests = [random_request(40, 10, seed=1), random_request(30, 9, seed=2)]
    states = torch.cat(teacher._response_states(requests))
    assert len(states) == 19
    assert [len(rows) for _, rows, _ in teacher._distributions(states.float(), requests)] == [8, 8, 3]


def test_only_the_scored_tokens_are_scored(tiny_untied: Path) -> None:
    """As in a response of several turns: what others wrote is read, and nothing is said about it."""
    whole = random_request(7, 30, seed=3, support=4, top_k=3, hidden_states=True)
    scored_mask = np.zeros(30, np.bool_)
    scored_mask[[0, 1, 5, 6, 7, 20]] = True
    assert whole.support_ids is not None
    some = replace(whole, scored_mask=scored_mask, support_ids=whole.support_ids[scored_mask])
    teacher = load_teacher(tiny_untied, head_chunk_tokens=4)
    all_scores, scores, beside = teacher.score([whole, some, random_request(4, 9, seed=8)])
    for name in ("logprobs", "entropy", "support_logprobs", "top_logprobs", "hidden_states"):
        np.testing.assert_allclose(getattr(scores, name), getattr(all_scores, name)[scored_mask], atol=1e-5)
    np.testing.assert_allclose(teacher.reference_logprobs_for_check(some), all_scores.logprobs[scored_mask], atol=1e-4)
    assert len(beside.logprobs) == 9
    (nothing,) = teacher.score([replace(whole, scored_mask=np.zeros(30, np.bool_), support_ids=whole.support_ids[:0])])
    assert nothing.logprobs.shape == (0,)


def test_a_mask_of_another_length_is_refused(tiny_tied: Path) -> None:
    request = replace(random_request(4, 5), scored_mask=np.ones(4, np.bool_))
    with pytest.raises(ValueError, match="scored_mask has 4 places for 5 response tokens"):
        load_teacher(tiny_tied).score([request])


def test_ends_as_one_action(tiny_untied: Path) -> None:
    """The definition, p(stop) = sum p(s), for one of two requests of a forward; and by the plain forward too."""
    stops = StopClass(kept=5, others=(9, 2))
    request = replace(random_request(6, 12, support=4, top_k=5), stops=stops)
    request.response_ids[[3, 11]] = 9, 5  # the ends that came, whichever they are
    assert request.support_ids is not None
    request.support_ids[:, 1] = 5
    teacher = load_teacher(tiny_untied, head_chunk_tokens=4)
    alone = random_request(4, 9, seed=1)
    merged, beside = teacher.score([request, alone])
    assert_matches(beside, alone, Reference(tiny_untied).logprobs(alone))
    probs = Reference(tiny_untied).logprobs(request).exp()
    total = probs[:, list(stops.ids)].sum(-1)
    probs[:, list(stops.others)] = 0
    probs[:, stops.kept] = total
    known = replace(
        request, response_ids=np.where(np.isin(request.response_ids, stops.others), 5, request.response_ids)
    )
    assert_matches(merged, known, probs.log().clamp(min=torch.finfo(torch.float32).min))
    np.testing.assert_allclose(teacher.reference_logprobs_for_check(request), merged.logprobs, atol=1e-4)
