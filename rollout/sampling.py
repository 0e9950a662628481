"""Between our records and vLLM's: a request becomes sampling parameters, a finished output a trajectory.

Shape suffixes: T response tokens, K candidates a position.
"""

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.logprobs import FlatLogprobs
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind

from tutelage.records.trajectory import FinishReason, PolicySpan, RolloutRequest, Trajectory

INITIAL_WEIGHTS = "default"  # vLLM's label of the weights it was started with


def sampling_params(request: RolloutRequest) -> SamplingParams:
    """Turn a request into vLLM's parameters."""
    return SamplingParams(
        seed=request.seed,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        max_tokens=request.max_tokens,
        logprobs=request.candidates,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def trajectory(request: RolloutRequest, output: CompletionOutput) -> Trajectory:
    """Turn a finished output into a record.

    Raises:
        RuntimeError: the engine gave the request up.
    """
    if output.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"the engine ended request {request.slot} with {output.finish_reason!r}")
    response_ids = np.asarray(output.token_ids, dtype=np.int32)
    ids_TK, logprobs_TK = _flat_logprobs(output.logprobs, len(response_ids), request.candidates)
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
        spans=_spans(output),
        finish_reason=FinishReason(output.finish_reason),
    )


def _flat_logprobs(flat: FlatLogprobs, tokens: int, candidates: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Unpack ids and log-probs, [T, 1 + K]: the sampled token first, then the K most likely."""
    shape = (tokens, 1 + candidates)
    ids = np.asarray(flat.token_ids, dtype=np.int32).reshape(shape)
    return ids, np.asarray(flat.logprobs, dtype=np.float32).reshape(shape)


def _spans(output: CompletionOutput) -> tuple[PolicySpan, ...]:
    """Read the versions that vLLM noted as the tokens came."""
    return tuple(PolicySpan(version_of(s.version), s.start, s.end) for s in output.weight_versions)


def version_of(label: str) -> int:
    """Read the policy version from vLLM's label of its weights."""
    return 0 if label == INITIAL_WEIGHTS else int(label)
