"""Scoring from rendered prompts to scores: against a plain float32 forward, in process and through the Ray worker."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from transformers import AutoTokenizer

from learner.objectives import ObjectiveConfig, build_objective
from learner.packing import pack
from learner.records import Example
from learner.tensors import to_tensors
from scoring.config import ScoringConfig, TeacherConfig
from scoring.requests import build_request
from scoring.worker import ScoringWorker
from tests.factories import make_trajectory, student_reads, teacher_reads
from tests.learner.examples import make_example
from tests.scoring.reference import Reference, assert_matches, load_teacher, random_request
from tutelage.lm.head import LogitTransform
from tutelage.records.per_token import StoredRows
from tutelage.records.prompt import Message, Prompt
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.records.trajectory import FinishReason, Trajectory
from tutelage.settings import DType

pytestmark = pytest.mark.integration

PROMPT = Prompt("q", (Message("user", "What is the capital of France?"),))
CONTEXT = "Please answer with one short sentence."
CONFIG = ScoringConfig(dtype=DType.float32, max_tokens_per_forward=128, head_chunk_tokens=16)


@pytest.fixture(scope="module")
def worker(local_ray: None, tiny_untied: Path) -> Iterator[ray.actor.ActorHandle]:
    actor = ray.remote(ScoringWorker).options(num_cpus=1, max_concurrency=100)
    handle = actor.remote(str(tiny_untied), TeacherConfig(), CONFIG)
    assert ray.get(handle.start.remote()) == 576
    yield handle
    ray.kill(handle)


def answered(path: Path, text: str, finish: FinishReason, candidates: int) -> Trajectory:
    """A response as the rollout engine would return it: with its EOS if it stopped, without if it was cut."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(text)["input_ids"] + ([tokenizer.eos_token_id] if finish is FinishReason.STOP else [])
    named = np.random.default_rng(0).integers(0, 576, (len(ids), candidates), dtype=np.int32)
    prompt_ids = student_reads(tokenizer, PROMPT).ids
    return make_trajectory(prompt_ids, ids, prompt_id=PROMPT.id, candidate_ids=named, finish_reason=finish)


@pytest.mark.parametrize("finish", FinishReason)
@pytest.mark.parametrize("context", [None, CONTEXT])
def test_teacher_marks_the_students_tokens(
    worker: ray.actor.ActorHandle, tiny_untied: Path, finish: FinishReason, context: str | None
) -> None:
    """The same response under either rendering, stopped or cut: packed or alone, what a plain forward says."""
    needs = build_objective(ObjectiveConfig(k=8)).requirements
    tokenizer = AutoTokenizer.from_pretrained(tiny_untied)
    trajectory = answered(tiny_untied, "Paris, the city of light.", finish, candidates=12)
    assert (trajectory.response_ids[-1] == tokenizer.eos_token_id) == (finish is FinishReason.STOP)
    teacher_ids = teacher_reads(tokenizer, PROMPT, context).ids
    assert (len(teacher_ids) > len(trajectory.prompt_ids)) == (context is not None)
    request = replace(build_request("teacher", teacher_ids, trajectory, needs), entropy=True)
    expected = Reference(tiny_untied).logprobs(request)
    alone = load_teacher(tiny_untied, max_tokens_per_forward=1).score([request])[0]
    neighbour = random_request(30, 20)
    _, packed = load_teacher(tiny_untied).score([neighbour, request])
    through_ray = ray.get(worker.score.remote(request))
    for signal in (alone, packed, through_ray):
        assert_matches(signal, request, expected)
        assert signal.support_logprobs is not None and signal.support_logprobs.shape[1] == 8


