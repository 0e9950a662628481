import math
from collections.abc import Sequence

import numpy as np
import pytest

from diagnostics import intervals
from diagnostics.compatibility import Graded, ProbeSamples, figures
from diagnostics.verdict import Verdict, VerdictReport, judge, predict
from tests.diagnostics.preflight.answers import answer

PROMPTS = 40


def _found(
    student: float,
    teacher: float,
    student_on: float,
    teacher_on: float,
    always_wrong: float = 0.0,
    accepted: float = 0.0,
) -> ProbeSamples:
    """Accuracies of whole answers, and from half of the student's; a share of prompts it never gets right.

    Of two answers to each other prompt, one is right with twice the student's accuracy.
    """
    never = round(always_wrong * PROMPTS)
    right = round(2 * student * PROMPTS)
    answers, theirs, ours_on, theirs_on = [], [], [], []
    for index in range(PROMPTS):
        prompt = str(index)
        solved = never <= index < never + right
        answers += [answer(prompt, float(solved), [0.0], [accepted]), answer(prompt, 0.0, [0.0], [-0.5])]
        rank = (index * 7 % PROMPTS + 0.5) / PROMPTS
        theirs.append(Graded(prompt, float(rank < teacher)))
        ours_on.append(Graded(prompt, float(solved and rank < student_on), 0.5))
        theirs_on.append(Graded(prompt, float(rank < teacher_on), 0.5))
    return ProbeSamples(answers, theirs, ours_on, theirs_on)


def _judge(found: ProbeSamples) -> VerdictReport:
    return judge(found, figures(found))


def test_a_teacher_that_goes_on_better_from_the_students_beginnings_is_a_go() -> None:
    judgement = _judge(_found(0.5, 1.0, 0.4, 0.9))
    assert judgement.verdict is Verdict.go
    assert judgement.predicted_change.low > 0
    assert judgement.overrides == ()


def test_a_teacher_that_scores_high_and_is_lost_in_the_students_beginnings_needs_a_cold_start() -> None:
    judgement = _judge(_found(0.5, 1.0, 0.9, 0.0))
    assert judgement.verdict is Verdict.go_with_cold_start
    assert judgement.predicted_change.high < 0
    assert judgement.overrides == ("recipe=cold_start_then_distil",)


def test_what_the_student_never_gets_right_is_not_predicted_to_be_learned() -> None:
    found = _found(0.1, 1.0, 1.0, 1.0, always_wrong=0.8)
    assert predict(found).gain.mean == pytest.approx(0.0)
    assert _judge(found).verdict is Verdict.go_with_cold_start


def test_right_answers_that_the_teacher_would_not_write_are_lost() -> None:
    found = _found(0.5, 1.0, 0.4, 0.9, accepted=-3.0)
    prediction = predict(found)
    assert prediction.acceptance.mean == pytest.approx(math.exp(-3.0), rel=1e-5)
    assert prediction.change.mean == pytest.approx(
        math.exp(-3.0) * prediction.gain.mean - (1 - math.exp(-3.0)) * 0.5, rel=1e-5
    )
    assert _judge(found).verdict is Verdict.go_with_cold_start


def test_a_worse_teacher_is_to_be_replaced() -> None:
    assert _judge(_found(0.5, 0.2, 0.9, 0.2)).verdict is Verdict.choose_another_teacher


def test_an_equal_teacher_has_nothing_to_teach() -> None:
    assert _judge(_found(0.5, 0.5, 0.5, 0.5)).verdict is Verdict.nothing_to_learn


def test_evidence_names_the_figures_it_rests_on() -> None:
    text = " ".join(_judge(_found(0.5, 1.0, 0.4, 0.9)).evidence)
    assert "the student scores 0.50" in text
    assert "the teacher 1.00" in text
    assert "depth 0.5" in text


@pytest.mark.parametrize(
    ("divergence", "mass", "verdict"),
    [(0.5, 0.95, Verdict.cannot_tell), (9.0, 0.006, Verdict.cannot_tell), (1e-5, 1.0, Verdict.nothing_to_learn)],
)
def test_without_a_verifier_it_cannot_tell_unless_both_say_the_same(
    divergence: float, mass: float, verdict: Verdict
) -> None:
    answers = [
        answer(str(i), None, [0.0] * 2, [0.0] * 2, reverse_kl=[divergence] * 2, overlap_mass_student=[mass] * 2)
        for i in range(4)
    ]
    judgement = _judge(ProbeSamples(answers))
    assert judgement.verdict is verdict
    assert judgement.predicted_change.mean == pytest.approx(-mass, rel=1e-5)
    assert not judgement.recommends_a_run and judgement.overrides == ()
    if verdict is Verdict.cannot_tell:
        assert "data.verifier" in judgement.evidence[0] and "not known" in judgement.evidence[0]


