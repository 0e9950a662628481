"""What only a teacher sees: fields are filled once, whatever stands in what they are filled with."""

from scoring.context import ContextTemplate


def test_what_looks_like_a_field_within_a_value_stays() -> None:
    template = ContextTemplate("{answer} after {attempt}, {feedback}; {answer}")
    assert template.fields == ("answer", "attempt", "feedback") and template.waits_for == ("attempt", "feedback")
    values = {"answer": "{attempt}{feedback}", "attempt": "{answer}", "feedback": "correct"}
    assert template.filled(values) == "{attempt}{feedback} after {answer}, correct; {attempt}{feedback}"


def test_braces_that_are_no_field_stay() -> None:
    template = ContextTemplate("f(x) = {x: {answer}}")
    assert template.fields == ("answer",) and template.filled({"answer": "4"}) == "f(x) = {x: 4}"
