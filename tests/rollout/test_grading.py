"""Grading in processes of its own: hostile responses end, several right answers count, errors are named."""

import asyncio
import importlib
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest

from rollout.grading import Grade, Grader, VerifierPool, verifier_pool
from tests.models import make_tokenizer
from tutelage.errors import WorkerFailure
from tutelage.records.prompt import Message, Prompt, RenderedPrompt
from tutelage.records.trajectory import FinishReason, Origin, RolloutRequest, Trajectory, foreign_trajectory

USERS = """
import os
import sys
import time
from pathlib import Path

from rollout.verifiers import VERIFIERS
from tutelage import Verifier


class Odd(Verifier):
    def __call__(self, prompt, response):
        if response == "sleep":
            time.sleep(0.5)
            return 1
        if response == "raise":
            raise KeyError("no such thing")
        if response == "exit":
            sys.exit(3)
        if response == "die":
            os.abort()
        if response.startswith("once "):
            try:
                Path(response.removeprefix("once ")).touch(exist_ok=False)
                os.abort()
            except FileExistsError:
                return 1
        if response == "hog":
            return float(len(bytearray(64 * 2**30)) > 0)
        if response == "deep":
            return self(prompt, response)
        return {"none": None, "nan": float("nan"), "two": 2.0, "text": "1", "yes": True}.get(response, 0.25)


VERIFIERS.add("odd", Odd())
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerifierPool]:
    """A verifier of a user's package, which the grading processes find by its entry point."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "odd_verifier.py").write_text(USERS)
    metadata = folder / "odd-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[tutelage.extensions]\nodd = odd_verifier\n")
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    with verifier_pool("odd", 20) as pool:
        assert pool is not None
        yield pool
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def math() -> Iterator[VerifierPool]:
    with verifier_pool("math", 3) as pool:
        assert pool is not None
        yield pool


def question(*answers: str) -> Prompt:
    return Prompt("q", (Message("user", "?"),), answer=answers[0], further_answers=answers[1:])


def grade(pool: VerifierPool, response: str, *answers: str) -> Grade:
    return asyncio.run(pool.grade(question(*answers or ("42",)), response))


def test_a_response_is_graded_again_where_its_process_died_by_another_hand(odd: VerifierPool, tmp_path: Path) -> None:
    assert grade(odd, f"once {tmp_path / 'died'}") == Grade(1.0)
    assert grade(odd, "die") == Grade(0.0, overran=True)


@pytest.mark.parametrize(
    "response",
    [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{100000000!}", r"\boxed{\binom{10000000}{5000000}}"],
)
def test_answers_that_nobody_can_work_out_score_0_and_are_counted(math: VerifierPool, response: str) -> None:
    assert grade(math, response) == Grade(0.0, overran=True)
    assert grade(math, r"\boxed{42}") == Grade(1.0)


def test_any_of_several_right_answers_counts(math: VerifierPool) -> None:
    assert grade(math, r"\boxed{\frac12}", "7", "0.5") == Grade(1.0)
    assert grade(math, r"\boxed{8}", "7", "0.5") == Grade(0.0)


def test_grades_are_made_side_by_side(odd: VerifierPool) -> None:
    async def eight() -> float:
        await odd.grade(question("1"), "")  # the processes are there
        started = time.monotonic()
        await asyncio.gather(*(odd.grade(question("1"), "sleep") for _ in range(8)))
        return time.monotonic() - started

    assert asyncio.run(eight()) < 8 * 0.5 * 0.8


@pytest.mark.parametrize("response", ["die", "hog", "deep"])
def test_a_process_that_dies_or_takes_too_much_scores_0_and_is_counted(odd: VerifierPool, response: str) -> None:
    assert grade(odd, response) == Grade(0.0, overran=True)
    assert grade(odd, "yes") == Grade(1.0)


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        ("raise", "KeyError"),
        ("exit", r"SystemExit\(3\)"),
        ("none", "gives None"),
        ("nan", "gives nan"),
        ("two", "gives 2.0"),
        ("text", "gives '1'"),
    ],
)
def test_what_is_no_grade_is_an_error_that_names_the_prompt(odd: VerifierPool, response: str, problem: str) -> None:
    with pytest.raises(WorkerFailure, match=rf"data\.verifier=odd cannot grade prompt 'q': .*{problem}"):
        grade(odd, response)


def test_nothing_is_graded_without_a_verifier() -> None:
    with verifier_pool("none", 1) as pool:
        assert pool is None


def test_trajectories_are_graded_by_their_last_answer_and_in_any_order(math: VerifierPool, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    texts = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{42}", r"\boxed{41}"]
    prompt = RenderedPrompt(question("42"), np.arange(2, dtype=np.int32), np.arange(2, dtype=np.int32))

    async def written() -> AsyncIterator[Trajectory]:
        for slot, text in enumerate(texts):
            ids = np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
            request = RolloutRequest(slot, "q", 0, prompt.student_ids, seed=0, max_tokens=99)
            yield foreign_trajectory(request, ids, FinishReason.STOP, Origin.TEACHER)

    async def graded() -> list[Trajectory]:
        return [item async for item in Grader(math, [prompt], tokenizer).grade_all(written())]

    items = asyncio.run(graded())
    assert [item.slot for item in items][-1] == 0  # the one that took its time
    found = {item.slot: (item.reward, item.grading_overran) for item in items}
    assert found == {0: (0.0, True), 1: (1.0, False), 2: (0.0, False)}
