"""Two programs' log-probs of the same tokens, and what it means when they differ.

Shape suffixes: T response tokens.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diagnostics.check import Check, Status
from scoring.backends.quantization import QuantizationBias

Logprobs = Sequence[NDArray[np.float32]]  # [T] each, nats
_FAILS_AT = 5.0  # times the tolerance; in between is a warning
_SHOWS_AT = 4.0  # times the tolerance of the mean: a perturbation that moves log-probs by less shows nothing
_SAME_MODEL = 1e-4  # nats a token in float32: twice the same model; rounding to bfloat16 makes up to 20 times as much
_QUANTISED_KL = 0.05  # nats a token between full and quantised weights: from here on a teacher is another one


@dataclass(frozen=True)
class Tolerance:
    """How far two programs that compute the same may be apart, in nats a token."""

    mean: float
    most: float

    @classmethod
    def of(cls, dtypes: Sequence[str]) -> "Tolerance":
        """For programs that compute in these types: the coarsest decides."""
        return cls(2e-3, 2e-2) if set(dtypes) == {"float32"} else cls(5e-2, 1.0)


@dataclass(frozen=True)
class Gap:
    """|Δ log-prob| over all tokens, nats."""

    mean: float
    most: float
    tokens: int
    shift: int = 0  # the tokens by which one side has to be moved to agree much better; 0: none

    def __str__(self) -> str:
        return f"mean |Δ| {self.mean:.2g}, max {self.most:.2g} nats over {self.tokens} tokens"


def gap(ours: Logprobs, theirs: Logprobs) -> Gap:
    """Compare two programs' log-probs, and look whether one side is about the token before or after.

    Raises:
        ValueError: the two sides are not of the same lengths.
    """
    lengths = [len(values) for values in ours], [len(values) for values in theirs]
    if lengths[0] != lengths[1]:
        raise ValueError(f"log-probs of {lengths[0]} tokens are compared with those of {lengths[1]}")
    plain = _differences(ours, theirs, 0)
    moved = {shift: _differences(ours, theirs, shift) for shift in (-1, 1)}
    shift = next((s for s, gaps in moved.items() if len(gaps) and gaps.mean() < 0.1 * plain.mean()), 0)
    return Gap(float(plain.mean()), float(plain.max()), len(plain), shift)


def _differences(ours: Logprobs, theirs: Logprobs, shift: int) -> NDArray[np.float64]:
    """|Δ| of ours at t and theirs at t + shift, nats; -inf or NaN on one side counts as infinitely far."""
    differences = []
    for left, right in zip(ours, theirs, strict=True):
        a, b = (left[: len(left) - shift], right[shift:]) if shift >= 0 else (left[-shift:], right[:shift])
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
        differences.append(np.where(np.isfinite(difference), difference, np.inf))
    return np.concatenate(differences)


def check_agreement(name: str, sides: tuple[str, str], ours: Logprobs, theirs: Logprobs, tolerance: Tolerance) -> Check:
    """Whether two programs say the same about the same tokens.

    Args:
        name: of the check.
        sides: who they are, in words.
    """
    if [len(values) for values in ours] != [len(values) for values in theirs]:
        seen = f"{sides[0]} and {sides[1]} speak of different numbers of tokens: a response was cut"
        return Check(name, Status.failed, seen, "no setting causes this: report it with this run's folder")
    for side, values in zip(sides, (ours, theirs), strict=True):
        bad = sum(int((~np.isfinite(row)).sum()) for row in values)
        if bad:
            seen = f"{side}: {bad} of {sum(map(len, values))} log-probs are no numbers (NaN or infinite)"
            fix = (
                "its weights are damaged or too large for its dtype: choose another checkpoint, or dtype=float32 for it"
            )
            return Check(name, Status.failed, seen, fix)
    return _judge(name, sides, gap(ours, theirs), tolerance)


def _judge(name: str, sides: tuple[str, str], difference: Gap, tolerance: Tolerance) -> Check:
    excess = max(difference.mean / tolerance.mean, difference.most / tolerance.most)
    seen = f"{sides[0]} and {sides[1]}: {difference}"
    if excess <= 1:
        return Check(name, Status.passed, seen)
    if difference.shift:
        seen += "; moved by one token they agree: the scores are off by one"
        fix = "no setting causes this: state t must score response token t; report it with this run's folder"
        return Check(name, Status.failed, seen, fix)
    status = Status.failed if excess > _FAILS_AT else Status.warned
    fix = (
        f"within {tolerance.mean:g} (mean) and {tolerance.most:g} (max) they compute the same model; give both one "
        "dtype (rollout.dtype, learner.dtype, scoring.dtype) and one checkpoint, float32 to find the cause"
    )
    return Check(name, status, seen, fix)


def check_packing(who: str, packed: Logprobs, alone: Logprobs, tolerance: Tolerance) -> Check:
    """Whether a model says the same of sequences packed with a longer one as of each alone.

    Args:
        who: the model, in words.
    """
    sides = f"{who}, packed with a longer sequence", "alone"
    check = check_agreement(f"canary: {who}, long beside short", sides, packed, alone, tolerance)
    if check.status is Status.passed:
        return check
    fix = (
        "choose another model: what a sequence is packed with changes its log-probs, as rotary frequencies do that are "
        "chosen by the longest position, or layers that carry a state (docs/architectures.md)"
    )
    return replace(check, fix=fix)


def check_new_weights(
    ours: Logprobs, theirs: Logprobs, before: Logprobs, after: Logprobs, tolerance: Tolerance
) -> Check:
    """Whether the engine has every one of the perturbed weights.

    Args:
        ours, theirs: the engine's and the learner's log-probs of what the engine sampled with them.
        before, after: the learner's log-probs of the same tokens without and with the perturbation.
    """
    name, sides = "canary: new weights", ("engine", "learner")
    effect = gap(before, after).mean
    agreement = check_agreement(name, sides, ours, theirs, tolerance)
    seen = f"{agreement.seen}, after a change that moved the learner's by {effect:.2g}"
    if agreement.status is not Status.passed:
        fix = (
            "the engine goes on with old weights (a packed LM head, a tied embedding or a cache, say): choose another "
            "learner.weight_transfer, or report it with this run's folder"
        )
        return Check(name, agreement.status, seen, fix)
    if effect < _SHOWS_AT * tolerance.mean:
        fix = "use float32 in rollout.dtype and learner.dtype once to be sure that new weights arrive"
        return Check(name, Status.warned, f"{seen}: too little to show stale weights", fix)
    return Check(name, Status.passed, seen)


def check_restored(ours: Logprobs, theirs: Logprobs, before: Logprobs, after: Logprobs, tolerance: Tolerance) -> Check:
    """Whether learner and engine have the weights again that they began with; as `check_new_weights`."""
    name = "canary: old weights again"
    learner = gap(before, after)
    if learner.most > 0.1 * tolerance.most:
        seen = f"the learner before and after: {learner}"
        return Check(name, Status.failed, seen, "the learner's weights did not come back: start the run anew")
    return check_agreement(name, ("engine", "learner"), ours, theirs, tolerance)


def check_response_ends(
    lengths: Sequence[int], stopped: Sequence[bool], last_ids: Sequence[int], limits: Sequence[int], stops: Set[int]
) -> Check:
    """Whether responses end with their last token or at their limit, never in between.

    Args:
        lengths: of the responses.
        stopped: whether the engine says that the response came to its end, rather than being cut.
        last_ids: each response's last id.
        limits: tokens that each was allowed.
        stops: ids that end a response.
    """
    rows = list(zip(lengths, stopped, last_ids, limits, strict=True))
    wrong = [row for row in rows if (row[2] not in stops if row[1] else row[0] != row[3])]
    seen = f"{sum(stopped)} of {len(rows)} answers end with EOS, {len(rows) - sum(stopped)} were cut at their limit"
    if wrong:
        length, ended, last, limit = wrong[0]
        seen = f"{len(wrong)} of {len(rows)} end otherwise: {length} of {limit} tokens, ended={ended}, last id {last}"
        fix = "make eos_token_id of generation_config.json that of the tokenizer: the engine ends answers elsewhere"
        return Check("canary: ends", Status.failed, seen, fix)
    if rows and not any(stopped):
        fix = (
            "whether answers end was not seen: if rollout/truncated_share stays near 1, raise sampling.max_tokens, or "
            "choose a student that ends its answers"
        )
        return Check("canary: ends", Status.warned, seen, fix)
    return Check("canary: ends", Status.passed, seen)


def check_teacher_differs(divergence: float, dtypes: Sequence[str], has_context: bool, own_answers: bool) -> Check:
    """Whether the teacher says anything else than the student.

    Args:
        divergence: mean KL(student || teacher) of the canary's tokens, nats.
        dtypes: that student and teacher compute in.
        has_context: the teacher is told more than the student.
        own_answers: a selection of the student's own answers is what is learned.
    """
    same = divergence < _SAME_MODEL * (1 if len({*dtypes, "float32"}) == 1 else 20)
    seen = f"KL(student ‖ teacher) is {divergence:.3g} nats a token on the student's answers"
    if not same:
        return Check("teacher differs", Status.passed, seen)
    if own_answers:
        return Check("teacher differs", Status.passed, f"{seen}: correct answers of its own are what it learns")
    if has_context:
        fix = "tell the teacher what helps with these prompts (teacher.context): it says what the student says"
        return Check("teacher differs", Status.warned, f"{seen}, though it is told more", fix)
    fix = "choose another teacher, or tell it more than the student (teacher.context): there is nothing to learn"
    return Check("teacher differs", Status.failed, seen, fix)


def check_quantised(bias: QuantizationBias) -> Check:
    """Whether a quantised teacher still says what its full weights say."""
    name = "canary: quantised teacher"
    if bias.kl <= _QUANTISED_KL:
        return Check(name, Status.passed, str(bias))
    finer = "set teacher.quantization=none" if bias.quantization == "int8" else "set teacher.quantization=int8 or none"
    fix = f"{finer}: above {_QUANTISED_KL:g} nats a token the student learns from another teacher"
    return Check(name, Status.warned, str(bias), fix)
