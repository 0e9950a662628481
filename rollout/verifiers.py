"""Verifiers: what may be chosen with data.verifier."""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from rollout.config import NO_VERIFIER
from tutelage.records.prompt import Prompt
from tutelage.registry import Registry
from tutelage.settings import Refusal
from tutelage.verifier import Verifier

VERIFIERS: Registry[Verifier | None] = Registry("data.verifier")  # None: nothing is graded
_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_FINAL_ANSWER = "####"
_BRACES = re.compile(r"(?P<box>\\f?box(?:ed)?\s*\{)|\\.|[{}]", re.DOTALL)  # an escaped brace is none
_CURRENCY = "$€£¥₹"
_LEADING_NUMBER = re.compile(
    r"(?:\\(?:f?box(?:ed)?|text(?:bf)?|mathbf)\{|[\s*_`\"'(\[{=:\\" + _CURRENCY + r"])*"  # what is written around it
    r"(?P<sign>[-+−]?)[\\" + _CURRENCY + r"]*"
    r"(?P<whole>[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]+)?(?P<fraction>\.[0-9]+)?(?P<rest>.*)",
    re.DOTALL,
)
# What makes the digits before it a part of another number: 1/2, 3^5, 3:30, 3,4, 3.4.5, 1 000, 5e3, 5-7, 5k, 5 million.
_GOES_ON = re.compile(
    r"\s*[/^:]\s*\d|[,.\s]\d|[eE][-+]?\d|[-–]\d|\s*(?:[kK]|hundred|thousand|million|billion|dozen)\b|\s*\\frac"
)


class ExactMatch(Verifier):
    """1 if the extracted answer is the expected one, case and runs of white space folded; else 0."""

    def __call__(self, prompt: Prompt, response: str) -> float:
        return float(_fold(extract_answer(response)) == _fold(_expected(prompt, "exact")))


class MathMatch(Verifier):
    r"""1 if math-verify finds the response's final answer equal to the expected one; else 0.

    The final answer is in the last \boxed{}; without one it is what math-verify finds: after "answer is", or the last
    expression. An expected answer may be a whole solution, with a \boxed{} or behind ####.
    """

    def __call__(self, prompt: Prompt, response: str) -> float:
        from math_verify import parse, verify

        # math-verify's own time limit scores a response 0 without a word; the one of the process is counted.
        expected = _last_box(_expected(prompt, "math"))
        if _FINAL_ANSWER in expected:
            expected = expected.rpartition(_FINAL_ANSWER)[2].strip()
        gold = parse(f"${expected}$", parsing_timeout=None) or parse(expected, parsing_timeout=None)
        answer = parse(_last_box(extract_answer(response)), parsing_timeout=None)
        return float(verify(gold, answer, timeout_seconds=None))

    def prepare(self) -> None:
        import logging

        import math_verify  # noqa: F401, its import takes a second

        # That its own limits are off is said at every start, and that a response cannot be parsed for each of them.
        logging.getLogger("math_verify").setLevel(logging.CRITICAL)


class FinalAnswerMatch(Verifier):
    """1 if what follows the last #### is the expected answer; else 0.

    The marker is that of GSM8K (Cobbe et al. 2021); a response without it has no answer. Where the expected answer is
    a number, the number that follows counts: without commas between its digits, signs of currency or emphasis, zeros
    behind the point, or the text after it. Any other answer is compared as text to the end of its line. The expected
    answer may itself be a whole solution that ends with #### and its answer, as GSM8K has it.
    """

    def __call__(self, prompt: Prompt, response: str) -> float:
        _, marker, answer = response.rpartition(_FINAL_ANSWER)
        if not marker:
            return 0.0
        expected = _expected(prompt, "final_answer").rpartition(_FINAL_ANSWER)[2]
        number = _leading_number(expected, whole=True)
        if number is not None:
            return float(_leading_number(answer) == number)
        return float(_plain(answer) == _plain(expected))


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
        try:
            return float(score(_number_or_answer(prompt, response), prompt.metadata["entry"]))
        except (MemoryError, RecursionError):
            raise
        except Exception:  # some families raise on what they cannot read; one that cannot read its own answers either
            return 0.0  # fails the preflight

    def prepare(self) -> None:
        import reasoning_gym  # noqa: F401, its import takes seconds

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


def _last_box(text: str) -> str:
    r"""Return the last \boxed{…} of a text that is closed and not empty; the text itself if there is none."""
    opened: list[re.Match[str]] = []
    last = slice(0, 0)
    for brace in _BRACES.finditer(text):
        if brace["box"] or brace.group() == "{":
            opened.append(brace)
        elif brace.group() == "}" and opened:
            opening = opened.pop()
            inside = slice(opening.end(), brace.start())
            if opening["box"] and inside.start > last.start and text[inside].strip():
                last = inside
    return rf"\boxed{{{text[last]}}}" if last.stop else text


def _leading_number(text: str, whole: bool = False) -> str | None:
    """Return the number that a text begins with, in one spelling; None if it begins with none.

    Args:
        whole: nothing but signs may follow it.
    """
    match = _LEADING_NUMBER.match(text)
    if match is None or not (match["whole"] or match["fraction"]) or _GOES_ON.match(match["rest"]):
        return None
    if whole and re.search(r"\w", match["rest"]):
        return None
    digits = (match["whole"] or "0").replace(",", "")
    fraction = (match["fraction"] or "").rstrip("0").rstrip(".")
    sign = "-" if match["sign"] in ("-", "−") and (digits + fraction).strip("0.") else ""
    return sign + digits + fraction


def _plain(text: str) -> str:
    """The first line of a text, without what marks it as important and the point at its end."""
    line = text.strip().partition("\n")[0]
    return _fold(line.strip(" \t*_`$\"'").rstrip(".").strip(" \t*_`$\"'"))


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
