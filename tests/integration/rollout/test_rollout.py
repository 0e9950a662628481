"""The rollout engine against a plain float32 forward of the same model."""

from dataclasses import replace

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from tests.integration.students import MAX_MODEL_LEN, Student, reference_logprobs, request, sampled
from tutelage.records.trajectory import FinishReason, PolicySpan

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_logprobs_equal_a_plain_forward(student: Student, temperature: float) -> None:
    for trajectory in student.generate([request(i, temperature=temperature) for i in range(6)]):
        expected = sampled(reference_logprobs(student.model, trajectory), trajectory)
        np.testing.assert_allclose(trajectory.sampling_logprobs, expected, atol=1e-3)
        assert trajectory.temperature == temperature
        assert trajectory.spans == (PolicySpan(student.version, 0, len(trajectory.response_ids)),)


def test_candidates_are_the_most_likely_ids(tied_student: Student) -> None:
    sampled_outside = 0
    for trajectory in tied_student.generate([request(i, candidates=8) for i in range(4)]):
        logprobs = reference_logprobs(tied_student.model, trajectory)
        candidates = trajectory.candidate_ids
        assert candidates is not None and candidates.shape == (len(trajectory.response_ids), 8)
        assert all(len(set(row)) == 8 for row in candidates.tolist())
        found = np.take_along_axis(logprobs.numpy(), candidates.astype(np.int64), axis=1)
        np.testing.assert_allclose(found, logprobs.topk(8).values.numpy(), atol=1e-3)
        sampled_outside += int((candidates != trajectory.response_ids[:, None]).all(axis=1).sum())
    assert sampled_outside > 0, "the case of a sampled token outside the candidates never came up"


@pytest.mark.parametrize(  # the tiny model is unsure: at temperature 1 hundreds of its ids make up nine tenths
    "cut", [{"top_p": 0.9, "temperature": 0.1}, {"top_p": 0.02}, {"top_k": 3}, {"top_p": 0.5, "top_k": 20}]
)
def test_candidates_are_those_of_the_whole_softmax_however_sampling_cuts_it(
    tied_student: Student, cut: dict[str, float]
) -> None:
    """And the tokens and their log-probs are those of the cut distribution."""
    beyond = 0
    for trajectory in tied_student.generate([request(i, candidates=16, **cut) for i in range(4)]):
        logprobs, candidates = reference_logprobs(tied_student.model, trajectory), trajectory.candidate_ids
        assert candidates is not None and all(len(set(row)) == 16 for row in candidates.tolist())
        likely = np.take_along_axis(logprobs.numpy(), candidates.astype(np.int64), axis=1)
        np.testing.assert_allclose(likely, logprobs.topk(16).values.numpy(), atol=1e-2)
        ordered, ids = logprobs.topk(int(cut.get("top_k", logprobs.shape[1])))
        share = ordered.softmax(-1)
        inside = share.cumsum(-1) - share < cut.get("top_p", 1.0)  # the mass before the id
        kept = torch.zeros_like(logprobs, dtype=torch.bool).scatter(1, ids, inside)
        beyond += int((kept.sum(-1) < 16).sum())
        renormalised = logprobs.masked_fill(~kept, -torch.inf).log_softmax(-1)
        np.testing.assert_allclose(trajectory.sampling_logprobs, sampled(renormalised, trajectory), atol=1e-2)
    assert beyond > 0, "16 ids were never more than what sampling keeps"


def test_requests_of_one_group_may_ask_for_different_numbers_of_candidates(tied_student: Student) -> None:
    none, four, nine = tied_student.generate([request(i, candidates=k) for i, k in enumerate((0, 4, 9))])
    assert none.candidate_ids is None
    assert four.candidate_ids is not None and four.candidate_ids.shape[1] == 4
    assert nine.candidate_ids is not None and nine.candidate_ids.shape[1] == 9


def test_a_group_repeats_token_by_token(tied_student: Student) -> None:
    group = [request(i) for i in range(12)]
    first, second = tied_student.generate(group), tied_student.generate(group)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.response_ids, other.response_ids)


def test_prompts_that_do_not_fit_into_one_forward_together(tied_student: Student) -> None:
    long = [request(i, prompt_tokens=300, max_tokens=4) for i in range(20)]
    assert sum(len(one.prompt_ids) for one in long) > 4096  # what vLLM runs in one forward, unless told otherwise
    for trajectory in tied_student.generate(long):
        expected = sampled(reference_logprobs(tied_student.model, trajectory), trajectory)
        np.testing.assert_allclose(trajectory.sampling_logprobs, expected, atol=1e-3)


def test_the_seed_of_a_request_decides_its_tokens(tied_student: Student) -> None:
    group = [request(7), replace(request(7), slot=8), replace(request(7), slot=9, seed=5)]
    first, same, other = (t.response_ids.tolist() for t in tied_student.generate(group))
    assert first == same
    assert first != other


def test_max_tokens_ends_a_response(tied_student: Student) -> None:
    (trajectory,) = tied_student.generate([request(0, max_tokens=3)])
    assert trajectory.finish_reason is FinishReason.LENGTH
    assert len(trajectory.response_ids) == 3


def test_the_end_token_is_part_of_the_response_and_of_the_loss(tied_student: Student) -> None:
    end = tied_student.model.config.eos_token_id
    trajectories = tied_student.generate([request(i, max_tokens=150) for i in range(48)])
    stopped = [t for t in trajectories if t.finish_reason is FinishReason.STOP]
    assert stopped, "no response met the end token"
    for trajectory in trajectories:
        assert (end in trajectory.response_ids) == (trajectory.finish_reason is FinishReason.STOP)
    for trajectory in stopped:
        assert trajectory.response_ids.tolist().index(end) == len(trajectory.response_ids) - 1
        assert trajectory.loss_mask.all() and trajectory.loss_tokens == len(trajectory.response_ids)


def test_prompt_logprobs_equal_a_plain_forward(student: Student) -> None:
    (trajectory,) = student.generate([request(3)])
    ids = [*trajectory.prompt_ids.tolist(), *trajectory.response_ids.tolist()]
    expected = sampled(reference_logprobs(student.model, trajectory), trajectory)
    for _ in range(2):  # the second time the prefix is in the cache
        found = student.prompt_logprobs(ids)
        assert len(found) == len(ids) - 1
        np.testing.assert_allclose(found[len(trajectory.prompt_ids) - 1 :], expected, atol=1e-3)


def test_a_request_that_cannot_fit_is_refused(tied_student: Student) -> None:
    with pytest.raises(RayTaskError, match=r"rollout\.max_model_len"):
        tied_student.generate([request(0), request(1, prompt_tokens=MAX_MODEL_LEN - 10, max_tokens=20)])


def test_requests_that_nobody_waits_for_leave_the_engine(tied_student: Student) -> None:
    stream = tied_student.worker.generate.remote([request(0, max_tokens=2), request(1, max_tokens=350)])
    ray.get(next(stream))
    ray.cancel(stream)
    assert len(tied_student.generate([request(2)])) == 1
