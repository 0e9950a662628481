import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.config import PromptSourceConfig
from rollout.data.sources import load_prompts
from rollout.verifiers import VERIFIERS, extract_answer
from tutelage.records.prompt import Message, Prompt


def question(answer: str | None) -> Prompt:
    return Prompt("q", (Message("user", "?"),), answer=answer)


def grade(kind: str, answer: str | None, response: str) -> float:
    verifier = VERIFIERS[kind]
    assert verifier is not None
    return verifier(question(answer), response)


def test_none() -> None:
    assert VERIFIERS["none"] is None


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (" 42 ", "42"),
        ("So <answer> 42 </answer>.", "42"),
        ("<answer>1</answer> no, <Answer>\n2\n</Answer>", "2"),
        ("<answer>cut", "<answer>cut"),
    ],
)
def test_extract_answer(response: str, answer: str) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize(
    ("response", "score"), [("  New\n York ", 1), ("NEW YORK", 1), ("<answer>new york</answer>", 1), ("York", 0)]
)
def test_exact(response: str, score: float) -> None:
    assert grade("exact", "New York", response) == score


@pytest.mark.parametrize(
    ("answer", "response", "score"),
    [
        ("1/2", r"The answer is $\frac{1}{2}$.", 1),
        ("1/2", "So it is 0.5", 1),
        ("x^2+1", r"\boxed{1+x^2}", 1),
        ("42", "<answer>42</answer>", 1),
        ("42", "I get 41.", 0),
        ("42", r"\boxed{41} wait, actually \boxed{42}", 1),
        ("41", r"\boxed{41} wait, actually \boxed{42}", 0),
        ("42", r"\boxed{42}, as was asked for in \boxed{}", 1),
        ("42", r"\boxed{41 no, \fbox{42}", 1),
        ("42", r"\boxed{\boxed{42}}", 1),
        ("1/2", r"\boxed{3}, or rather \boxed{\frac{1}{2}}", 1),
        (r"\{1,2\}", r"\boxed{\{1,2\}}", 1),
        (r"Half of one is \boxed{\frac{1}{2}}.", "0.5", 1),
        ("36 and 36 make 72.\n#### 72", r"\boxed{72}", 1),
        ("42", "", 0),
    ],
)
def test_math(answer: str, response: str, score: float) -> None:
    assert grade("math", answer, response) == score


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("7+6=13;5+8+1=14;4+3+1=8####843", 1),
        ("#### 843\n", 1),
        ("####842####843", 1),
        ("####843####842", 0),
        ("####843 apples", 1),
        ("####0843", 0),
        ("843", 0),
        ("###843", 0),
        ("843####", 0),
        ("", 0),
    ],
)
def test_final_answer(response: str, score: float) -> None:
    assert grade("final_answer", "843", response) == score


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("1000", "#### 1,000"),
        ("1,000", "#### 1000"),
        ("100000", "#### 1,00,000"),
        ("72", "#### 72."),
        ("72", "#### $72"),
        ("72", r"#### \$72.00"),
        ("72", "#### 72€"),
        ("72", "#### **72**"),
        ("72", r"#### \boxed{72}"),
        ("72", "####\n72"),
        ("72", "#### 72 clips, of which 24 are new"),
        ("72", "#### 72, which is right"),
        ("72.0", "#### 72"),
        ("-5", "#### -$5"),
        ("-5", "#### $-5"),
        ("0.5", "#### .50"),
        ("48/2 = <<48/2=24>>24 and 48+24 = 72.\n#### 72", "So it is 72.\n#### 72"),
        ("Paris", "#### **paris**."),
        ("1/2", "#### 1/2"),
        ("2024-05-01", "#### 2024-05-01\nI am sure."),
    ],
)
def test_final_answers_as_people_write_them(answer: str, response: str) -> None:
    assert grade("final_answer", answer, response) == 1


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        ("1", "#### 1/2"),
        ("34", "#### 3,4"),
        ("5", "#### 5k"),
        ("5", "#### 5 million"),
        ("1", "#### 1 000"),
        ("3", "#### 3:30"),
        ("2", "#### 2^10"),
        ("2024", "#### 2024-05-01"),
        ("72", "#### -72"),
        ("72", "#### seventy, not 72"),
        ("72 cm", "#### 72 m"),
    ],
)
def test_other_final_answers(answer: str, response: str) -> None:
    assert grade("final_answer", answer, response) == 0


@given(st.integers(-(10**12), 10**12), st.sampled_from(["", ".", " apples", "\nThat is all.", "%", "**"]))
def test_whatever_gsm8k_accepts_is_accepted(number: int, behind: str) -> None:
    response = f"#### {number:,}{behind}"
    own = re.search(r"#### (\-?[0-9\.\,]+)", response)  # its own rule, which also takes away commas
    assert own is not None and own.group(1).replace(",", "").rstrip(".") == str(number)
    assert grade("final_answer", str(number), response) == 1
    assert grade("final_answer", f"{number:,}", response) == 1
    assert grade("final_answer", str(number + 1), response) == 0


def test_reasoning_gym_grades_its_own_tasks() -> None:
    source = PromptSourceConfig(kind="reasoning_gym", task="chain_sum", size=3)
    verifier = VERIFIERS["reasoning_gym"]
    assert verifier is not None
    for prompt in load_prompts(source):
        assert verifier(prompt, f"It is <answer>{prompt.answer}</answer>") == 1
        assert verifier(prompt, "no idea") == 0


def test_reasoning_gym_scores_what_a_family_cannot_read_0() -> None:
    verifier = VERIFIERS["reasoning_gym"]
    assert verifier is not None
    (prompt,) = load_prompts(PromptSourceConfig(kind="reasoning_gym", task="prime_factorization", size=1))
    assert [verifier(prompt, response) for response in ("x", "1/0", "[[1]]", "no idea")] == [0] * 4
    assert verifier(prompt, str(prompt.answer)) == 1


@pytest.mark.parametrize("kind", ["exact", "math", "final_answer"])
def test_missing_answer_is_explained(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.verifier={kind} needs an answer.*answer_column"):
        grade(kind, None, "####1")


def test_reasoning_gym_needs_its_own_prompts() -> None:
    with pytest.raises(ValueError, match=r"cannot grade prompt 'q'.*data\.train\.kind"):
        grade("reasoning_gym", "1", "1")
