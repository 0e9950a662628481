"""What one step tells the trackers: names shared by metrics.jsonl and Weights & Biases."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from diagnostics import monitors
from learner.records import Example, StepReport
from orchestration.results.tracker import Candidate, Sample
from tutelage.records.trajectory import FinishReason, Origin

SHOWN_TOP = 5  # of the most likely ids of a token
SHOWN_TOP_TOKENS = 1024  # of a trajectory, so that the samples of a long one stay small
HEALTH = ("rollout_logprob_gap_mean", "rollout_logprob_gap_max")


def step_metrics(batch: Sequence[Example], report: StepReport, seconds: Mapping[str, float]) -> dict[str, float]:
    """Every number of a step; `seconds` are those of each stage since the step before."""
    own = [e.trajectory for e in batch if e.trajectory.origin is Origin.STUDENT]
    rewards = [t.reward for t in own if t.reward is not None]
    lengths = [len(e.trajectory.response_ids) for e in batch]
    ages = [report.policy_version - 1 - t.oldest_version for t in own] or [0]  # others' sequences do not age
    metrics = {
        "train/loss": report.loss,
        "train/grad_norm": report.grad_norm,
        "train/learning_rate": report.learning_rate,
        "train/loss_tokens": float(report.loss_tokens),
        **{f"{'health' if name in HEALTH else 'train'}/{name}": value for name, value in report.metrics.items()},
        "rollout/mean_response_tokens": float(np.mean(lengths)),
        "rollout/truncated_share": float(np.mean([e.trajectory.finish_reason is FinishReason.LENGTH for e in batch])),
        "rollout/staleness_mean": float(np.mean(ages)),
        "rollout/staleness_max": float(max(ages)),
        "time/learn": report.seconds,
        "time/learn_cpu": report.cpu_seconds,
        **{f"time/{stage}": value for stage, value in seconds.items()},
    }
    metrics |= _teacher_metrics(batch)
    metrics = {name: value for name, value in metrics.items() if not _unknown_gap(name, value)}
    if len(own) < len(batch):
        metrics["rollout/on_policy_fraction"] = len(own) / len(batch)
    shut = sum(e.weight == 0 for e in batch)
    if shut:
        metrics["train/gated_share"] = shut / len(batch)
    if rewards:
        metrics["rollout/accuracy"] = float(np.mean(rewards))
    return metrics


def _unknown_gap(name: str, value: float) -> bool:
    """Whether it is an entropy gap to a teacher that does not tell its entropy."""
    return name.startswith("train/entropy_gap") and math.isnan(value)


def health_metrics(
    batch: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, float],
    before: Mapping[str, float],
) -> dict[str, float]:
    """What the monitors make of a step, given its `step_metrics` and the metrics of the step before."""
    own = [e.trajectory for e in batch if e.trajectory.origin is Origin.STUDENT]
    texts = tokenizer.batch_decode([t.response_ids for t in own], skip_special_tokens=True)
    return monitors.measure(monitors.Step(own, texts, metrics, before))


def _teacher_metrics(batch: Sequence[Example]) -> dict[str, float]:
    """Of the tokens that the teachers scored, and, where a tokenizer is another one, of how they did."""
    scored_mask = [(e.signal, e.loss_mask) for e in batch if e.signal is not None]
    if not scored_mask:
        return {}
    metrics = {"teacher/mean_logprob": _token_mean([signal.logprobs[mask] for signal, mask in scored_mask])}
    entropies = [signal.entropy[mask] for signal, mask in scored_mask if signal.entropy is not None]
    if len(entropies) == len(scored_mask):
        metrics["teacher/mean_entropy"] = _token_mean(entropies)
    across = [e for e in batch if e.signal is not None and e.signal.known is not None]
    if across:
        metrics["teacher/unmatched_share"] = 1 - sum(e.loss_tokens for e in across) / max(
            sum(e.trajectory.loss_tokens for e in across), 1
        )
        merged = [e.signal.merged[e.loss_mask] for e in across if e.signal is not None and e.signal.merged is not None]
        metrics["teacher/merged_share"] = _token_mean([flags.astype(np.float64) for flags in merged])
    return metrics


def _token_mean(values: Sequence[np.ndarray]) -> float:
    """Of the tokens that have a value."""
    known = np.concatenate(values)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else 0.0


def sample(example: Example, tokenizer: PreTrainedTokenizerBase) -> Sample:
    """The trajectory as a person reads it, token by token."""
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
        mean_log_ratio=None if student is None or teacher is None else _token_mean([teacher - student]),
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
    for place, token in enumerate(trajectory.response_ids[:SHOWN_TOP_TOKENS]):
        student = None if own is None else _rounded(own[place])
        teacher = None if teacher_logprobs is None else teacher_logprobs[place]
        rows.append(
            tuple(
                (
                    tokenizer.decode([other]),
                    student if other == token else None,
                    None if teacher is None else _rounded(teacher[rank]),
                )
                for rank, other in enumerate(ids[place, :SHOWN_TOP])
            )
        )
    return tuple(rows)


def _rounded(value: float) -> float | None:
    """None where there is no value."""
    return None if np.isnan(value) else round(float(value), 4)
