import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.compatibility import (
    Graded,
    ProbeSamples,
    auroc,
    by_position,
    figures,
    mean_over_prompts,
    new_knowledge,
    prefix_depth_curve,
    statistics,
)
from tests.diagnostics.preflight.answers import answer


def test_statistics_are_means_over_tokens_not_over_answers() -> None:
    answers = [
        answer("a", 1, [0.0], [-1.0], reverse_kl=[4.0]),
        answer("b", 0, [0.0] * 3, [-2.0] * 3, reverse_kl=[0.0, 0.0, 0.0]),
    ]
    found = statistics(answers)
    assert found["reverse_kl"].mean == 1.0
    assert found["sampled_log_ratio"].mean == pytest.approx(-7 / 4)
    assert found["reverse_kl"].low <= 1.0 <= found["reverse_kl"].high


def test_undefined_tokens_do_not_count() -> None:
    only = answer("a", 1, [0.0] * 3, [0.0] * 3, overlap_token_advantage=[np.nan, -1.0, -3.0])
    assert statistics([only])["overlap_token_advantage"].mean == -2.0
    nowhere = answer("a", 1, [0.0], [0.0], overlap_token_advantage=[np.nan])
    assert "overlap_token_advantage" not in statistics([nowhere])


def test_positions_fall_into_powers_of_two_and_no_token_is_lost() -> None:
    answers = [answer("a", 1, [0.0] * 6, [0.0] * 6, reverse_kl=[0.0, 1.0, 2.0, 2.0, 5.0, 7.0])]
    buckets = by_position(answers)["reverse_kl"]
    assert [(b.from_token, b.to_token, b.interval.mean, b.tokens) for b in buckets] == [
        (0, 1, 0.0, 1),
        (1, 2, 1.0, 1),
        (2, 4, 2.0, 2),
        (4, 8, 6.0, 2),
    ]


@pytest.mark.parametrize(
    ("correct", "incorrect", "expected"), [(-0.1, -0.9, 1.0), (-0.9, -0.1, 0.0), (-0.5, -0.5, 0.5)]
)
def test_auroc_is_the_share_of_pairs_that_the_teacher_ranks_right(
    correct: float, incorrect: float, expected: float
) -> None:
    answers = [answer(f"{i}", 1, [0.0], [correct]) for i in range(4)]
    answers += [answer(f"{i}", 0, [0.0, 0.0], [incorrect] * 2) for i in range(4)]
    found = auroc(answers)
    assert found is not None
    assert found.mean == expected
    assert found.low <= expected <= found.high


def test_auroc_does_not_exist_where_all_answers_are_right() -> None:
    assert auroc([answer("a", 1, [0.0], [0.0])]) is None


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_mean_lies_in_its_interval(scores: list[tuple[int, float]]) -> None:
    found = mean_over_prompts([Graded(str(prompt), reward) for prompt, reward in scores])
    assert found.mean == pytest.approx(np.mean([reward for _, reward in scores]))
    assert found.low - 1e-9 <= found.mean <= found.high + 1e-9


def test_the_curve_compares_both_models_at_the_same_depth() -> None:
    found = ProbeSamples(
        answers=[answer("a", 1, [0.0], [0.0]), answer("b", 0, [0.0], [0.0])],
        teacher_answers=[Graded("a", 1), Graded("b", 1)],
        student_continuations=[Graded("a", 1, 0.5), Graded("b", 0, 0.5)],
        teacher_continuations=[Graded("a", 0, 0.5), Graded("b", 0, 0.5)],
    )
    start, half = prefix_depth_curve(found)
    assert (start.depth, start.student.mean, start.teacher.mean, start.advantage.mean) == (0.0, 0.5, 1.0, 0.5)
    assert (half.depth, half.student.mean, half.teacher.mean, half.advantage.mean) == (0.5, 0.5, 0.0, -0.5)


def test_new_knowledge_is_what_the_teacher_solves_where_the_student_never_does() -> None:
    found = ProbeSamples(
        answers=[answer("a", r, [0.0], [0.0]) for r in (0, 1)] + [answer("b", 0, [0.0], [0.0])] * 2,
        teacher_answers=[Graded("a", 1), Graded("a", 1), Graded("b", 0), Graded("b", 1)],
    )
    known = new_knowledge(found)
    assert (known.prompts_student_failed, known.prompts) == (1, 2)
    assert known.teacher_pass_at_k is not None
    assert known.teacher_pass_at_k.mean == 1.0
    assert known.share_of_gap == pytest.approx(0.5)  # half a point of lead on each prompt


def test_without_a_verifier_only_the_divergence_is_told() -> None:
    found = figures(ProbeSamples([answer("a", None, [0.0], [-1.0], reverse_kl=[2.0])]))
    assert found.statistics["reverse_kl"].mean == 2.0
    assert found.student_accuracy is None
    assert found.prefix_depth == ()
    assert found.by_correctness == {}
