"""An alarm on a number that no run has could never be raised."""

from hypothesis import given
from hypothesis import strategies as st

from diagnostics.metrics import metric_names, unknown_metric

TERMS = ("forward",)


def test_what_there_is_is_known() -> None:
    assert all(unknown_metric(name) is None for name in metric_names())
    for name in (
        "train/overlap_ratio/tokens_4_8",
        "teacher/2/requests",
        "rollout/sequences_kept",
        "eval/grading_timeouts",
    ):
        assert unknown_metric(name) is None
    assert unknown_metric("train/forward_advantage", TERMS) is None
    assert unknown_metric("train/forward_advantage") is not None


@given(st.sampled_from(metric_names()), st.data())
def test_a_letter_too_few_is_noticed_and_put_right(name: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(name) - 1))
    wrong = name[:at] + name[at + 1 :]
    assert wrong in metric_names() or unknown_metric(wrong) in metric_names()
