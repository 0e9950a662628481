"""What every step tells of the run's health, cheaply: from the batch as it is, and from what the learner measured.

All are of the student's own sequences; a batch without any has none of them.
"""

import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

from tutelage.records.trajectory import CORRECT, FinishReason, Trajectory

REPETITION_TOKENS = 3
# Words by which a model says that it is not sure; distillation can take them away (epistemic verbalisation).
_HEDGES = re.compile(r"\b(?:wait|hmm+|perhaps|maybe|actually|alternatively|seems|might|likely|check)\b", re.IGNORECASE)
_ANSWER_MARKS = re.compile(r"####|\\boxed\s*\{|<answer>", re.IGNORECASE)
_DISTANCES = ("train/reverse_kl", "train/support_reverse_kl")  # the first that a step has is what absorption is of


def repetition(ids: Sequence[int], n: int) -> float:
    """Share of the n-grams of a response that stand in it before, from 0 to 1."""
    grams = len(ids) - n + 1
    if grams < 1:
        return 0.0
    return 1 - len(set(zip(*(ids[i:] for i in range(n)), strict=False))) / grams


def compression_ratio(text: str) -> float:
    """Bytes of a text over bytes of its zlib stream: prose has 2 to 3, a loop 10 and more, an empty text 1."""
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 1.0


def text_monitors(own: Sequence[Trajectory], texts: Sequence[str]) -> dict[str, float]:
    """Of the responses and what they decode to; means over responses, hedge words per thousand tokens.

    Correct and answer-marked shares only where a verifier graded the responses.
    """
    if not own:
        return {}
    n = len(own)
    tokens = sum(len(t.response_ids) for t in own)
    found = {
        "health/repetition": sum(repetition(t.response_ids.tolist(), REPETITION_TOKENS) for t in own) / n,
        "health/compression_ratio": sum(map(compression_ratio, texts)) / n,
        "health/hedges_per_1k_tokens": 1000 * sum(len(_HEDGES.findall(text)) for text in texts) / max(tokens, 1),
        "health/stopped_share": Counter(t.finish_reason for t in own)[FinishReason.STOP] / n,
    }
    rewards = [t.reward for t in own if t.reward is not None]
    if rewards:
        found["health/answer_marked_share"] = sum(bool(_ANSWER_MARKS.search(text)) for text in texts) / n
        found["health/correct_share"] = sum(reward >= CORRECT for reward in rewards) / len(rewards)
    return found


def signal_monitors(metrics: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """From the metrics of a step and of the one before it, as far as the learner measured them.

    The absorption rate is the relative fall of the reverse KL to the teacher since the step before.
    """
    found = {}
    if "train/student_tail_mass" in metrics:
        found["health/support_mass"] = 1 - metrics["train/student_tail_mass"]
    if "train/importance_ratio" in metrics:
        found["health/importance_ratio_drift"] = abs(metrics["train/importance_ratio"] - 1)
    distance = next((name for name in _DISTANCES if name in metrics), None)
    if distance is not None and before.get(distance, 0.0) > 0:
        found["health/absorption_rate"] = 1 - metrics[distance] / before[distance]
    return found
