"""From vLLM's outputs to trajectories."""

import numpy as np
import pytest
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput, WeightVersionSpan

from rollout.sampling import sampling_params, trajectory
from tutelage.records.trajectory import FinishReason, PolicySpan, RolloutRequest

REQUEST = RolloutRequest(
    slot=4,
    prompt_id="p",
    sample_index=1,
    prompt_ids=np.array([5, 6], dtype=np.int32),
    seed=9,
    max_tokens=7,
    temperature=0.5,
    top_p=0.9,
    top_k=30,
    candidates=2,
)


def output(finish_reason: str | None, spans: list[WeightVersionSpan]) -> CompletionOutput:
    """Tokens 11 and 12; 11 is the most likely id of its position, 12 is none of the two most likely."""
    logprobs = FlatLogprobs(
        start_indices=[0, 3],
        end_indices=[3, 6],
        token_ids=[11, 11, 20, 12, 21, 22],
        logprobs=[-0.25, -0.25, -1.5, -4.0, -0.5, -1.0],
    )
    completion = CompletionOutput(0, "", [11, 12], None, logprobs, finish_reason=finish_reason)
    completion.weight_versions = spans
    return completion


def test_a_finished_output_becomes_a_trajectory() -> None:
    spans = [WeightVersionSpan("default", 0, 1), WeightVersionSpan("3", 1, 2)]
    record = trajectory(REQUEST, output("stop", spans))
    assert record.response_ids.tolist() == [11, 12] and record.response_ids.dtype == np.int32
    assert record.sampling_logprobs.tolist() == [-0.25, -4.0] and record.sampling_logprobs.dtype == np.float32
    assert record.candidate_ids is not None
    assert record.candidate_ids.tolist() == [[11, 20], [21, 22]] and record.candidate_ids.dtype == np.int32
    assert record.loss_mask.tolist() == [True, True]
    assert record.spans == (PolicySpan(0, 0, 1), PolicySpan(3, 1, 2)) and record.oldest_version == 0
    assert record.finish_reason is FinishReason.STOP
    assert (record.slot, record.prompt_id, record.sample_index, record.temperature) == (4, "p", 1, 0.5)


@pytest.mark.parametrize("reason", ["abort", "error", None])
def test_an_output_that_did_not_finish_is_an_error(reason: str | None) -> None:
    with pytest.raises(RuntimeError, match="request 4"):
        trajectory(REQUEST, output(reason, []))


def test_candidates_that_the_engine_could_not_have_sampled_are_an_error() -> None:
    arbitrary = output("stop", [WeightVersionSpan("default", 0, 2)])
    arbitrary.logprobs.logprobs[-1] = -np.inf
    with pytest.raises(RuntimeError, match=r"arbitrary ids.*sampling\.top_p=1"):
        trajectory(REQUEST, arbitrary)


def test_a_request_keeps_its_settings() -> None:
    params = sampling_params(REQUEST)
    found = (params.seed, params.temperature, params.top_p, params.top_k, params.max_tokens, params.logprobs)
    assert found == (9, 0.5, 0.9, 30, 7, 2)
    assert not params.detokenize and params.flat_logprobs