def _probed(rng: np.random.Generator, prompts: int, solves: float, teacher: float) -> ProbeSamples:
    """Models that answer every prompt right with a probability of its own, whatever has been begun; they say the same.

    Args:
        solves: the student's mean accuracy.
        teacher: added to that of the teacher, prompt by prompt.
    """
    answers, written, own, others = [], [], [], []
    for index, chance in enumerate(rng.beta(4 * solves, 4 * (1 - solves), prompts)):
        prompt, better = str(index), min(max(chance + teacher, 0.0), 1.0)
        answers += [answer(prompt, float(rng.random() < chance), [0.0], [0.0]) for _ in range(4)]
        written += [Graded(prompt, float(rng.random() < better)) for _ in range(4)]
        for depth in (0.125, 0.25, 0.5, 0.75):
            own += [Graded(prompt, float(rng.random() < chance), depth) for _ in range(2)]
            others += [Graded(prompt, float(rng.random() < better), depth) for _ in range(2)]
    return ProbeSamples(answers, written, own, others)


@pytest.mark.parametrize("solves", [0.1, 0.5])
def test_a_teacher_that_is_the_student_is_predicted_to_change_nothing(
    monkeypatch: pytest.MonkeyPatch, solves: float
) -> None:
    """The 95 % interval covers 0 as often as it says, and the predictions do not lean to one side."""
    monkeypatch.setattr(intervals, "BOOTSTRAP_DRAWS", 300)
    rng = np.random.default_rng(1)
    changes = [predict(_probed(rng, 64, solves, 0.0)).change for _ in range(100)]
    covered = np.mean([change.low <= 0 <= change.high for change in changes])
    means = np.array([change.mean for change in changes])
    assert covered > 0.95 - 3 * math.sqrt(0.95 * 0.05 / len(changes))
    assert abs(means.mean()) < 3 * means.std() / math.sqrt(len(means))


def test_a_loss_on_what_the_student_never_solved_still_counts() -> None:
    rng = np.random.default_rng(2)
    prediction = predict(_probed(rng, 64, 0.5, -0.5))
    assert prediction.change.high < -0.1


def test_a_loss_is_told_by_other_continuations_than_it_is_measured_on() -> None:
    """Two beginnings at one depth: each is counted if the other is a loss; a single one tells nothing of itself."""

    def gain(*differences: float, depths: Sequence[float]) -> float:
        pairs = list(zip(differences, depths, strict=True))
        own = [Graded("x", float(difference < 0), depth) for difference, depth in pairs]
        teachers = [Graded("x", float(difference > 0), depth) for difference, depth in pairs]
        return predict(ProbeSamples([answer("x", 0.0, [0.0], [0.0])], own, own, teachers)).gain.mean

    assert gain(-1, -1, depths=(0.5, 0.5)) == -1
    assert gain(-1, 1, depths=(0.5, 0.5)) == 0.5
    assert gain(-1, 0, depths=(0.5, 0.5)) == 0
    assert gain(-1, -1, depths=(0.25, 0.5)) == -1
    assert gain(-1, depths=(0.5,)) == 0


def test_too_little_evidence_is_no_evidence_against_a_teacher() -> None:
    few = _judge(_probed(np.random.default_rng(3), 4, 0.5, 0.0))
    assert few.verdict is Verdict.cannot_tell and "4 prompts are too few for any verdict" in few.evidence[0]
    assert "probe.prompts=30" in few.evidence[0]
    better = _judge(_probed(np.random.default_rng(3), 1, 0.5, 1.0))
    assert better.predicted_change.low > 0 and better.verdict is Verdict.cannot_tell
    some = _judge(_probed(np.random.default_rng(3), 12, 0.5, 0.0))
    assert some.verdict is Verdict.cannot_tell and "12 prompts are too few to say that" in some.evidence[0]
    none_right = _judge(_found(0.0, 0.0, 0.0, 0.0))
    assert none_right.verdict is Verdict.cannot_tell and "single answer right" in none_right.evidence[0]
    assert _judge(_probed(np.random.default_rng(3), 64, 0.5, 0.0)).verdict is Verdict.nothing_to_learn