def test_context_changes_the_scores(tiny_untied: Path) -> None:
    """Otherwise the test above could not tell one rendering from the other."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_untied)
    response = np.array(tokenizer("Paris.")["input_ids"], np.int32)
    with_context, without = (
        ScoringRequest("teacher", teacher_reads(tokenizer, PROMPT, context).ids, response)
        for context in (CONTEXT, None)
    )
    first, second = load_teacher(tiny_untied).score([with_context, without])
    assert np.abs(first.logprobs - second.logprobs).max() > 0.01


def test_many_requests_at_once(worker: ray.actor.ActorHandle, tiny_untied: Path) -> None:
    """They wait, share forwards, and each gets its own answer."""
    requests = [random_request(5 + i % 7, i % 11, seed=i, support=2, top_k=1 + i % 3) for i in range(60)]
    signals = ray.get([worker.score.remote(request) for request in requests])
    reference = Reference(tiny_untied)
    for request, signal in zip(requests, signals, strict=True):
        assert_matches(signal, request, reference.logprobs(request))


def test_hidden_states_and_head_travel(worker: ray.actor.ActorHandle, tiny_untied: Path) -> None:
    request = random_request(9, 12, hidden_states=True)
    head, signal = ray.get([worker.lm_head.remote(), worker.score.remote(request)])
    assert head.bias is None and head.transform == LogitTransform()
    logits = signal.hidden_states @ head.weight.T
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    np.testing.assert_allclose(logprobs, Reference(tiny_untied).logprobs(request), atol=1e-4)


def test_states_that_are_apart_are_those_that_travel(worker: ray.actor.ActorHandle) -> None:
    request = random_request(9, 12, hidden_states=True)
    whole = ray.get(worker.score.remote(request))
    rest, states = worker.score_apart.options(num_returns=2).remote(request)
    assert ray.get(rest).hidden_states is None
    np.testing.assert_array_equal(np.asarray(StoredRows.at(states, 12)), whole.hidden_states)


def test_states_that_a_rank_fetches_are_those_that_the_driver_would_have_sent(local_ray: Path) -> None:
    """A mixture, responses of several turns, several in a micro-batch; the batch itself has none of the numbers."""
    rng, width = np.random.default_rng(0), 5000
    examples: dict[str, list[Example]] = {"sent": [], "stored": []}
    for slot, mask in enumerate(([1, 1, 0, 1], [1], [0, 1, 1, 0, 0, 1])):
        loss_mask = np.array(mask, np.bool_)
        trajectory = replace(make_example(slot, 4, len(mask)).trajectory, loss_mask=loss_mask)
        states = [rng.normal(size=(loss_mask.sum(), width)).astype(np.float32) for _ in range(2)]
        stored = StoredRows.side_by_side([StoredRows.at(ray.put(array), len(array)) for array in states])
        for how, rows in (("sent", np.concatenate(states, axis=1)), ("stored", stored)):
            signal = TeacherSignal("blend", np.zeros(loss_mask.sum(), np.float32), hidden_states=rows)
            examples[how].append(Example(trajectory, signal.spread(loss_mask)))
    batches = {how: pack(of, 2, 1000, 0) for how, of in examples.items()}
    assert len(ray.cloudpickle.dumps(batches["stored"].ranks[0])) < 20_000
    for sent, fetched in zip(*(batch.ranks for batch in batches.values()), strict=True):
        for pair in zip(sent, fetched, strict=True):
            ours, theirs = (to_tensors(micro_batch, torch.device("cpu")) for micro_batch in pair)
            assert ours.teacher_hidden_states is not None and ours.teacher_hidden_states.shape[1] == 2 * width
            assert torch.equal(ours.teacher_hidden_states, theirs.teacher_hidden_states)


def test_bad_request_harms_no_other(worker: ray.actor.ActorHandle, tiny_untied: Path) -> None:
    good, bad = random_request(4, 5), random_request(4, 5, vocabulary=100_000)
    results = [worker.score.remote(request) for request in (good, bad, good)]
    with pytest.raises(ValueError, match="only 576 rows"):
        ray.get(results[1])
    for result in (results[0], results[2]):
        assert_matches(ray.get(result), good, Reference(tiny_untied).logprobs(good))


def test_a_worker_goes_on_with_another_teacher(
    worker: ray.actor.ActorHandle, tiny_tied: Path, tiny_untied: Path
) -> None:
    request = random_request(9, 12)
    for path in (tiny_tied, tiny_untied):
        ray.get(worker.load.remote(str(path), TeacherConfig()))
        assert_matches(ray.get(worker.score.remote(request)), request, Reference(path).logprobs(request))
