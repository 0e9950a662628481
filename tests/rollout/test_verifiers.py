import threading

import pytest

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
        ("####843 apples", 0),
        ("####0843", 0),
        ("843", 0),
        ("###843", 0),
        ("843####", 0),
        ("", 0),
    ],
)
def test_final_answer(response: str, score: float) -> None:
    assert grade("final_answer", "843", response) == score


def test_math_off_the_main_thread() -> None:
    scores: list[float] = []
    thread = threading.Thread(target=lambda: scores.append(grade("math", "2", "1+1")))
    thread.start()
    thread.join()
    assert scores == [1.0]


def test_reasoning_gym_grades_its_own_tasks() -> None:
    source = PromptSourceConfig(kind="reasoning_gym", task="chain_sum", size=3)
    verifier = VERIFIERS["reasoning_gym"]
    assert verifier is not None
    for prompt in load_prompts(source):
        assert verifier(prompt, f"It is <answer>{prompt.answer}</answer>") == 1
        assert verifier(prompt, "no idea") == 0


@pytest.mark.parametrize("kind", ["exact", "math", "final_answer"])
def test_missing_answer_is_explained(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"data\.verifier={kind} needs an answer.*answer_column"):
        grade(kind, None, "####1")


def test_reasoning_gym_needs_its_own_prompts() -> None:
    with pytest.raises(ValueError, match=r"cannot grade prompt 'q'.*data\.train\.kind"):
        grade("reasoning_gym", "1", "1")
