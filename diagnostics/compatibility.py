"""What the compatibility probe finds out, from the answers that student and teacher gave: figures with intervals.

answers of the student, token by token ─► statistics, whole and by position, correctness, domain, teacher
answers of both, graded               ─► accuracy, AUROC of the mean reward, new knowledge
continuations of the student's prefixes ─► teacher's advantage by depth

Definitions: Rethinking On-Policy Distillation, arXiv 2604.13016; the intervals are 95 % bootstrap intervals over
prompts. Shape suffix: T loss tokens of an answer.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from diagnostics.intervals import BOOTSTRAP_DRAWS, Interval, ratio_interval
from learner.records import ExampleTokens
from tutelage.records.trajectory import CORRECT

EARLIER = "earlier_teacher_logprob"  # of a token, under the teacher's earlier checkpoint


@dataclass(frozen=True)
class ProbedAnswer:
    """An answer of the student under both models."""

    prompt_id: str
    domain: str
    teacher: str
    reward: float | None  # None without a verifier
    tokens: ExampleTokens

    @property
    def mean_reward(self) -> float:
        """r̄(y) = 1/T Σ_t (log q - log p)(ŷ_t), nats a token."""
        return float(self._log_ratio.mean())

    @property
    def log_ratio(self) -> float:
        """log q(y) - log p(y) of the whole answer, nats."""
        return float(self._log_ratio.sum(dtype=np.float64))

    @property
    def _log_ratio(self) -> NDArray[np.float32]:
        return self.tokens.values["teacher_logprob"] - self.tokens.values["student_logprob"]


@dataclass(frozen=True)
class Graded:
    """A score that a model got for a prompt; `depth` is the share of a student's answer that it went on from."""

    prompt_id: str
    reward: float
    depth: float = 0.0


@dataclass(frozen=True)
class ProbeSamples:
    """Everything that was sampled."""

    answers: Sequence[ProbedAnswer]
    teacher_answers: Sequence[Graded] = ()  # these three: none without a verifier
    student_continuations: Sequence[Graded] = ()
    teacher_continuations: Sequence[Graded] = ()

    @property
    def student_answers(self) -> list[Graded]:
        return [Graded(a.prompt_id, a.reward) for a in self.answers if a.reward is not None]


@dataclass(frozen=True)
class DepthPoint:
    """Both models going on from the same prefixes of the student's answers."""

    depth: float
    student: Interval
    teacher: Interval
    advantage: Interval  # teacher minus student
    n: int  # continuations of each


@dataclass(frozen=True)
class PositionRange:
    """Tokens `from_token` (inclusive) to `to_token` (exclusive) of the answers."""

    from_token: int
    to_token: int
    interval: Interval
    tokens: int


@dataclass(frozen=True)
class NewKnowledge:
    """What the teacher does on the prompts that the student answers right in none of its samples."""

    prompts_student_failed: int
    prompts: int
    teacher_pass_at_k: Interval | None  # None: there is no such prompt
    share_of_gap: float | None  # of the teacher's lead in accuracy; None where it does not lead


