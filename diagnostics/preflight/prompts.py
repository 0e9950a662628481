"""The prompts themselves: empty, twice, too long, known to the evaluation, or beyond the verifier."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from diagnostics.check import Check, Status
from tutelage.records.prompt import Prompt, normalised
from tutelage.records.trajectory import CORRECT

GRADED_PROMPTS = 64  # of each split, whose reference answers the verifier is tried on
MANY_DUPLICATES = 0.05  # share of the training prompts from which on a warning is due
MUCH_OVERLAP = 0.05  # share of the held-out prompts from which on the evaluation means nothing
MANY_REFUSED = 0.1  # share of the reference answers from which on the verifier cannot be what the data is graded by
EMPTY_RESPONSES = ("", "####")  # also behind the mark of a final answer


def check_prompts(train: Sequence[Prompt], over_length: int, heldout_count: int, blank: int = 0) -> list[Check]:
    """Look for empty, duplicate and over-long prompts.

    Args:
        over_length: prompts of both splits that were left out because they do not fit.
        blank: the same, because they have no text.
    """
    empty = [prompt.id for prompt in train if not any(message.content.strip() for message in prompt.messages)]
    if empty:
        seen = f"{len(empty)} of {len(train)} training prompts have no text (first: {empty[0]!r})"
        return [Check("prompts", Status.failed, seen, "take them out of data.train")]
    twice = sum(count - 1 for count in Counter(map(normalised, train)).values())
    total = len(train) + heldout_count + over_length + blank
    seen = f"{len(train)} to train on, {twice} of them repeat another, {over_length} of {total} too long and left out"
    if blank:
        seen += f", {blank} blank and left out"
    if over_length > 0.5 * total:
        fix = "raise rollout.max_model_len, or lower sampling.max_tokens: most prompts are left out"
        return [Check("prompts", Status.warned, seen, fix)]
    if blank > MANY_DUPLICATES * total:
        fix = "see which rows of data.train and data.heldout have no text (data.blank_prompts=refuse names one)"
        return [Check("prompts", Status.warned, seen, fix)]
    if twice > MANY_DUPLICATES * len(train):
        return [Check("prompts", Status.warned, seen, "take duplicates out of data.train: they count double")]
    return [Check("prompts", Status.passed, seen)]


def check_overlap(train: Sequence[Prompt], heldout: Sequence[Prompt]) -> Check:
    """Whether held-out prompts are training prompts."""
    known = set(map(normalised, train))
    shared = [prompt.id for prompt in heldout if normalised(prompt) in known]
    if not shared:
        return Check("held-out prompts", Status.passed, f"none of {len(heldout)} is a training prompt")
    status = Status.failed if len(shared) > MUCH_OVERLAP * len(heldout) else Status.warned
    seen = f"{len(shared)} of {len(heldout)} are training prompts (first: {shared[0]!r})"
    fix = "take them out of data.train or data.heldout: the evaluation would measure memory"
    return Check("held-out prompts", status, seen, fix)


def graded_prompts(prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """Prompts of a split, evenly spread over it, that the verifier is tried on."""
    return prompts[:: max(1, math.ceil(len(prompts) / GRADED_PROMPTS))]


def reference_responses(prompt: Prompt) -> list[str]:
    """The reference answer in every form that a verifier may ask for; none if the prompt has none."""
    responses = [] if prompt.completion is None else [prompt.completion]
    if prompt.answer is not None:
        answer = prompt.answer
        responses += [answer, f"#### {answer}", f"<answer>{answer}</answer>", f"The answer is \\boxed{{{answer}}}."]
    return responses


@dataclass(frozen=True)
class VerifierTrial:
    """What a verifier says of a prompt's reference answer, which it must accept, and of nothing, which it must not."""

    prompt_id: str
    reference: float | None = None  # the highest grade of its forms; None: there is none
    nothing: float = 0.0  # the highest grade of `EMPTY_RESPONSES`
    overran: bool = False  # it did not get done with one of them
    error: str = ""  # why it cannot grade this prompt


def check_verifier(trials: Sequence[VerifierTrial]) -> Check:
    """Judge a verifier by what it says of reference answers and of empty ones."""
    tried = len(trials)
    graded = [trial for trial in trials if trial.reference is not None]
    refused = [trial for trial in graded if trial.reference is not None and trial.reference < CORRECT]
    lenient = [trial for trial in trials if trial.nothing >= CORRECT]

    def check(status: Status, seen: str, first: Sequence[VerifierTrial], fix: str) -> Check:
        return Check("verifier", status, f"{seen} (first: {first[0].prompt_id!r})", fix)

    beyond = [trial for trial in trials if trial.error]
    if beyond:
        seen = f"it cannot grade {len(beyond)} of {tried} prompts (first: {beyond[0].error})"
        fix = "give every prompt its answer, or set data.verifier to what can grade them"
        return Check("verifier", Status.failed, seen, fix)
    slow = [trial for trial in trials if trial.overran]
    if slow:
        seen = f"it does not get done with the reference answers of {len(slow)} of {tried} prompts"
        status = Status.failed if len(slow) > MANY_REFUSED * tried else Status.warned
        return check(status, seen, slow, "raise timeouts.grading, or set another data.verifier")
    if lenient:
        seen = f"it accepts an empty answer to {len(lenient)} of {tried} prompts"
        status = Status.failed if len(lenient) == tried else Status.warned
        fix = "set another data.verifier, or correct the answers of these prompts"
        return check(status, seen, lenient, fix)
    if refused:
        seen = f"it rejects the reference answer of {len(refused)} of {len(graded)} prompts"
        status = Status.failed if len(refused) > MANY_REFUSED * len(graded) else Status.warned
        return check(status, seen, refused, "set the data.verifier that reads these answers, or correct them")
    if not graded:
        return Check("verifier", Status.passed, f"none of {tried} prompts has a reference answer to try it on")
    seen = f"it accepts the reference answers of {len(graded)} prompts and no empty answer"
    return Check("verifier", Status.passed, seen)


def check_grades(grades: Sequence[float]) -> Check:
    """Judge a verifier's grades of a few answers of the student that came to their end.

    Args:
        grades: from 0 to 1.
    """
    name = "verifier on answers"
    if len(grades) < 2:
        return Check(name, Status.passed, f"{len(grades)} of the few short answers came to an end: nothing to tell")
    seen = f"{sum(grade >= 1 for grade in grades)} of {len(grades)} answers of the student are accepted"
    if all(grade >= 1 for grade in grades):
        fix = "if that holds for all of them there is nothing to gain: look at samples, or take harder prompts"
        return Check(name, Status.warned, seen, fix)
    if all(grade <= 0 for grade in grades):
        fix = (
            "look at samples: if the form is what is wrong, name it in data.system_prompt or set another data.verifier"
        )
        return Check(name, Status.warned, seen, fix)
    return Check(name, Status.passed, seen)
