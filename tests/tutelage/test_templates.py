"""Chat templates that loop, grow, fail or ask for the time, and what is left of them."""

import pytest

from tests.models import CHAT_TEMPLATE
from tutelage import templates
from tutelage.templates import LONGEST_TEMPLATE, Unrenderable, Writing, render, variables_of

ASKS = [{"role": "user", "content": "Hi"}]
LOOPS = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3


def job(template: str, time: str = "2026-01-01") -> Writing:
    return Writing(template, ASKS, time)


def test_a_conversation_is_written() -> None:
    assert render([job(CHAT_TEMPLATE)]) == ["<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"]
    assert render([Writing(CHAT_TEMPLATE, ASKS, "2026-01-01", opens_answer=False)]) == [
        "<|im_start|>user\nHi<|im_end|>\n"
    ]


def test_what_hangs_is_ended_and_no_other_behind_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 1.0)
    whole, *hung = render([job(CHAT_TEMPLATE), *[job(LOOPS)] * 50])
    assert isinstance(whole, str) and {str(error) for error in hung} == {
        "it took more than 1 s, the limit of a chat template"
    }


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 'A' * 2000000000 }}", "MemoryError"),
        ("{{ 'A' * 9000000 }}", "9000000 characters of the conversation, and the limit is"),
        ("{# " + "a" * LONGEST_TEMPLATE + " #}", f"the limit is {LONGEST_TEMPLATE}"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ raise_exception('not so') }}", "not so"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[7].role }}", "UndefinedError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "RecursionError"),
    ],
)
def test_what_fails_is_explained(template: str, why: str) -> None:
    (error,) = render([job(template)])
    assert isinstance(error, Unrenderable) and why in str(error)


def test_long_conversations_may_become_long_texts() -> None:
    (text,) = render([Writing(CHAT_TEMPLATE, [{"role": "user", "content": "word " * 200_000}], "2026-01-01")])
    assert isinstance(text, str) and len(text) > 1_000_000


def test_the_clock_is_the_runs_and_the_dice_are_always_thrown_alike() -> None:
    clock = job("{% macro today() %}{{ strftime_now('%d %b %Y') }}{% endmacro %}{{ today() }}", "2025-07-04T12:00:00")
    dice = job("{{ range(1000) | random }}")
    assert render([clock]) == ["04 Jul 2025"]
    (first,), (again,) = render([dice]), render([dice])
    assert first == again


def test_the_names_that_a_template_asks_for() -> None:
    asks = "{% set b = 1 %}{{ b }}{% for m in messages %}{% if thinks %}{{ m.role }}{% endif %}{% endfor %}"
    assert variables_of(asks + "{% generation %}{{ c }}{% endgeneration %}") == {"messages", "thinks", "c"}
    with pytest.raises(Unrenderable, match="TemplateSyntaxError"):
        variables_of("{% if %}")


def test_a_great_many_are_written_in_order() -> None:
    many = [
        Writing("{{ messages[0].content }}", [{"role": "user", "content": str(i)}], "2026-01-01") for i in range(700)
    ]
    assert render(many) == [str(i) for i in range(700)]
