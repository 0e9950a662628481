"""Several answers of the student's in one trajectory, each to what others said after the one before.

    prompt ─► answer ─► follow-up ─► answer ─► … ─► one trajectory

A conversation ends early with an answer that does not: one that ran into its limit of tokens.

Shape suffixes: P prompt tokens, T response tokens, K candidates a position.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tutelage.chat import after_answer
from tutelage.records.per_token import spread
from tutelage.records.trajectory import (
    STUDENT_ROLE,
    TRAJECTORY_ARRAYS,
    FinishReason,
    FollowUp,
    PolicySpan,
    RolloutRequest,
    Trajectory,
    Turn,
    derive_seed,
)

Ask = Callable[[RolloutRequest], Awaitable[Trajectory]]


async def converse(request: RolloutRequest, ask: Ask) -> Trajectory:
    """Hold the whole conversation of a request.

    Args:
        ask: draws one answer to `prompt_ids`; it leaves `follow_ups` alone.
    """
    answers = [await ask(request)]
    for index, follow_up in enumerate(request.follow_ups):
        last = answers[-1]
        if last.finish_reason is not FinishReason.STOP:
            break
        between = after_answer(last.response_ids, follow_up)
        prompt_ids = np.concatenate([last.prompt_ids, last.response_ids, between]).astype(np.int32)
        answers.append(await ask(replace(request, prompt_ids=prompt_ids, seed=derive_seed(request.seed, index + 1))))
    return join(answers, request.follow_ups) if request.follow_ups else answers[0]


def most_tokens(request: RolloutRequest) -> int:
    """Bound the length of a request's whole conversation, prompt included, in tokens."""
    answers = (1 + len(request.follow_ups)) * request.max_tokens
    return len(request.prompt_ids) + answers + sum(len(follow_up.ids) for follow_up in request.follow_ups)


def join(answers: Sequence[Trajectory], follow_ups: Sequence[FollowUp]) -> Trajectory:
    """Join all answers and what stands between them into one trajectory."""
    turns = tuple(_turns(answers, follow_ups))
    tokens = turns[-1].stop
    first, own = answers[0], [turn for turn in turns if turn.role == STUDENT_ROLE]
    response_ids = np.concatenate([answers[-1].prompt_ids, answers[-1].response_ids])[len(first.prompt_ids) :]

    sampled = np.zeros(tokens, dtype=np.bool_)
    for turn in own:
        sampled[turn.start : turn.stop] = True
    arrays: dict[str, Any] = {}
    for name, array in TRAJECTORY_ARRAYS.items():
        rows = [getattr(answer, name) for answer in answers]
        if rows[0] is not None:
            arrays[name] = spread(np.concatenate(rows), sampled, array.filler)
    return replace(
        first,
        **arrays | {"response_ids": response_ids.astype(np.int32)},
        spans=tuple(_spans(answers, own)),
        finish_reason=answers[-1].finish_reason,
        turns=turns,
    )


def _turns(answers: Sequence[Trajectory], follow_ups: Sequence[FollowUp]) -> Iterator[Turn]:
    start = len(answers[0].prompt_ids)
    for index, answer in enumerate(answers):
        if index:
            asked = follow_ups[index - 1]
            before = len(answers[index - 1].prompt_ids) + len(answers[index - 1].response_ids)
            yield Turn(asked.role, before - start, len(answer.prompt_ids) - start, asked.text)
        begin = len(answer.prompt_ids) - start
        yield Turn(STUDENT_ROLE, begin, begin + len(answer.response_ids))


def _spans(answers: Sequence[Trajectory], turns: Sequence[Turn]) -> Iterator[PolicySpan]:
    for answer, turn in zip(answers, turns, strict=True):
        for span in answer.spans:
            yield PolicySpan(span.version, turn.start + span.start, turn.start + span.stop)
