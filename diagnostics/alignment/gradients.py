"""Where a teacher's gradient points to what the student succeeds with, node by node.

A node is a prefix of a student's answer; its candidates are tokens that may come next. Psucc_j is the probability
that the student succeeds after candidate j, p and q are what student and teacher give to the candidates,
renormalised on them. All gradients are with respect to the student's logits z at the node.

    ideal            g_j = p_j (Psucc_j − P̄),  P̄ = Σ_j p_j Psucc_j;  g = ∂P̄/∂z
    of a divergence  d = −∂D/∂z
    alignment        cos(g, d)

Definitions: Unmasking On-Policy Distillation, arXiv 2605.10889.

Shape suffixes: C candidates, M completions of a candidate.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagnostics.config import AlignmentConfig

Array = NDArray[np.float64]
SPLITS = 16  # random halves that the reliability of a node is a mean over
_NO_DIRECTION = 1e-9  # a gradient shorter than this is none
_SAME = 1e-6  # teacher and student are the same below this distance of their probabilities: rounding


def log_renormalised(logprobs_C: Array) -> Array:
    """The log-probs of the distribution that is left on the candidates."""
    shifted = logprobs_C - logprobs_C.max()
    return shifted - np.log(np.exp(shifted).sum())


def ideal_gradient(p_C: Array, success_C: Array) -> Array:
    """∂P̄/∂z: p_j (Psucc_j − P̄)."""
    return p_C * (success_C - p_C @ success_C)


def reverse_kl_descent(logp_C: Array, logq_C: Array) -> Array:
    """−∂KL(p || q)/∂z: −p_j (log(p_j / q_j) − KL)."""
    p_C, ratio_C = np.exp(logp_C), logp_C - logq_C
    return -p_C * (ratio_C - p_C @ ratio_C)


def forward_kl_descent(logp_C: Array, logq_C: Array) -> Array:
    """−∂KL(q || p)/∂z: q_j − p_j."""
    return np.exp(logq_C) - np.exp(logp_C)


def jsd_descent(logp_C: Array, logq_C: Array) -> Array:
    """−∂JSD(p, q)/∂z: −½ p_j (log(p_j / m_j) − KL(p || m)), with m = ½ (p + q)."""
    return reverse_kl_descent(logp_C, np.logaddexp(logp_C, logq_C) - np.log(2)) / 2


DESCENTS: Mapping[str, Callable[[Array, Array], Array]] = {
    "reverse_kl": reverse_kl_descent,
    "forward_kl": forward_kl_descent,
    "jsd": jsd_descent,
}


def cosine(a_C: Array, b_C: Array) -> float:
    """cos(a, b); 0 where one of them has no direction."""
    lengths = np.linalg.norm(a_C) * np.linalg.norm(b_C)
    return float(a_C @ b_C / lengths) if lengths > _NO_DIRECTION**2 else 0.0


def gradient_noise(p_C: Array, successes_C: Array, completions_C: Array, alpha: float) -> float:
    """The standard error of g: √Σ_j Var g_j, from the variances of the Beta posteriors of Psucc.

    Var g_j = p_j² ((1 − 2 p_j) v_j + Σ_i p_i² v_i).
    """
    a_C, b_C = successes_C + alpha, completions_C - successes_C + alpha
    variance_C = a_C * b_C / ((a_C + b_C) ** 2 * (a_C + b_C + 1))
    return float(np.sqrt((p_C**2 * ((1 - 2 * p_C) * variance_C + p_C**2 @ variance_C)).sum()))


def half_agreement(p_C: Array, outcomes_CM: Array, generator: np.random.Generator) -> float:
    """cos(g, g′) of the ideal gradients of two random halves of every candidate's completions, a mean over splits.

    A half in which all candidates succeed alike has no direction, and agrees with nothing: it counts as 0.
    Smoothing would shrink all candidates alike and change no direction.
    """
    half = outcomes_CM.shape[1] // 2
    cosines = []
    for _ in range(SPLITS):
        mixed_CM = generator.permuted(outcomes_CM, axis=1)
        halves = (mixed_CM[:, :half], mixed_CM[:, half : 2 * half])
        cosines.append(cosine(*(ideal_gradient(p_C, part.mean(axis=1)) for part in halves)))
    return float(np.mean(cosines))


@dataclass(frozen=True)
class Node:
    """The place before one token of a student's answer."""

    question: str
    sample_index: int
    position: int  # of the token in the response, from 0
    correct: bool  # whether the answer that it is taken from is
    inclusion_probability: float  # of its answer among the correct or incorrect ones, times its own in its window


