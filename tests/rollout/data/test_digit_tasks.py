"""Sources of digit tasks: order, splits, contexts, mixtures, and what they refuse."""

import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollout.data.digit_tasks import tasks_in
from rollout.data.sources import load_prompts
from tests.rollout.data.made_up import source
from tutelage.records.prompt import Message, Prompt


def questions(prompts: list[Prompt]) -> list[str]:
    return [prompt.messages[-1].content for prompt in prompts]


def test_a_prompt() -> None:
    (prompt,) = load_prompts(source(size=1))
    (message,) = prompt.messages
    left, right = map(int, message.content.removesuffix("=").split("+"))
    assert message.role == "user"
    assert prompt.answer == str(left + right)
    assert prompt.completion is not None and prompt.completion.endswith(f"####{prompt.answer}")
    assert (prompt.domain, prompt.privileged_context) == ("column_sums", None)


def test_prompts_repeat_in_another_process() -> None:
    here = load_prompts(source(size=5, seed=3))
    command = (
        "from rollout.data.sources import load_prompts; from tests.rollout.data.made_up import source; "
        "print(load_prompts(source(size=5, seed=3)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    there = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


@settings(max_examples=20)
@given(seed=st.integers(-5, 1 << 40), size=st.integers(1, 60))
def test_a_source_begins_alike_whatever_its_size(seed: int, size: int) -> None:
    prompts = load_prompts(source(size=80, seed=seed))
    assert load_prompts(source(size=size, seed=seed)) == prompts[:size]
    assert load_prompts(source(size=80, seed=seed, limit=size)) == prompts[:size]
    assert len({prompt.id for prompt in prompts}) == 80


def test_the_seed_gives_the_order() -> None:
    assert questions(load_prompts(source(size=20, seed=1))) != questions(load_prompts(source(size=20, seed=2)))


@pytest.mark.parametrize(("task", "digits"), [("column_sums", 2), ("reversed_digits", 4)])
def test_the_splits_share_the_problems_out(task: str, digits: int) -> None:
    """Sizes at which both halves are used up: found by asking for more."""
    found = {}
    for split in ("train", "heldout"):
        with pytest.raises(ValueError, match=r"set data\.size=\d+ or less") as refused:
            load_prompts(source(task, split=split, size=10_000, task_options={"digits": digits}))
        size = int(str(refused.value).split("data.size=")[2].split()[0])
        found[split] = set(
            questions(load_prompts(source(task, split=split, size=size, task_options={"digits": digits})))
        )
        assert len(found[split]) == size
    total = 8100 if task == "column_sums" else 9000
    assert not found["train"] & found["heldout"]
    assert len(found["train"] | found["heldout"]) == total
    assert len(found["heldout"]) == pytest.approx(total / 8, rel=0.1)


def test_a_sum_and_its_mirror_are_in_the_same_split() -> None:
    train = questions(load_prompts(source(size=7000, task_options={"digits": 2})))
    heldout = questions(load_prompts(source(size=900, split="heldout", task_options={"digits": 2})))
    mirrored = {"+".join(reversed(question[:-1].split("+"))) + "=" for question in train}
    assert not mirrored & set(heldout)


def test_other_options_are_other_answers_to_the_same_questions() -> None:
    carries = load_prompts(source(size=20))
    columns = load_prompts(source(size=20, task_options={"pattern": "columns"}))
    assert questions(carries) == questions(columns)
    assert [prompt.answer for prompt in carries] == [prompt.answer for prompt in columns]
    assert all(one.completion != other.completion for one, other in zip(carries, columns, strict=True))


def test_the_answer_is_right_where_the_completion_is_wrong() -> None:
    for prompt in load_prompts(source(size=50, task_options={"pattern": "no_carry", "sums": "tens_carry"})):
        left, right = map(int, prompt.messages[0].content[:-1].split("+"))
        assert prompt.answer == str(left + right)
        assert prompt.completion is not None and not prompt.completion.endswith(f"####{prompt.answer}")


@pytest.mark.parametrize(("context", "expected"), [("none", None), ("rule", "carry"), ("answer", "={answer}")])
def test_contexts(context: str, expected: str | None) -> None:
    (hidden,) = load_prompts(source(size=1, task_options={"context": context}))
    assert hidden.privileged_context == (expected and expected.format(answer=hidden.answer))
    if expected:
        (visible,) = load_prompts(source(size=1, task_options={"context": context, "visible_context": True}))
        assert visible.messages == (Message("system", hidden.privileged_context or ""), *hidden.messages)
        assert visible.privileged_context is None


def test_a_mixture_keeps_its_weights_and_repeats_no_problem() -> None:
    mixture = [
        {"weight": 2, "pattern": "carries"},
        {"weight": 1, "pattern": "direct", "context": "rule", "visible_context": True},
        {"weight": 1, "task": "reversed_digits"},
    ]
    prompts = load_prompts(source(size=400, task_options={"mixture": mixture}))
    assert len(set(questions(prompts))) == 400
    kinds = Counter((prompt.domain, len(prompt.messages)) for prompt in prompts)
    assert kinds == {("column_sums", 1): 200, ("column_sums", 2): 100, ("reversed_digits", 1): 100}
    assert load_prompts(source(size=40, task_options={"mixture": mixture})) == prompts[:40]
    assert tasks_in(source(task_options={"mixture": mixture})) == {"column_sums", "reversed_digits"}


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"task": "sums"}, ["data.train.task=sums", "column_sums, reversed_digits"]),
        ({"split": "test"}, ["data.train.split=test", "train and heldout"]),
        ({"size": 0}, ["data.train.size=0"]),
        ({"limit": 0}, ["data.train.limit=0"]),
        ({"task_options": {"pattern": "left"}}, ["data.train.task_options=", "'left'", "carries"]),
        ({"task_options": {"digits": "many"}}, ["data.train.task_options=", "'many'"]),
        ({"task_options": {"digits": 1}}, ["data.train.task_options=", "digits=1", "2 or more"]),
        ({"task_options": {"digit": 3}}, ["data.train.task_options=", "'digit'", "digits, pattern"]),
        ({"task_options": {"weight": 3}}, ["data.train.task_options=", "'weight'"]),
        ({"task_options": {"visible_context": True}}, ["data.train.task_options.visible_context=true", "context=rule"]),
        ({"task_options": {"mixture": []}}, ["data.train.task_options.mixture=[]"]),
        ({"task_options": {"mixture": ["carries"]}}, ["data.train.task_options.mixture[0]=carries"]),
        ({"task_options": {"mixture": [{}, {"weight": 0}]}}, ["data.train.task_options.mixture[1].weight=0"]),
        ({"task_options": {"mixture": [{"task": "sums"}]}}, ["data.train.task_options.mixture[0].task=sums"]),
        ({"task_options": {"mixture": [{}], "digits": 2}}, ["data.train.task_options=digits: stands beside mixture"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_fix(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ValueError) as caught:
        load_prompts(source(**settings), "data.train")
    for part in parts:
        assert part in str(caught.value)
