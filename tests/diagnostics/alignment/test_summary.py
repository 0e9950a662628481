import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from diagnostics.alignment import summary
from diagnostics.alignment.gradients import DESCENTS, NodeAlignment
from tests.diagnostics.alignment.examples import node, view

HALF = np.array([0.5, 0.5])


def row(question: str, correct: bool, value: float, probability: float = 1.0, agreement: float = 1.0) -> NodeAlignment:
    return NodeAlignment(
        node(question, 2, correct, probability), view(HALF, HALF, {"reverse_kl": value**3, "constant": 1.0}),
        np.array([True, True]), HALF, "", 0.5, 0.1, 0.01, agreement, 0.02, dict.fromkeys(DESCENTS, value),
        dict.fromkeys(DESCENTS, 0.3),
    )  # fmt: skip


ROWS = [row(f"q{i}", correct, (0.1 if correct else 0.6) + 0.02 * i) for i in range(10) for correct in (True, False)]


def test_incorrect_answers_are_set_against_correct_ones_within_the_same_questions() -> None:
    found = summary.summarise(ROWS)
    assert found["correct"]["reverse_kl"].mean == pytest.approx(0.19)
    assert found["incorrect"]["reverse_kl"].mean == pytest.approx(0.69)
    difference = found["incorrect minus correct"]["reverse_kl"]
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    interval = found["correct"]["reverse_kl"]
    assert interval.low < interval.mean < interval.high


def test_nodes_count_by_the_inverse_of_their_probability() -> None:
    rows = [row("a", True, 1.0, probability=0.25), row("b", True, 0.0)]
    assert summary.summarise(rows)["all"]["reverse_kl"].mean == pytest.approx(0.8)


def test_the_correction_divides_by_the_root_of_the_reliability() -> None:
    rows = [row(f"q{i}", False, 0.3, agreement=0.5) for i in range(3)]
    found = summary.summarise(rows)["incorrect"]
    assert found["reliability"].mean == pytest.approx(2 / 3)
    assert found["corrected_jsd"].mean == pytest.approx(0.3 / np.sqrt(2 / 3))


def test_nothing_is_corrected_by_a_reliability_of_nothing() -> None:
    found = summary.summarise([row("a", False, 0.3, agreement=0.0)])["incorrect"]
    assert found["corrected_jsd"].as_json() is None and found["jsd"].mean == pytest.approx(0.3)


def test_the_pooled_cosine_counts_nodes_by_their_gradients() -> None:
    small, large = row("a", False, -1.0), row("b", False, 1.0)
    large = replace(large, gradient_norm=10.0, direction_norms=dict.fromkeys(DESCENTS, 30.0))
    found = summary.summarise([small, large])["all"]
    g, d = np.array([0.1, 10.0]), np.array([-0.3, 30.0])
    assert found["pooled_reverse_kl"].mean == pytest.approx(g @ d / np.linalg.norm(g) / np.linalg.norm(d))
    assert found["reverse_kl"].mean == pytest.approx(0)


def test_teachers_are_compared_on_the_nodes_that_count_for_both() -> None:
    others = [replace(item, cosines={name: value - 0.3 for name, value in item.cosines.items()}) for item in ROWS]
    others[0] = replace(others[0], skipped="no gradient above the noise")
    found = summary.differences(ROWS, others)
    assert [count for count, _ in found.values()] == [19, 9, 10]
    for _, estimates in found.values():
        difference = estimates["reverse_kl"]
        assert (difference.mean, difference.low, difference.high) == pytest.approx((0.3, 0.3, 0.3))
    table = summary.difference_rows(ROWS, others, {"minus": "t"})
    assert [row["answers"] for row in table] == ["all", "correct", "incorrect"]


def test_an_absent_stratum_is_none_and_everything_fits_into_json() -> None:
    found = summary.summarise([row("a", True, 0.5)])
    assert found["incorrect"]["reverse_kl"].as_json() is None
    assert found["incorrect minus correct"]["reverse_kl"].as_json() is None
    rows = [*ROWS, replace(ROWS[0], skipped="no gradient above the noise", cosines={}, agreement=np.nan)]
    texts = {0: "a", 1: "b"}
    tables = [
        summary.group_rows(rows, {"teacher": "t"}),
        summary.question_rows(rows, {f"q{i}": 0.5 for i in range(10)}),
        [summary.token_row(item, texts) for item in rows],
        summary.candidate_rows(rows[0], texts),
    ]
    json.dumps(tables, allow_nan=False)
    assert [item["nodes"] for item in tables[0]] == [20, 10, 10]
    assert [item["skipped"] for item in tables[2]].count("no gradient above the noise") == 1 and len(tables[1]) == 20


def test_proxies_are_ranked_against_the_alignment() -> None:
    found = summary.proxies(ROWS)
    assert found["reverse_kl"].mean == pytest.approx(1)  # a cube keeps the order
    assert np.isnan(found["constant"].mean)
    assert summary.proxies([]) == {}
    assert summary.summarise([])["all"]["jsd"].as_json() is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_the_rank_correlation_is_spearmans(pairs: list[tuple[int, int]]) -> None:
    left, right = np.array(pairs, dtype=float).T
    if len({*left}) > 1 and len({*right}) > 1:
        assert summary.spearman(left, right) == pytest.approx(float(spearmanr(left, right).statistic), abs=1e-9)
    else:
        assert np.isnan(summary.spearman(left, right))
