import math

import pytest

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
    [(0.5, 0.95, Verdict.go), (0.5, 0.2, Verdict.go_with_cold_start), (1e-5, 1.0, Verdict.nothing_to_learn)],
)
def test_without_a_verifier_the_divergence_decides(divergence: float, mass: float, verdict: Verdict) -> None:
    answers = [
        answer(str(i), None, [0.0] * 2, [0.0] * 2, reverse_kl=[divergence] * 2, overlap_mass_student=[mass] * 2)
        for i in range(5)
    ]
    judgement = _judge(ProbeSamples(answers))
    assert judgement.verdict is verdict
    assert judgement.predicted_change.mean == pytest.approx(-mass, rel=1e-5)
