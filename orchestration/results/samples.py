"""Trajectories for people, token by token, as samples/step-*.jsonl and a table of Weights & Biases have them."""

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from learner.records import Example
from orchestration.results.metrics import token_mean
from tutelage.records.trajectory import Origin

SHOWN_TOP = 5  # of the most likely ids of a token
SHOWN_TOP_TOKENS = 1024  # of a trajectory, so that the samples of a long one stay small
TABLE_COLUMNS = ["prompt", "response", "reward", "mean_log_ratio", "tokens", "student_logprobs", "teacher_logprobs"]
Candidate = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Sample:
    """One trajectory with its per-token signal, for people."""

    prompt_id: str
    sample_index: int
    origin: str  # "student", "teacher" or "dataset"
    prompt: str
    response: str
    reward: float | None
    tokens: tuple[str, ...]
    # None at tokens that others wrote, or that a teacher with another tokenizer could not score.
    student_logprobs: tuple[float | None, ...] | None  # under the sampling distribution; None if it did not sample them
    teacher_logprobs: tuple[float | None, ...] | None  # None without a teacher
    mean_log_ratio: float | None  # teacher minus student, nats a token
    # Of each token the most likely others: their text, the student's and the teacher's log-prob of it where known.
    student_top: tuple[tuple[Candidate, ...], ...] | None = None  # None where the engine was not asked for them
    teacher_top: tuple[tuple[Candidate, ...], ...] | None = None


def sample(example: Example, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """Describe a trajectory to a person, token by token."""
    trajectory = example.trajectory
    student = trajectory.sampling_logprobs if trajectory.origin is Origin.STUDENT else None
    teacher = example.signal.logprobs if example.signal is not None else None
    return Sample(
        prompt_id=trajectory.prompt_id,
        sample_index=trajectory.sample_index,
        origin=trajectory.origin.value,
        prompt=tokenizer.decode(trajectory.prompt_ids),
        response=tokenizer.decode(trajectory.response_ids, skip_special_tokens=True),
        reward=trajectory.reward,
        tokens=tuple(tokenizer.decode([token]) for token in trajectory.response_ids),
        student_logprobs=None if student is None else tuple(map(_rounded, student)),
        teacher_logprobs=None if teacher is None else tuple(map(_rounded, teacher)),
        mean_log_ratio=None if student is None or teacher is None else token_mean([teacher - student]),
        student_top=_student_top(example, tokenizer),
        teacher_top=_teacher_top(example, tokenizer),
    )


def _student_top(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[Candidate, ...], ...] | None:
    """What the engine named, with the teacher's log-probs where it was asked for those of the same ids."""
    candidates, signal = example.trajectory.candidate_ids, example.signal
    if candidates is None:
        return None
    same = signal is not None and signal.support_ids is not None and np.array_equal(signal.support_ids, candidates)
    logprobs = signal.support_logprobs if signal is not None and same else None
    return _candidates(example, tokenizer, candidates, logprobs)


def _teacher_top(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[Candidate, ...], ...] | None:
    signal = example.signal
    if signal is None or signal.top_ids is None:
        return None
    return _candidates(example, tokenizer, signal.top_ids, signal.top_logprobs)


def _candidates(
    example: Example, tokenizer: PreTrainedTokenizerBase, ids: np.ndarray, teacher_logprobs: np.ndarray | None
) -> tuple[tuple[Candidate, ...], ...]:
    """Text and log-probs of the first ids of each position; the student's is known of the token that came.

    Args:
        ids: [T, K], most likely first.
        teacher_logprobs: [T, K].
    """
    trajectory = example.trajectory
    own = trajectory.sampling_logprobs if trajectory.origin is Origin.STUDENT else None
    rows = []
    for position, token in enumerate(trajectory.response_ids[:SHOWN_TOP_TOKENS]):
        student = None if own is None else _rounded(own[position])
        teacher = None if teacher_logprobs is None else teacher_logprobs[position]
        rows.append(
            tuple(
                (
                    tokenizer.decode([other]),
                    student if other == token else None,
                    None if teacher is None else _rounded(teacher[rank]),
                )
                for rank, other in enumerate(ids[position, :SHOWN_TOP])
            )
        )
    return tuple(rows)


def _rounded(value: float) -> float | None:
    """None where there is no value."""
    return None if np.isnan(value) else round(float(value), 4)
