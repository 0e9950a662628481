"""The backend `vllm`: scores from the prompt log-probs of an engine of the worker's own.

    prompt and response ─► one prompt, in parts of max_tokens_per_forward ─► each token's log-prob and the k most likely
                                                                             ids; of given ids too, on GPUs

The parts bound the logits that exist at once. Nothing can be read from a prefix cache, for there is none.

Shape suffixes: N tokens of prompt and response, L of the response up to its last score, T scored tokens, K given ids a
position.
"""

import itertools
import os
import traceback
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig
from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.inputs.engine import tokens_input
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from scoring.backends.base import Backend
from scoring.capabilities import check_request
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.vllm_environment import prepare_environment

_LOWEST = np.finfo(np.float32).min


class VLLMTeacher(Backend):
    """One engine; `start` comes first and `close` last."""

    def __init__(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        """Check the checkpoint in directory `path`.

        Raises:
            ValueError: it is too short.
        """
        self._args = engine_args(path, teacher, scoring)
        self._threads = scoring.threads
        self._numbers = itertools.count()
        self._engine: AsyncLLM | None = None

    @property
    def _llm(self) -> AsyncLLM:
        assert self._engine is not None  # start comes first
        return self._engine

    async def start(self) -> int:
        """Load the model and start vLLM's processes, once, which takes tens of seconds; the rows of its LM head."""
        if self._engine is None:
            in_process = self._args.distributed_executor_backend == "uni"
            prepare_environment(self._threads, in_process, bool(self._args.enforce_eager))
            self._engine = AsyncLLM.from_engine_args(self._args)
        return int(self._llm.model_config.get_vocab_size())

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """The log-probs of the scored tokens, of the most likely ids, and on GPUs of given ones.

        Raises:
            ValueError: the request asks for more than that, for ids that the model does not have, or is too long.
        """
        scores_ids = bool(self._llm.vllm_config.use_v2_model_runner)
        _check(request, scores_ids)
        if not request.num_scored:
            return TeacherSignal.empty(request)
        ids_N = request.ids_to_last_scored
        by_id = scores_ids and (request.support_ids is not None or not request.top_k)
        output = await self._ask(ids_N, sampling_params(request, by_id))
        return signal_of(request, output, by_id)

    async def close(self) -> None:
        if self._engine is not None:
            self._engine.shutdown()
        self._engine = None

    async def _ask(self, ids_N: NDArray[np.int32], params: SamplingParams) -> RequestOutput:
        # If the caller gives up, the generator takes the request out of the engine.
        answers = self._llm.generate(tokens_input(ids_N.tolist()), params, str(next(self._numbers)))
        try:
            return [output async for output in answers][-1]
        except VLLMValidationError as error:
            raise ValueError(f"teacher.backend=vllm: refuses {len(ids_N)} tokens: {error}") from error
        except EngineDeadError:
            # A worker without its engine can only be replaced, and its death is how others learn of that.
            traceback.print_exc()
            os._exit(1)


def engine_args(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> AsyncEngineArgs:
    """Configure a scoring engine for the checkpoint in directory `path`.

    Raises:
        ValueError: the model has no position for the token that an engine always generates.
    """
    on_cpu, settings = current_platform.is_cpu(), scoring.engine
    memory: dict[str, Any] = (
        {"kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30)}
        if on_cpu
        else {"gpu_memory_utilization": settings.gpu_memory_utilization}
    )
    return AsyncEngineArgs(
        model=path,
        dtype=scoring.dtype.value,
        load_format="safetensors",
        trust_remote_code=teacher.trust_remote_code,
        max_model_len=_max_model_len(path, teacher, scoring),
        # No more sequences than tokens have a place in a forward.
        max_num_seqs=min(settings.max_num_seqs, scoring.max_tokens_per_forward),
        max_num_batched_tokens=scoring.max_tokens_per_forward,
        enable_chunked_prefill=True,
        enable_prefix_caching=False,
        tensor_parallel_size=max(1, int(scoring.gpus_per_worker)),
        distributed_executor_backend="uni" if on_cpu else None,
        enforce_eager=settings.enforce_eager,
        logprobs_mode="raw_logprobs",
        max_logprobs=-1,
        disable_log_stats=True,
        **memory,
    )


def _max_model_len(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> int | None:
    """With the token that is generated; None: what the model has."""
    needed = scoring.max_model_len
    if needed is None:
        return None
    config = AutoConfig.from_pretrained(path, trust_remote_code=teacher.trust_remote_code)
    positions = getattr(config.get_text_config(), "max_position_embeddings", needed + 1)
    if positions <= needed:
        raise ValueError(
            f"scoring.max_model_len={needed}: {teacher.model} has {positions} positions, and a vLLM engine needs one "
            f"for a token that it generates; lower rollout.max_model_len to {positions - 1}"
        )
    return needed + 1


def _check(request: ScoringRequest, scores_ids: bool) -> None:
    why = "a vLLM engine cannot give it; set teacher.backend=transformers, or choose an objective that does not need it"
    check_request(request, ("entropy", "hidden_states", "stops"), why)
    if request.support_ids is not None and not scores_ids:
        raise ValueError(
            "ScoringRequest.support_ids: vLLM scores given ids on GPUs only, and there only for models that its "
            "second model runner knows; set teacher.backend=transformers, or choose an objective on the teacher's own "
            "most likely ids"
        )


def sampling_params(request: ScoringRequest, by_id: bool) -> SamplingParams:
    """Greedy and without a seed: a seeded prompt in several parts ends a CPU engine."""
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        prompt_logprobs=request.top_k if request.top_k or not by_id else None,
        prompt_logprob_token_ids=ids_to_score(request) if by_id else None,
        # Row i of the ids is about the i-th token after this one.
        prompt_logprob_start=len(request.prompt_ids) - 1 if by_id else None,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def ids_to_score(request: ScoringRequest) -> NDArray[np.int32]:
    """[L, 1 + K]: for each response token, itself and the ids that are given for it; -1 where it is not scored."""
    support = request.support_ids
    positions_T = request.scored_positions
    ids_LK = np.full((positions_T[-1] + 1, 1 if support is None else 1 + support.shape[1]), -1, np.int32)
    ids_LK[positions_T, 0] = request.scored_ids
    if support is not None:
        ids_LK[positions_T, 1:] = support
    return ids_LK


def signal_of(request: ScoringRequest, output: RequestOutput, by_id: bool) -> TeacherSignal:
    positions_T = request.scored_positions
    top_ids = top_logprobs = support_logprobs = None
    if by_id:
        scores_TK = output.prompt_token_id_logprobs[positions_T]
        logprobs, support_logprobs = scores_TK[:, 0], scores_TK[:, 1:]
    if not by_id or request.top_k:
        # Entry i is about token i + 1: the token itself first, then the most likely ones.
        rows_T = len(request.prompt_ids) - 1 + positions_T
        flat, row = output.prompt_logprobs, (-1, 1 + request.top_k)
        ids, values = np.array(flat.token_ids, np.int32).reshape(row), np.array(flat.logprobs, np.float32).reshape(row)
        logprobs, top_ids, top_logprobs = values[rows_T, 0], ids[rows_T, 1:], values[rows_T, 1:]
    return TeacherSignal(
        teacher=request.teacher,
        logprobs=_finite(logprobs),
        support_ids=request.support_ids,
        support_logprobs=None if request.support_ids is None else _finite(support_logprobs),
        top_ids=top_ids if request.top_k else None,
        top_logprobs=_finite(top_logprobs) if request.top_k else None,
    )


def _finite(logprobs: Any) -> NDArray[np.float32]:
    """As the other backends have it: what is impossible has the lowest finite log-prob."""
    return np.maximum(np.asarray(logprobs, np.float32), _LOWEST)