def auroc(answers: Sequence[ProbedAnswer]) -> Interval | None:
    """Probability that r̄ of a correct answer is above that of an incorrect one; None where all are of one kind.

    0.5 says that the teacher's scores do not know what the verifier rewards.
    """
    scores = np.array([answer.mean_reward for answer in answers])
    correct = np.array([answer.reward == CORRECT for answer in answers])
    prompts = np.array([answer.prompt_id for answer in answers])
    if correct.all() or not correct.any():
        return None
    rows_of = [np.flatnonzero(prompts == prompt) for prompt in dict.fromkeys(prompts.tolist())]
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(BOOTSTRAP_DRAWS // 4):
        rows = np.concatenate([rows_of[i] for i in rng.integers(0, len(rows_of), len(rows_of))])
        if correct[rows].any() and not correct[rows].all():
            draws.append(_auroc(scores[rows], correct[rows]))
    return Interval.of(_auroc(scores, correct), draws)


def by_position(answers: Sequence[ProbedAnswer]) -> dict[str, list[PositionRange]]:
    """`statistics` by powers of two of the position in the answer: [0, 1), [1, 2), [2, 4), [4, 8), …"""
    longest = max(int(answer.tokens.positions.max(initial=0)) for answer in answers) + 1
    edges = [0, *(2**power for power in range(int(longest - 1).bit_length() + 1))]
    ranges: dict[str, list[PositionRange]] = defaultdict(list)
    for low, high in pairwise(edges):
        for name, (interval, tokens) in _means(_sums(answers, low, high)).items():
            ranges[name].append(PositionRange(low, high, interval, tokens))
    return dict(ranges)


def new_knowledge(samples: ProbeSamples) -> NewKnowledge:
    """Teacher pass@k where student pass@k is 0, and how much of the teacher's lead comes from there."""
    student, teacher = _by_prompt(samples.student_answers), _by_prompt(samples.teacher_answers)
    prompts = [prompt for prompt in student if prompt in teacher]
    failed = [prompt for prompt in prompts if max(student[prompt]) < CORRECT]
    if not failed:
        return NewKnowledge(0, len(prompts), None, None)
    passed = np.array([float(max(teacher[prompt]) == CORRECT) for prompt in failed])
    lead = sum(float(np.mean(teacher[prompt]) - np.mean(student[prompt])) for prompt in prompts)
    there = sum(float(np.mean(teacher[prompt]) - np.mean(student[prompt])) for prompt in failed)
    share = there / lead if lead > 0 else None
    return NewKnowledge(len(failed), len(prompts), ratio_interval(passed, np.ones(len(passed))), share)


def statistics(answers: Sequence[ProbedAnswer]) -> dict[str, Interval]:
    """Means over tokens, with intervals over prompts; a statistic that is defined nowhere is left out."""
    return {name: interval for name, (interval, _tokens) in _means(_sums(answers, 0, None)).items()}


@dataclass(frozen=True)
class ProbeStatistics:
    """The probe's outcome. What needs a verifier is None without one."""

    statistics: Mapping[str, Interval]
    by_position: Mapping[str, Sequence[PositionRange]]
    by_domain: Mapping[str, Mapping[str, Interval]]
    by_teacher: Mapping[str, Mapping[str, Interval]]
    by_correctness: Mapping[str, Mapping[str, Interval]] = field(default_factory=dict)
    student_accuracy: Interval | None = None
    teacher_accuracy: Interval | None = None
    auroc: Interval | None = None
    prefix_depth: Sequence[DepthPoint] = ()
    new_knowledge: NewKnowledge | None = None


def figures(samples: ProbeSamples) -> ProbeStatistics:
    """Every figure of the probe."""
    answers, graded = samples.answers, bool(samples.teacher_answers)
    return ProbeStatistics(
        statistics=statistics(answers),
        by_position=by_position(answers),
        by_domain=_by(answers, lambda answer: answer.domain),
        by_teacher=_by(answers, lambda answer: answer.teacher),
        by_correctness=_by(answers, lambda a: "correct" if a.reward == CORRECT else "incorrect") if graded else {},
        student_accuracy=mean_over_prompts(samples.student_answers) if graded else None,
        teacher_accuracy=mean_over_prompts(samples.teacher_answers) if graded else None,
        auroc=auroc(answers) if graded else None,
        prefix_depth=prefix_depth_curve(samples) if graded else (),
        new_knowledge=new_knowledge(samples) if graded else None,
    )


def token_values(answer: ProbedAnswer) -> dict[str, NDArray[np.float32]]:
    """The per-token statistics of an answer, [T] each; NaN where one is not defined."""
    values = dict(answer.tokens.values)
    student, teacher = values.pop("student_logprob"), values.pop("teacher_logprob")
    earlier = values.pop(EARLIER, None)
    return (
        values
        | ({} if earlier is None else {"earlier_teacher_log_ratio": teacher - earlier})
        | {
            "sampled_log_ratio": teacher - student,
            "entropy_gap": np.abs(values["teacher_entropy"] - values["student_entropy"]),
        }
    )


_Sums = dict[str, dict[str, tuple[float, int]]]  # statistic -> prompt -> sum and count


def _sums(answers: Sequence[ProbedAnswer], low: int, high: int | None) -> _Sums:
    """Sum each statistic over a prompt's tokens at positions `low` to `high` (exclusive; None: to the end)."""
    sums: _Sums = defaultdict(dict)
    for answer in answers:
        positions = answer.tokens.positions
        here = (positions >= low) & (positions < (np.inf if high is None else high))
        for name, values in token_values(answer).items():
            defined = values[here & ~np.isnan(values)]
            total, count = sums[name].get(answer.prompt_id, (0.0, 0))
            sums[name][answer.prompt_id] = (total + float(defined.sum(dtype=np.float64)), count + len(defined))
    return sums


def _means(sums: _Sums) -> dict[str, tuple[Interval, int]]:
    means = {}
    for name, by_prompt in sums.items():
        columns = np.array([pair for pair in by_prompt.values() if pair[1]], dtype=float)
        if len(columns):
            means[name] = ratio_interval(columns[:, 0], columns[:, 1]), int(columns[:, 1].sum())
    return means


def _by(answers: Sequence[ProbedAnswer], key: Callable[[ProbedAnswer], str]) -> dict[str, dict[str, Interval]]:
    groups: dict[str, list[ProbedAnswer]] = defaultdict(list)
    for answer in answers:
        groups[key(answer)].append(answer)
    return {name: statistics(group) for name, group in sorted(groups.items())}


def _by_prompt(scores: Iterable[Graded]) -> dict[str, list[float]]:
    rewards: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        rewards[score.prompt_id].append(score.reward)
    return rewards


def mean_over_prompts(scores: Sequence[Graded]) -> Interval:
    """The mean score with its interval over prompts."""
    groups = list(_by_prompt(scores).values())
    return ratio_interval(np.array([sum(g) for g in groups]), np.array([len(g) for g in groups], dtype=float))


def _auroc(scores: NDArray[np.float64], correct: NDArray[np.bool_]) -> float:
    positives, negatives = int(correct.sum()), int((~correct).sum())
    ranks = rankdata(scores)
    return float((ranks[correct].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def prefix_depth_curve(samples: ProbeSamples) -> list[DepthPoint]:
    """Scores of both models at each depth; depth 0 is the answers themselves."""
    student = [*samples.student_answers, *samples.student_continuations]
    teacher = [*samples.teacher_answers, *samples.teacher_continuations]
    depths = sorted({score.depth for score in (*student, *teacher)})
    return [_depth_point(depth, student, teacher) for depth in depths]


def _depth_point(depth: float, student: Sequence[Graded], teacher: Sequence[Graded]) -> DepthPoint:
    own, teachers = ([score for score in scores if score.depth == depth] for scores in (student, teacher))
    return DepthPoint(
        depth, mean_over_prompts(own), mean_over_prompts(teachers), _difference(own, teachers), len(teachers)
    )


def _difference(student: Sequence[Graded], teacher: Sequence[Graded]) -> Interval:
    """Teacher minus student on the prompts that both answered."""
    student_rewards, teacher_rewards = _by_prompt(student), _by_prompt(teacher)
    both = [
        np.mean(teacher_rewards[prompt]) - np.mean(student_rewards[prompt])
        for prompt in student_rewards
        if prompt in teacher_rewards
    ]
    return ratio_interval(np.array(both), np.ones(len(both)))
