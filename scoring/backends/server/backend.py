"""The backend `server`: scores from the prompt log-probs of a completions endpoint.

The endpoint is sent token ids, prompt and response as one prompt, so that no text is tokenized anew. What it says of
its prompt is at temperature 1.

Shape suffixes: N tokens of prompt and response, T of these that are scored.
"""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from transformers import AutoTokenizer

from scoring.backends.base import Backend, ServerStats
from scoring.backends.server.answers import (
    check_positions,
    completion_question,
    read_prompt_logprobs,
    scored_logprobs,
    scored_top,
)
from scoring.backends.server.checks import check_endpoint
from scoring.backends.server.client import Endpoint, EndpointFailure, EndpointRefusal
from scoring.capabilities import check_request
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.records.signal import ScoringRequest, TeacherSignal


class ServerTeacher(Backend):
    """One question to the endpoint `teacher.server` for each response."""

    def __init__(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        """Read the key.

        Args:
            path: the directory of the tokenizer whose ids the requests have.

        Raises:
            ValueError: the address or the key cannot be one.
        """
        self._path, self._teacher, self._scoring = path, teacher, scoring
        self._endpoint = Endpoint(teacher.server)

    async def start(self) -> int:
        """Ask the endpoint for what the run will ask it for, and return the size of the tokenizer's vocabulary.

        Raises:
            ValueError: it does not answer, does not let us in, or cannot give what the config says.
        """
        await self._endpoint.open()
        tokenizer = AutoTokenizer.from_pretrained(self._path, trust_remote_code=self._teacher.trust_remote_code)
        try:
            self._vocabulary = await check_endpoint(self._endpoint, self._teacher, self._scoring, self._path, tokenizer)
        except (EndpointFailure, ValueError) as error:
            await self._endpoint.close()
            raise ValueError(str(error)) from error
        return self._vocabulary

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """The log-probs of the scored tokens and the endpoint's most likely ids.

        Raises:
            ValueError: the request asks for more than that, or the endpoint refuses it.
            EndpointFailure: no answer, however often it was asked.
        """
        self._check(request)
        if not request.num_scored:
            return TeacherSignal.empty(request)
        ids_N = request.ids_to_last_scored
        question = completion_question(self._teacher.model, ids_N, request.top_k)
        try:
            return await self._endpoint.ask("completions", question, partial(_signal, request, ids_N, self._vocabulary))
        except EndpointRefusal as error:
            raise ValueError(
                f"teacher.server.url={self._teacher.server.url}: refuses {len(ids_N)} tokens with {error}"
            ) from error

    async def close(self) -> None:
        await self._endpoint.close()

    def server_stats(self) -> ServerStats:
        return self._endpoint.stats()

    def _check(self, request: ScoringRequest) -> None:
        why = "a completions endpoint cannot give it; ask for top_k, or set teacher.backend=transformers"
        check_request(request, ("support_ids", "entropy", "hidden_states", "stops"), why)
        limit = self._teacher.server.max_top_k
        if request.top_k > limit:
            raise ValueError(
                f"ScoringRequest.top_k={request.top_k}: teacher.server.max_top_k={limit}; raise that, if the endpoint "
                "gives more, or ask for fewer"
            )


def _signal(request: ScoringRequest, ids_N: NDArray[np.int32], vocabulary: int, content: bytes) -> TeacherSignal:
    """The scores that an answer has; of a garbled one there are none."""
    entries = check_positions(read_prompt_logprobs(content), ids_N, vocabulary)
    positions_T = len(request.prompt_ids) + request.scored_positions
    top = scored_top(entries, positions_T, request.top_k) if request.top_k else (None, None)
    return TeacherSignal(
        teacher=request.teacher,
        logprobs=scored_logprobs(entries, ids_N, positions_T),
        top_ids=top[0],
        top_logprobs=top[1],
    )
