"""Several teachers as one: their probabilities, weighted and added, token by token.

    q(v) = sum_i w_i q_i(v)

Exact for whatever ids all were asked about, and for the whole vocabulary through their states side by side
(`tutelage.lm.head.MixedHead`). The mixture's own most likely ids are sought among those of its teachers: a first round
asks each for its own, a second for the log-probs of all of them, so the log-probs are exact. An id that no teacher has
among its top k has at most the weighted sum of their k-th probabilities.

Shape suffixes: T scored tokens, K support ids a position, U ids of the union, d hidden size.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from tutelage.records.per_token import StoredRows
from tutelage.records.signal import ScoringRequest, TeacherSignal

Score = Callable[[ScoringRequest], Awaitable[TeacherSignal]]


async def score_mixture(
    name: str, weights: Mapping[str, float], requests: Mapping[str, ScoringRequest], score: Score
) -> TeacherSignal:
    """Score with several teachers as one.

    Args:
        weights: of each teacher, by key, summing to 1.
        requests: to each teacher, about the same tokens of the same response.
        score: asks one teacher.
    """
    keys = list(weights)
    first = await asyncio.gather(*(score(requests[key]) for key in keys))
    shares = np.log([weights[key] for key in keys], dtype=np.float64)
    mixed = TeacherSignal(
        teacher=name,
        logprobs=_mixed([signal.logprobs for signal in first], shares),
        support_ids=requests[keys[0]].support_ids,
        support_logprobs=_mixed_optional([signal.support_logprobs for signal in first], shares),
        hidden_states=_side_by_side([signal.hidden_states for signal in first]),
    )
    top_k = requests[keys[0]].top_k
    if not top_k:
        return mixed
    union_TU, is_new_TU = _union([signal.top_ids for signal in first])
    asked = [replace(requests[key], support_ids=union_TU, top_k=0, hidden_states=False) for key in keys]
    second = await asyncio.gather(*(score(request) for request in asked))
    logprobs_TU = _mixed_optional([signal.support_logprobs for signal in second], shares)
    assert logprobs_TU is not None  # they were asked for
    order = np.argsort(np.where(is_new_TU, -logprobs_TU, np.inf), axis=1, kind="stable")[:, :top_k]
    return replace(
        mixed,
        top_ids=np.take_along_axis(union_TU, order, axis=1),
        top_logprobs=np.take_along_axis(logprobs_TU, order, axis=1),
    )


def _mixed(logprobs: Sequence[NDArray[np.float32]], shares: NDArray[np.float64]) -> NDArray[np.float32]:
    """log sum_i w_i q_i, of arrays of one shape."""
    stacked = np.stack(logprobs, axis=-1).astype(np.float64) + shares
    return np.asarray(logsumexp(stacked, axis=-1), dtype=np.float32)


def _mixed_optional(
    logprobs: Sequence[NDArray[np.float32] | None], shares: NDArray[np.float64]
) -> NDArray[np.float32] | None:
    given = [values for values in logprobs if values is not None]
    return _mixed(given, shares) if given else None


def _side_by_side(states: Sequence[Any]) -> Any:
    given = [values for values in states if values is not None]
    if given and all(isinstance(values, StoredRows) for values in given):
        return StoredRows.side_by_side(given)
    return np.concatenate(given, axis=1) if given else None


def _union(tops: Sequence[NDArray[np.int32] | None]) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """[T, U] ids of all, and where each stands for the first time."""
    ids_TU = np.sort(np.concatenate([ids for ids in tops if ids is not None], axis=1), axis=1)
    is_new_TU = np.ones_like(ids_TU, dtype=np.bool_)
    is_new_TU[:, 1:] = ids_TU[:, 1:] != ids_TU[:, :-1]
    return ids_TU, is_new_TU
