"""Between our records and vLLM's: a request becomes sampling parameters, a finished output a trajectory.

Shape suffixes: T response tokens, K candidates a position.
"""

from collections.abc import Sequence

import numpy as np
from vllm import SamplingParams
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from tutelage.records.trajectory import FinishReason, PolicySpan, RolloutRequest, Trajectory

_INITIAL_WEIGHTS = "default"  # vLLM's label of the weights it was started with


def sampling_params(request: RolloutRequest, stop_ids: Sequence[int] = ()) -> SamplingParams:
    """Turn a request into vLLM's parameters.

    Args:
        stop_ids: end the response, beside those that the checkpoint names.
    """
    return SamplingParams(
        seed=request.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        max_tokens=request.max_tokens,
        stop_token_ids=list(stop_ids),
        logprobs=request.candidates,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def trajectory(request: RolloutRequest, output: CompletionOutput) -> Trajectory:
    """Turn a finished output into a record.

    Raises:
        RuntimeError: the engine gave the request up, or named candidates that it could not have sampled.
    """
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"the engine ended request {request.slot} with {output.finish_reason!r}")
    response_ids = np.asarray(output.token_ids, dtype=np.int32)
    shape = (len(response_ids), 1 + request.candidates)  # the sampled token first, then the K most likely
    ids_TK = np.asarray(output.logprobs.token_ids, dtype=np.int32).reshape(shape)
    logprobs_TK = np.asarray(output.logprobs.logprobs, dtype=np.float32).reshape(shape)
    if (request.top_p < 1 or request.top_k > 0) and np.isneginf(logprobs_TK).any():
        raise RuntimeError(
            f"the engine named arbitrary ids as the most likely ones of request {request.slot}: its sampler cuts off "
            "what sampling.top_p or sampling.top_k leaves out (rollout.truncation is not at work in it); set "
            "sampling.top_p=1 and sampling.top_k=-1"
        )
    return Trajectory(
        slot=request.slot,
        prompt_id=request.prompt_id,
        sample_index=request.sample_index,
        prompt_ids=request.prompt_ids,
        response_ids=response_ids,
        loss_mask=np.ones(len(response_ids), dtype=np.bool_),
        sampling_logprobs=logprobs_TK[:, 0].copy(),
        temperature=request.temperature,
        candidate_ids=ids_TK[:, 1:].copy() if request.candidates else None,
        # the versions that vLLM noted as the tokens came
        spans=tuple(
            PolicySpan(0 if s.version == _INITIAL_WEIGHTS else int(s.version), s.start, s.end)
            for s in output.weight_versions
        ),
        finish_reason=FinishReason(output.finish_reason),
    )
