"""Targeted rollouts: what the student makes of a token that it is made to take.

    prompt + answer up to a node + candidate ─► the student's completions ─► graded as whole answers

A candidate that ends the answer, or leaves no room for more, is graded at once, and counts as completions that all
came out alike.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import PreTrainedTokenizerBase

from diagnostics.config import AlignmentConfig
from orchestration.pipeline.requests import rollout_request
from rollout.grading import Grade, VerifierPool
from rollout.group import RolloutGroup
from tutelage.aio import mapped
from tutelage.console import PlainConsole
from tutelage.records.prompt import RenderedPrompt
from tutelage.records.trajectory import CORRECT, RolloutRequest, Trajectory, derive_seed
from tutelage.settings import ConfigError, Refusal

REQUESTS_AT_ONCE = 4096
_ENOUGH_QUESTIONS = 8  # rather fewer completions than fewer questions


@dataclass(frozen=True)
class Target:
    """One candidate at one node."""

    question: int  # index of the prompt
    item: RenderedPrompt
    node: int  # index of the node
    candidate: int  # id of the token
    response_ids: NDArray[np.int32]  # up to the candidate, which is the last one
    room: int  # tokens that may still come
    expected: int  # tokens that still came in the answer that the node is from
    seed: int  # the same for the same place in every run

    def tokens(self, completions: int, each: int) -> int:
        """The common prompt once, and `each` tokens a completion."""
        return len(self.item.student_ids) + len(self.response_ids) + completions * each if self.room else 0

    def at_most(self, completions: int) -> int:
        return self.tokens(completions, self.room)


@dataclass(frozen=True)
class TargetedPlan:
    targets: tuple[Target, ...]
    completions: int

    @property
    def requests(self) -> int:
        return self.completions * sum(target.room > 0 for target in self.targets)

    @property
    def at_most(self) -> int:
        return sum(target.at_most(self.completions) for target in self.targets)

    @property
    def predicted(self) -> int:
        """If the completions are as long as the answers that the nodes are from."""
        return sum(t.tokens(self.completions, min(t.room, max(t.expected, 1))) for t in self.targets)


def fit(targets: Sequence[Target], settings: AlignmentConfig, budget: int) -> TargetedPlan:
    """As many questions, in their order, as surely fit in `budget` tokens, each with all its candidates.

    Where these would be few, every candidate has `alignment.min_completions` only.

    Raises:
        ConfigError: not even one question fits.
    """
    questions = list(dict.fromkeys(target.question for target in targets))
    wanted = min(_ENOUGH_QUESTIONS, len(questions))
    plans = (
        _fitting(targets, questions, completions, budget)
        for completions in (settings.completions, settings.min_completions)
    )
    plan = next((plan for plan in plans if len({target.question for target in plan.targets}) >= wanted), None)
    plan = plan or _fitting(targets, questions, settings.min_completions, budget)
    if targets and not plan.targets:
        first = sum(t.at_most(settings.min_completions) for t in targets if t.question == questions[0])
        fix = (
            f"of it {budget} tokens are left for targeted rollouts, and those of the first question may take {first}; "
            "raise it, or lower sampling.max_tokens, alignment.nodes_per_window, alignment.candidates or "
            "alignment.min_completions"
        )
        raise ConfigError(Refusal("alignment.max_tokens", settings.max_tokens, fix))
    return plan


def _fitting(targets: Sequence[Target], questions: Sequence[int], completions: int, budget: int) -> TargetedPlan:
    cost = dict.fromkeys(questions, 0)
    for target in targets:
        cost[target.question] += target.at_most(completions)
    within = np.cumsum(list(cost.values())) <= budget
    kept = {question for question, fits in zip(questions, within, strict=True) if fits}
    return TargetedPlan(tuple(target for target in targets if target.question in kept), completions)


class AnswerGrader:
    """Whether whole answers succeed; equal answers are graded once."""

    def __init__(
        self, verifier: VerifierPool, prompts: Sequence[RenderedPrompt], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._verifier, self._prompts, self._tokenizer = verifier, prompts, tokenizer
        self._known: dict[tuple[int, str], asyncio.Task[Grade]] = {}

    async def succeeds(self, question: int, response_ids: NDArray[np.int32]) -> bool:
        """Whether the answer to prompt number `question` has the verifier's full score."""
        key = (question, self._tokenizer.decode(response_ids, skip_special_tokens=True))
        if key not in self._known:
            self._known[key] = asyncio.create_task(self._verifier.grade(self._prompts[question].prompt, key[1]))
        return (await self._known[key]).score >= CORRECT


@dataclass(frozen=True)
class Completed:
    outcomes: Mapping[int, Mapping[int, NDArray[np.float64]]]  # node ─► candidate ─► of each completion, 1 or 0
    tokens: int


async def complete(plan: TargetedPlan, rollouts: RolloutGroup, grader: AnswerGrader) -> Completed:
    """Let the student go on from every candidate, at temperature 1."""
    outcomes, tokens = np.zeros((len(plan.targets), plan.completions)), 0
    for index, target in enumerate(plan.targets):
        tokens += target.tokens(0, 0)
        if not target.room:
            outcomes[index] = await grader.succeeds(target.question, target.response_ids)
    requests = _requests(plan)

    async def grade(trajectory: Trajectory) -> tuple[Trajectory, bool]:
        target = plan.targets[trajectory.slot // plan.completions]
        answer = np.concatenate([target.response_ids, trajectory.response_ids])
        return trajectory, await grader.succeeds(target.question, answer)

    with _progress(plan.requests) as advance:
        for start in range(0, len(requests), REQUESTS_AT_ONCE):
            async for trajectory, right in mapped(grade, rollouts.roll_out(requests[start : start + REQUESTS_AT_ONCE])):
                outcomes[divmod(trajectory.slot, plan.completions)] = right
                tokens += len(trajectory.response_ids)
                advance()
    by_node: dict[int, dict[int, NDArray[np.float64]]] = {}
    for target, row in zip(plan.targets, outcomes, strict=True):
        by_node.setdefault(target.node, {})[target.candidate] = row
    return Completed(by_node, tokens)


def _requests(plan: TargetedPlan) -> list[RolloutRequest]:
    """Neighbours have their prompt in common; slot // completions is the target's index."""
    requests = []
    for index, target in enumerate(plan.targets):
        prompt_ids = np.concatenate([target.item.student_ids, target.response_ids])
        for sample in range(plan.completions if target.room else 0):
            slot, seed = index * plan.completions + sample, derive_seed(target.seed, sample)
            request = rollout_request(target.item, slot, seed, target.room, sample_index=sample)
            requests.append(replace(request, prompt_ids=prompt_ids))
    return requests


@contextmanager
def _progress(requests: int) -> Iterator[Callable[[], None]]:
    """A live bar on a terminal, nothing elsewhere; yields what to call for each finished request."""
    console = PlainConsole()
    columns = (BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(
        TextColumn("targeted rollouts", style="bold", markup=False),
        *columns,
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=requests)
        yield lambda: bar.advance(task)
