"""The verdict: the one place where it is written down what a probe's figures mean for the run.

Distillation moves the student, at the states that it visits itself, towards what the teacher would do there.

What it may gain or lose is therefore what the teacher gains or loses when it goes on from the student's own
beginnings: T_d - S_d, with T_d and S_d the scores of teacher and student that go on from the same share d of a
student's answer. A gain can be learned only on prompts where some answer of the student's own is right, since the
teacher scores nothing else; a loss needs no such answer:

    gain = mean over prompts x and depths d > 0 of (T_d(x) - S_d(x)) · [the student solves x in a sample, or T_d < S_d]

Whether T_d < S_d is read off other continuations of x than those that the difference is taken of, or noise alone would
count as a loss: what falls below zero by chance would be kept, and what rises above it left out. Each continuation is
measured in its turn, by the sign of the others at its depth, or at the other depths where it has none beside it.

What it can do already it keeps as far as the teacher would have written it: its right answers have the acceptance

    a = exp(mean over their tokens of log q - log p), at most 1

and what is not accepted is unlearned before anything takes its place. With S the student's score,

    predicted change of accuracy = a · gain - (1 - a) · S

No constant of the prediction is fitted; the formula is derived, not published, and was chosen in sight of the lab's
pairs. Its interval is that of the prompts, not of the formula: what the formula has been wrong by there is `MARGIN`.
Rethinking On-Policy Distillation (arXiv 2604.13016) reports the teacher's advantage by depth, and that success needs
compatible thinking (here a) and something new (here the gain).

Without a verifier nothing says what is better, only what is different: the prediction is then the share of the
divergence that lies where the student can follow, on ids that both models rank among their first k, and the verdict is
that it cannot tell, unless both models say the same.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from diagnostics.compatibility import DepthPoint, Graded, NewKnowledge, ProbeSamples, ProbeStatistics
from diagnostics.intervals import Interval, bootstrap_interval, ratio_interval
from tutelage.records.trajectory import CORRECT

MARGIN = 0.1  # of accuracy: more than the rule has promised too much on any pair of the lab (0.08)
SAME_MODEL = 1e-3  # nats a token: below it two models say the same
# Rule of three: what none of n prompts showed may still hold of 3 / n of all (Hanley and Lippman-Hand, JAMA 249, 1983).
FEWEST_PROMPTS = math.ceil(3 / MARGIN)
FEWEST_FOR_AN_INTERVAL = 8  # of fewer a bootstrap interval of 95 % holds in less than 88 %, of one it is a point


class Verdict(Enum):
    """Whether this teacher will help this student."""

    go = "go"
    go_with_cold_start = "go_with_cold_start"
    choose_another_teacher = "choose_another_teacher"
    nothing_to_learn = "nothing_to_learn"
    cannot_tell = "cannot_tell"


@dataclass(frozen=True)
class VerdictReport:
    """A verdict, the change that it predicts, and what it rests on."""

    verdict: Verdict
    predicted_change: Interval
    unit: str  # of the change
    evidence: tuple[str, ...]  # in plain words, with figures
    parts: Mapping[str, Interval] = field(default_factory=dict)  # of the formula: "gain" and "acceptance"

    @property
    def overrides(self) -> tuple[str, ...]:
        """What to add to the diagnosed settings for the recipe that is recommended."""
        return ("recipe=cold_start_then_distil",) if self.verdict is Verdict.go_with_cold_start else ()

    @property
    def recommends_a_run(self) -> bool:
        return self.verdict in (Verdict.go, Verdict.go_with_cold_start)


@dataclass(frozen=True)
class Prediction:
    """What distillation will do to the student's accuracy; the formulas are in the module's docstring."""

    change: Interval
    gain: Interval
    acceptance: Interval


def predict(samples: ProbeSamples) -> Prediction:
    """Predict the change of accuracy from graded answers and continuations."""
    differences = _differences(samples.student_continuations, samples.teacher_continuations)
    scores, right = defaultdict[str, list[float]](list), defaultdict[str, list[float]](lambda: [0.0, 0.0])
    for answer in samples.answers:
        scores[answer.prompt_id].append(answer.reward or 0.0)
        if answer.reward == CORRECT:
            right[answer.prompt_id][0] += answer.log_ratio
            right[answer.prompt_id][1] += len(answer.tokens.positions)
    prompts = [prompt for prompt in scores if prompt in differences]
    # Only where the student solves a prompt itself can it learn an advantage; a disadvantage it learns anywhere.
    gains = np.array([_gain(differences[x], solved=max(scores[x]) == CORRECT) for x in prompts])
    score = np.array([np.mean(scores[x]) for x in prompts])
    ratios = np.array([right[x] for x in prompts])

    def gain(rows: NDArray[np.int64]) -> float:
        return float(gains[rows].mean())

    def acceptance(rows: NDArray[np.int64]) -> float:
        total, tokens = ratios[rows].sum(axis=0)
        return min(1.0, math.exp(total / tokens)) if tokens else 1.0  # no right answer: nothing to lose

    def change(rows: NDArray[np.int64]) -> float:
        kept = acceptance(rows)
        return kept * gain(rows) - (1 - kept) * float(score[rows].mean())

    return Prediction(*(bootstrap_interval(of, len(prompts)) for of in (change, gain, acceptance)))


def _gain(differences: Sequence[NDArray[np.float64]], solved: bool) -> float:
    """Mean difference over a prompt's depths; where the student has not solved it, of what others say are losses.

    Args:
        differences: teacher minus student at each depth, one of each beginning.
    """
    if solved:
        return float(np.mean([at_depth.mean() for at_depth in differences]))
    losses = []
    for depth, at_depth in enumerate(differences):
        elsewhere = [other.mean() for index, other in enumerate(differences) if index != depth]
        kept = []
        for index, difference in enumerate(at_depth):
            others = np.delete(at_depth, index) if len(at_depth) > 1 else np.array(elsewhere)
            kept.append(difference if len(others) and others.mean() < 0 else 0.0)
        losses.append(np.mean(kept))
    return float(np.mean(losses))


def _differences(student: Sequence[Graded], teacher: Sequence[Graded]) -> dict[str, list[NDArray[np.float64]]]:
    """Teacher minus student of each prompt at each of its depths, beginning by beginning.

    Both have gone on from the same beginnings, in the same order.
    """
    student_rewards, teacher_rewards = _by_prompt_and_depth(student), _by_prompt_and_depth(teacher)
    differences: dict[str, list[NDArray[np.float64]]] = defaultdict(list)
    for at in sorted(student_rewards.keys() & teacher_rewards.keys()):
        pairs = list(zip(teacher_rewards[at], student_rewards[at], strict=False))  # one may have gone on less often
        differences[at[0]].append(np.array([teachers - own for teachers, own in pairs]))
    return dict(differences)


def _by_prompt_and_depth(scores: Sequence[Graded]) -> dict[tuple[str, float], list[float]]:
    rewards: dict[tuple[str, float], list[float]] = defaultdict(list)
    for score in scores:
        rewards[score.prompt_id, score.depth].append(score.reward)
    return rewards


def judge(samples: ProbeSamples, figures: ProbeStatistics) -> VerdictReport:
    """The verdict on a teacher for a student, and what it rests on."""
    if figures.student_accuracy is None:
        return _judge_divergence(samples, figures)
    prediction = predict(samples)
    change = prediction.change
    parts = {"gain": prediction.gain, "acceptance": prediction.acceptance}
    verdict, evidence = _verdict(figures, change), _evidence(figures, prediction)
    doubt = _doubt(verdict, len({answer.prompt_id for answer in samples.answers}), figures, change)
    if doubt:
        verdict, evidence = Verdict.cannot_tell, [doubt, *evidence]
    return VerdictReport(verdict, change, "accuracy", tuple(evidence), parts)


def _doubt(verdict: Verdict, prompts: int, figures: ProbeStatistics, change: Interval) -> str:
    """Why that is not known, and what would let it; empty where it is.

    Of few prompts nothing is. That there is nothing to learn needs more: no evidence for a teacher is none against it.
    """
    enough = max(FEWEST_PROMPTS, 2 * prompts)
    more = f"at least {enough} held-out prompts would tell (probe.prompts={enough} evaluation.prompts={enough})"
    if prompts < FEWEST_FOR_AN_INTERVAL:
        return f"{prompts} prompts are too few for any verdict: {more}"
    if verdict is not Verdict.nothing_to_learn:
        return ""
    scores = (figures.student_accuracy, figures.teacher_accuracy)
    if all(score is not None and score.mean == 0 for score in scores):
        return (
            "neither model got a single answer right, so nothing tells them apart: what would are easier prompts, a "
            "higher sampling.max_tokens, or the data.verifier that these answers are written for"
        )
    if prompts < FEWEST_PROMPTS:
        return f"{prompts} prompts are too few to say that there is nothing to learn: {more}"
    if change.low < -MARGIN and change.high > MARGIN:
        return f"the predicted change may be a gain as well as a loss of more than {MARGIN:g}: {more}"
    return ""


def _verdict(figures: ProbeStatistics, change: Interval) -> Verdict:
    if change.low > 0 and change.mean > MARGIN:
        return Verdict.go
    lead = figures.prefix_depth[0].advantage  # at depth 0: of whole answers
    if lead.low > 0 and lead.mean > MARGIN:
        return Verdict.go_with_cold_start
    if change.high < 0 and change.mean < -MARGIN:
        return Verdict.choose_another_teacher
    return Verdict.nothing_to_learn


def _evidence(figures: ProbeStatistics, prediction: Prediction) -> list[str]:
    start, *deeper = figures.prefix_depth
    lines = [f"the student scores {_show(start.student)}, the teacher {_show(start.teacher)}"]
    lines += [_going_on(deeper)] if deeper else []
    lines.append(
        f"the teacher would write the student's right answers with {_show(prediction.acceptance)} of the student's "
        "probability a token (1: it accepts them; near 0: they are unlearned)"
    )
    known = figures.new_knowledge
    if known is not None and known.teacher_pass_at_k is not None:
        lines.append(_out_of_reach(known, known.teacher_pass_at_k))
    if figures.auroc is not None:
        lines.append(
            f"the teacher's mean log-ratio is higher for a correct answer than for an incorrect one in "
            f"{figures.auroc.mean:.0%} of pairs (50 %: its scores do not tell them apart)"
        )
    return [*lines, *_agreement(figures)]


def _out_of_reach(known: NewKnowledge, solved: Interval) -> str:
    share = known.share_of_gap
    lead = "" if share is None else f", which is {share:.0%} of its lead"
    return (
        f"on {known.prompts_student_failed} of {known.prompts} prompts no answer of the student is right, so the "
        f"teacher's scores have nothing right to prefer there; the teacher solves {solved.mean:.0%} of them{lead}"
    )


def _going_on(points: Sequence[DepthPoint]) -> str:
    worst = min(points, key=lambda point: point.advantage.mean)
    best = max(points, key=lambda point: point.advantage.mean)
    return (
        f"from the student's own beginnings the teacher's advantage is {_show(best.advantage, '+')} at best (depth "
        f"{best.depth:g}) and {_show(worst.advantage, '+')} at worst (depth {worst.depth:g})"
    )


def _agreement(figures: ProbeStatistics) -> list[str]:
    stats = figures.statistics
    shared = stats["overlap_mass_student"]
    lines = [
        f"{shared.mean:.1%} of the student's mass lies on ids that both rank first (97 to 99 % in published runs), "
        f"reverse KL {stats['reverse_kl'].mean:.3f} nats a token"
    ]
    advantage = stats.get("overlap_token_advantage")
    if advantage is not None:
        lines.append(f"overlap-token advantage {advantage.mean:+.3f} nats (near 0: compatible)")
    return lines


def _judge_divergence(samples: ProbeSamples, figures: ProbeStatistics) -> VerdictReport:
    """What can be said where nothing is graded."""
    same = figures.statistics["reverse_kl"].mean < SAME_MODEL
    verdict = Verdict.nothing_to_learn if same else Verdict.cannot_tell
    evidence = (
        "both models say the same of the student's answers"
        if same
        else "there is no verifier: whether the teacher is better is not known, only how it differs. What would let it "
        "be told is graded answers: set data.verifier (exact, math, final_answer or your own) and give the held-out "
        "prompts an answer (data.heldout.answer_column)"
    )
    unit = "reverse KL, as a share of it"
    return VerdictReport(verdict, _reachable_share(samples), unit, (evidence, *_agreement(figures)))


def _reachable_share(samples: ProbeSamples) -> Interval:
    """Minus the share of the reverse KL that lies where the student can follow, Σ_t KL_t m_t / Σ_t KL_t.

    m_t is the student's mass on the ids that both models rank among their first k.
    """
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for answer in samples.answers:
        divergence, mass = answer.tokens.values["reverse_kl"], answer.tokens.values["overlap_mass_student"]
        sums[answer.prompt_id][0] -= float((divergence * mass).sum(dtype=np.float64))
        sums[answer.prompt_id][1] += float(divergence.sum(dtype=np.float64))
    columns = np.array(list(sums.values()))
    return ratio_interval(columns[:, 0], columns[:, 1].clip(min=1e-12))


def _show(value: Interval, sign: str = "") -> str:
    return f"{value.mean:{sign}.2f} [{value.low:{sign}.2f}, {value.high:{sign}.2f}]"
