"""The numbers of one step, under the names that metrics.jsonl and Weights & Biases share."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from diagnostics import monitors
from learner.records import Example, StepReport
from tutelage.records.trajectory import FinishReason, Origin

HEALTH = ("rollout_logprob_gap_mean", "rollout_logprob_gap_max")


def step_metrics(batch: Sequence[Example], report: StepReport, seconds: Mapping[str, float]) -> dict[str, float]:
    """Return every number of a step but the monitors'; one that was skipped has neither loss nor gradient norm.

    Args:
        seconds: of each stage since the step before.
    """
    own = [e.trajectory for e in batch if e.trajectory.origin is Origin.STUDENT]
    rewards = [t.reward for t in own if t.reward is not None]
    lengths = [len(e.trajectory.response_ids) for e in batch]
    ages = [report.policy_version - 1 - t.oldest_version for t in own] or [0]  # others' sequences do not age
    taken = {} if report.skipped else {"train/loss": report.loss, "train/grad_norm": report.grad_norm}
    metrics = {
        **taken,
        "train/skipped": float(bool(report.skipped)),
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
    # The entropy gap to a teacher that does not tell its entropy is NaN.
    metrics = {name: x for name, x in metrics.items() if not (name.startswith("train/entropy_gap") and math.isnan(x))}
    if len(own) < len(batch):
        metrics["rollout/on_policy_fraction"] = len(own) / len(batch)
    shut = sum(e.weight == 0 for e in batch)
    if shut:
        metrics["train/gated_share"] = shut / len(batch)
    if rewards:
        metrics["rollout/accuracy"] = float(np.mean(rewards))
        metrics["rollout/grading_timeouts"] = float(sum(t.grading_overran for t in own))
    return metrics


def health_metrics(
    batch: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    metrics: Mapping[str, float],
    before: Mapping[str, float],
) -> dict[str, float]:
    """Return what the monitors make of a step, given its `step_metrics` and the metrics of the step before."""
    own = [e.trajectory for e in batch if e.trajectory.origin is Origin.STUDENT]
    texts = tokenizer.batch_decode([t.response_ids for t in own], skip_special_tokens=True)
    return monitors.measure(monitors.Step(own, texts, metrics, before))


def _teacher_metrics(batch: Sequence[Example]) -> dict[str, float]:
    """Means over the tokens that teachers scored; where a tokenizer is another one, how well they could be matched."""
    scored_mask = [(e.signal, e.loss_mask) for e in batch if e.signal is not None]
    if not scored_mask:
        return {}
    metrics = {"teacher/mean_logprob": token_mean([signal.logprobs[mask] for signal, mask in scored_mask])}
    entropies = [signal.entropy[mask] for signal, mask in scored_mask if signal.entropy is not None]
    if len(entropies) == len(scored_mask):
        metrics["teacher/mean_entropy"] = token_mean(entropies)
    across = [e for e in batch if e.signal is not None and e.signal.known is not None]
    if across:
        metrics["teacher/unmatched_share"] = 1 - sum(e.loss_tokens for e in across) / max(
            sum(e.trajectory.loss_tokens for e in across), 1
        )
        merged = [e.signal.merged[e.loss_mask] for e in across if e.signal is not None and e.signal.merged is not None]
        if merged:
            metrics["teacher/merged_share"] = token_mean([flags.astype(np.float64) for flags in merged])
    return metrics


def token_mean(values: Sequence[np.ndarray]) -> float:
    """Mean of the tokens that have a value; 0 where none has."""
    known = np.concatenate(values)
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else 0.0
