"""Grading: responses and the run's verifier, which works in processes of its own.

A response is hostile until it is graded: what a verifier makes of it may never return, or take all memory there is.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np
from loky import cpu_count

from rollout.config import NO_VERIFIER
from rollout.verifiers import VERIFIERS
from tutelage.aio import mapped
from tutelage.errors import WorkerFailure
from tutelage.processes import GuardedPool, Overrun, ProcessDied
from tutelage.records.prompt import Prompt, RenderedPrompt, with_ids
from tutelage.records.trajectory import Trajectory

if TYPE_CHECKING:  # each process that grades imports this module, and transformers takes seconds
    from transformers import PreTrainedTokenizerBase

_FEWEST, _MOST = 2, 32  # processes: one that hangs leaves another; each takes some hundred MB
_DEATHS = 2  # of the process that grades a response, until it is the response that has killed it


@dataclass(frozen=True)
class Grade:
    """What a verifier says of a response."""

    score: float  # 0 to 1
    overran: bool = False  # the verifier did not get done with it, so it scores 0


class VerifierPool:
    """A verifier in processes of its own, with a deadline for each response; they start with the first one.

    Args:
        name: in `rollout.verifiers.VERIFIERS`; not none.
        deadline: seconds a response.
    """

    def __init__(self, name: str, deadline: float) -> None:
        self._name, self._deadline = name, deadline
        self._pool = GuardedPool(min(max(cpu_count(), _FEWEST), _MOST), partial(_prepare, name))

    async def grade(self, prompt: Prompt, response: str) -> Grade:
        """Grade a response; where the prompt has several right answers, by the one that it fits best.

        Raises:
            WorkerFailure: the verifier raised, or gave what is no grade; the message names it and the prompt.
        """
        for _ in range(_DEATHS):
            try:
                return Grade(await self._pool.acall(_grade, self._name, prompt, response, deadline=self._deadline))
            except ProcessDied:
                continue
            except Overrun:
                break
            except ValueError as error:
                said = f"data.verifier={self._name} cannot grade prompt {prompt.id!r}: {error}"
                raise WorkerFailure(said) from error
        return Grade(0.0, overran=True)

    def close(self) -> None:
        """End the processes, whatever they do."""
        self._pool.close()


@contextmanager
def verifier_pool(name: str, deadline: float) -> Iterator[VerifierPool | None]:
    """The verifier of a run, until the block is left; None where nothing is graded."""
    pool = None if name == NO_VERIFIER else VerifierPool(name, deadline)
    try:
        yield pool
    finally:
        if pool is not None:
            pool.close()


def _prepare(name: str) -> None:
    """Import what grading needs, which may take longer than a response may."""
    if name in VERIFIERS and (verifier := VERIFIERS[name]) is not None:
        verifier.prepare()


def _grade(name: str, prompt: Prompt, response: str) -> float:
    """In a process of the pool. What a verifier raises may not travel, so its text does."""
    if name not in VERIFIERS:
        raise ValueError(
            "the processes that grade do not know it; register it in a module that an entry point of the group "
            "tutelage.extensions names"
        )
    verifier = VERIFIERS[name]
    assert verifier is not None
    answers = [prompt.answer, *prompt.further_answers]
    try:
        scores = [verifier(replace(prompt, answer=answer), response) for answer in answers]
    except MemoryError:
        raise
    except RecursionError as error:  # as memory: there is a response too deep for any code
        raise Overrun(str(error)) from None
    except BaseException as error:  # code of a user's, which may raise anything, SystemExit too
        raise ValueError(str(error) if type(error) is ValueError else repr(error)) from None
    for score in scores:
        if not isinstance(score, (Real, np.bool_)) or not isfinite(score) or not 0 <= score <= 1:
            raise ValueError(f"it gives {score!r}, and a grade is a number from 0 to 1")
    return float(max(scores))


class Grader:
    """Scores responses to `prompts`, a conversation by its last answer; without a verifier they stay as they are."""

    def __init__(
        self, verifier: VerifierPool | None, prompts: Sequence[RenderedPrompt], tokenizer: "PreTrainedTokenizerBase"
    ) -> None:
        self._verifier, self._prompts, self._tokenizer = verifier, with_ids(prompts), tokenizer

    async def grade(self, trajectory: Trajectory) -> Trajectory:
        """Give the trajectory its reward."""
        if self._verifier is None:
            return trajectory
        last = trajectory.response_ids[trajectory.answers[-1]]
        text = self._tokenizer.decode(last, skip_special_tokens=True)
        grade = await self._verifier.grade(self._prompts[trajectory.prompt_id].prompt, text)
        return replace(trajectory, reward=grade.score, grading_overran=grade.overran)

    def grade_all(self, trajectories: AsyncIterator[Trajectory]) -> AsyncIterator[Trajectory]:
        """Grade trajectories side by side as they come, and yield each as it has its reward."""
        return mapped(self.grade, trajectories)