@dataclass(frozen=True)
class View:
    """What the student and one teacher say at a node; the sampled token is the first candidate."""

    teacher: str
    has_context: bool  # whether the teacher sees more than the student
    candidate_ids: NDArray[np.int32]  # [C]
    student_logprobs: Array  # [C], nats
    teacher_logprobs: Array  # [C]
    proxies: Mapping[str, float]  # what is known without targeted rollouts


@dataclass(frozen=True)
class NodeAlignment:
    """One teacher's alignment at one node, on the candidates that were completed often enough."""

    node: Node
    view: View
    kept: NDArray[np.bool_]  # [C]
    success: Array  # [C], smoothed Psucc; NaN without completions
    skipped: str  # why nothing is said of the node; empty: it counts
    mean_success: float = np.nan  # P̄
    gradient_norm: float = np.nan
    noise: float = np.nan  # standard error of the gradient
    agreement: float = np.nan  # of the halves
    advantage: float = np.nan  # Σ_j (q_j − p_j) Psucc_j: what choosing this one token as the teacher does would gain
    cosines: Mapping[str, float] = field(default_factory=dict)  # by divergence
    direction_norms: Mapping[str, float] = field(default_factory=dict)  # |d|, by divergence


def compare_gradients(
    node: Node, view: View, outcomes: Mapping[int, Array], settings: AlignmentConfig
) -> NodeAlignment:
    """Compare the ideal gradient with the divergences' descent directions.

    Args:
        outcomes: of each candidate's completions, 1 for success and 0 for failure; their numbers may differ.
    """
    by_candidate = [outcomes.get(int(token), np.empty(0)) for token in view.candidate_ids]
    completions = np.array([len(item) for item in by_candidate], dtype=np.float64)
    successes = np.array([item.sum() for item in by_candidate])
    kept = completions >= settings.min_completions
    # The mean under a Beta(α, α) prior.
    smoothed = (successes + settings.alpha) / (completions + 2 * settings.alpha)
    success = np.where(completions > 0, smoothed, np.nan)
    if kept.sum() < 2:
        return NodeAlignment(node, view, kept, success, "fewer than two candidates")
    logp, logq = log_renormalised(view.student_logprobs[kept]), log_renormalised(view.teacher_logprobs[kept])
    p, gradient = np.exp(logp), ideal_gradient(np.exp(logp), success[kept])
    noise = gradient_noise(p, successes[kept], completions[kept], settings.alpha)
    common = int(completions[kept].min())
    table = np.stack([item[:common] for item, keep in zip(by_candidate, kept, strict=True) if keep])
    directions = {name: descent(logp, logq) for name, descent in DESCENTS.items()}
    return NodeAlignment(
        node=node,
        view=view,
        kept=kept,
        success=success,
        skipped=_reason(gradient, noise, directions["forward_kl"], settings),
        mean_success=float(p @ success[kept]),
        gradient_norm=float(np.linalg.norm(gradient)),
        noise=noise,
        agreement=half_agreement(p, table, np.random.default_rng(0)),
        advantage=float((np.exp(logq) - p) @ success[kept]),
        cosines={name: cosine(gradient, direction) for name, direction in directions.items()},
        direction_norms={name: float(np.linalg.norm(direction)) for name, direction in directions.items()},
    )


def _reason(gradient_C: Array, noise: float, direction_C: Array, settings: AlignmentConfig) -> str:
    if np.linalg.norm(gradient_C) < max(settings.min_signal_to_noise * noise, _NO_DIRECTION):
        return "no gradient above the noise"
    if np.linalg.norm(direction_C) < _SAME:
        return "the teacher says what the student says"
    return ""
