"""Verifiers: what may be chosen with data.verifier, and the grader that asks the chosen one."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from rollout.config import NO_VERIFIER
from tutelage.records.prompt import Prompt, RenderedPrompt, with_ids
from tutelage.records.trajectory import Trajectory
from tutelage.registry import Registry
from tutelage.settings import Refusal
from tutelage.verifier import Verifier

VERIFIERS: Registry[Verifier | None] = Registry("data.verifier")  # None: nothing is graded
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_MATH_SECONDS = 5
_FINAL_ANSWER = "####"


class Grader:
    """Scores responses to `prompts`, a conversation by its last answer; without a verifier they stay as they are."""

    def __init__(
        self, verifier: Verifier | None, prompts: Sequence[RenderedPrompt], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._verifier, self._prompts, self._tokenizer = verifier, with_ids(prompts), tokenizer

    async def grade(self, trajectory: Trajectory) -> Trajectory:
        """Give the trajectory its reward; the verifier works in a thread of its own."""
        if self._verifier is None:
            return trajectory
        last = trajectory.response_ids[trajectory.answers[-1]]
        text = self._tokenizer.decode(last, skip_special_tokens=True)
        prompt = self._prompts[trajectory.prompt_id].prompt
        return replace(trajectory, reward=await asyncio.to_thread(self._verifier, prompt, text))


class ExactMatch(Verifier):
    """1 if the extracted answer is the expected one, case and runs of white space folded; else 0."""

    def __call__(self, prompt: Prompt, response: str) -> float:
        return float(_fold(extract_answer(response)) == _fold(_expected(prompt, "exact")))


class MathMatch(Verifier):
    r"""1 if math-verify finds the response's final answer equal to the expected one; else 0.

    The final answer is in \boxed{}, after "answer is", or the last expression. math-verify's time limit rests on
    SIGALRM, which only the main thread may set: elsewhere there is no limit.
    """

    def __call__(self, prompt: Prompt, response: str) -> float:
        from math_verify import parse, verify

        seconds = _MATH_SECONDS if threading.current_thread() is threading.main_thread() else None
        expected = _expected(prompt, "math")
        gold = parse(f"${expected}$", parsing_timeout=seconds) or parse(expected, parsing_timeout=seconds)
        answer = parse(extract_answer(response), parsing_timeout=seconds)
        return float(verify(gold, answer, timeout_seconds=seconds))


class FinalAnswerMatch(Verifier):
    """1 if the text after the last #### is the expected one, without the white space around both; else 0.

    The marker is that of GSM8K (Cobbe et al. 2021); a response without it has no answer.
    """

    def __call__(self, prompt: Prompt, response: str) -> float:
        _, marker, answer = response.rpartition(_FINAL_ANSWER)
        return float(bool(marker) and answer.strip() == _expected(prompt, "final_answer").strip())


class ReasoningGymScore(Verifier):
    """The task family's own score of the extracted answer; some families give partial credit.

    Where the expected answer is a number and the response has no <answer> tag, its last number is the answer: a
    sentence such as "The answer is 7." is right or wrong, not partly right for being long.
    """

    def __call__(self, prompt: Prompt, response: str) -> float:
        if not {"task", "entry"} <= prompt.metadata.keys():
            raise ValueError(
                f"data.verifier=reasoning_gym cannot grade prompt {prompt.id!r}, which no reasoning_gym task made; "
                "set data.train.kind and data.heldout.kind to reasoning_gym, or choose another verifier"
            )
        score = _scorer(prompt.metadata["task"])
        return float(score(_number_or_answer(prompt, response), prompt.metadata["entry"]))

    def refusals(self, source: str, kind: str) -> Iterator[Refusal]:
        if kind != "reasoning_gym":
            fix = f"grades reasoning-gym tasks only, and {source}.kind={kind}; use exact, math, final_answer or none"
            yield Refusal("data.verifier", "reasoning_gym", fix)


VERIFIERS.add(NO_VERIFIER, None)
VERIFIERS.add("exact", ExactMatch())
VERIFIERS.add("math", MathMatch())
VERIFIERS.add("reasoning_gym", ReasoningGymScore())
VERIFIERS.add("final_answer", FinalAnswerMatch())


def extract_answer(response: str) -> str:
    """Return the text of the last <answer>…</answer>, else the whole response; stripped."""
    tagged = _ANSWER_TAG.findall(response)
    return (tagged[-1] if tagged else response).strip()


def _number_or_answer(prompt: Prompt, response: str) -> str:
    numbers = _NUMBER.findall(response)
    expects_number = prompt.answer is not None and _NUMBER.fullmatch(prompt.answer.strip())
    if expects_number and numbers and not _ANSWER_TAG.search(response):
        return numbers[-1]
    return extract_answer(response)


@cache
def _scorer(task: str) -> Callable[[str, Mapping[str, Any]], float]:
    from reasoning_gym import get_score_answer_fn

    return get_score_answer_fn(task)


def _expected(prompt: Prompt, verifier: str) -> str:
    if prompt.answer is None:
        raise ValueError(
            f"data.verifier={verifier} needs an answer, and prompt {prompt.id!r} has none; name the column with "
            "data.train.answer_column and data.heldout.answer_column, or set data.verifier=none"
        )
    return prompt.answer


def _fold(text: str) -> str:
    return " ".join(text.split()).casefold()
