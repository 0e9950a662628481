"""The plan of targeted rollouts stays within its bound, and their outcomes go where they belong."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.config import AlignmentConfig
from orchestration.measure.targeted import AnswerGrader, Target, complete, fit
from rollout.grading import Grade
from tests.factories import configured, message
from tutelage.records.prompt import Prompt, RenderedPrompt
from tutelage.records.trajectory import RolloutRequest
from tutelage.settings import ConfigError


def target(question: int, node: int = 0, candidate: int = 5, room: int = 10, expected: int = 4) -> Target:
    prompt, response = np.arange(3, dtype=np.int32), np.array([7, candidate], dtype=np.int32)
    item = RenderedPrompt(Prompt(f"p{question}", ()), prompt, prompt)
    return Target(question, item, node, candidate, response, room, expected, seed=question)


SETTINGS = AlignmentConfig(completions=16, min_completions=4)


def test_everything_fits_if_there_is_room() -> None:
    targets = [target(0), target(1), target(2, room=0)]
    plan = fit(targets, SETTINGS, budget=330)
    assert plan.targets == tuple(targets) and plan.completions == 16
    assert plan.at_most == 330 and plan.requests == 32  # 5 tokens of prompt and 160 of completions, twice
    assert plan.predicted == 2 * (5 + 16 * 4)


def test_completions_are_given_up_before_questions_and_then_whole_questions() -> None:
    targets = [target(i) for i in range(10)]
    assert fit(targets, SETTINGS, budget=8 * 165).completions == 16
    fewer = fit(targets, SETTINGS, budget=8 * 165 - 1)
    assert fewer.completions == 4 and len(fewer.targets) == 10
    least = fit(targets, SETTINGS, budget=3 * 45)
    assert least.completions == 4 and [t.question for t in least.targets] == [0, 1, 2]


def test_a_bound_below_one_question_is_refused_with_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"alignment.max_tokens=.* may take 45"):
        fit([target(0)], SETTINGS, budget=44)


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 40)), min_size=1, max_size=60), st.integers(700, 60_000))
def test_the_plan_is_never_above_the_bound(shape: list[tuple[int, int]], budget: int) -> None:
    targets = [target(question, room=room) for question, room in sorted(shape)]
    try:
        plan = fit(targets, SETTINGS, budget)
    except ConfigError:
        return
    assert plan.at_most <= budget and plan.predicted <= plan.at_most


class Rollouts:
    """Completes with token 1 after candidate 5 and with token 2 after any other, in reverse order."""

    def __init__(self) -> None:
        self.requests: list[RolloutRequest] = []

    async def roll_out(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Any]:
        self.requests += requests
        for request in reversed(requests):
            good = request.prompt_ids[-1] == 5 and request.sample_index % 2 == 0
            yield SimpleNamespace(slot=request.slot, response_ids=np.array([1 if good else 2], dtype=np.int32))


def test_outcomes_belong_to_their_node_and_candidate() -> None:
    graded: list[str] = []

    async def verify(prompt: object, text: str) -> Grade:
        graded.append(text)
        await asyncio.sleep(0)  # so that others that ask for the same are there before it is done
        return Grade(float(text.endswith("1") or text.endswith("9")))

    prompts: Any = [SimpleNamespace(prompt="p0"), SimpleNamespace(prompt="p1")]
    tokenizer: Any = SimpleNamespace(decode=lambda ids, skip_special_tokens: " ".join(map(str, ids)))
    grader = AnswerGrader(cast(Any, SimpleNamespace(grade=verify)), prompts, tokenizer)
    targets = [target(0, 0, 5), target(0, 0, 6), target(1, 1, 9, room=0)]
    rollouts: Any = Rollouts()
    found = asyncio.run(complete(fit(targets, SETTINGS, 10_000), rollouts, grader))
    assert found.outcomes[0][5].tolist() == [1.0, 0.0] * 8
    assert found.outcomes[0][6].tolist() == [0.0] * 16
    assert found.outcomes[1][9].tolist() == [1.0] * 16  # graded at once
    assert found.tokens == 2 * 5 + 32 and len(rollouts.requests) == 32
    assert len({request.seed for request in rollouts.requests[:16]}) == 16
    assert sorted(graded) == ["7 5 1", "7 5 2", "7 6 2", "7 9"]


def test_settings_that_cannot_work_are_refused() -> None:
    assert "data.verifier=none" in message("+probe=alignment", "data.verifier=none")
    assert "alignment.min_completions=1" in message("alignment.min_completions=1")
    assert "alignment.min_completions=17" in message("alignment.min_completions=17")
    assert "alignment.alpha=0" in message("alignment.alpha=0")
    assert "alignment.questions=0" in message("alignment.questions=0")
    assert "stage=reinforce has none" in message("+probe=alignment", "experiment=reinforce")


def test_the_group_switches_it_on() -> None:
    config = configured(
        "experiment=lab/compatible", "+probe=alignment", "alignment.teachers=[{model: lab/columns}]", "probe.prompts=4"
    )
    assert config.alignment.enabled and config.alignment.teachers[0].model == "lab/columns"
    assert config.probe.prompts == 4
