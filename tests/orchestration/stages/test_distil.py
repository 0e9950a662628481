"""Distillation: what a damaged teacher says is not learned from."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from orchestration.measure.evaluation import Evaluator
from orchestration.pipeline.fleet import Fleet
from orchestration.pipeline.progress import RunProgress
from orchestration.stages.distil import Distillation
from tests.factories import configured, make_trajectory, prepared
from tutelage.errors import WorkerFailure
from tutelage.records.signal import ScoringRequest, TeacherSignal


class Teachers:
    """A pool of teachers that say the same of every token."""

    def __init__(self, logprob: float) -> None:
        self._logprob = logprob

    def __contains__(self, role: str) -> bool:
        return False

    async def score(self, request: ScoringRequest, members: object = None) -> TeacherSignal:
        return TeacherSignal(request.teacher, np.full(request.num_scored, self._logprob, dtype=np.float32))


def stage(overrides: list[str], logprob: float, run_dir: Path) -> Distillation:
    fleet = SimpleNamespace(rollouts=SimpleNamespace(workers=[]), teacher_rollouts=None, teachers=Teachers(logprob))
    return Distillation(
        configured(*overrides), prepared(overrides), cast(Fleet, fleet),
        cast(Evaluator, SimpleNamespace(verifier=None)), RunProgress(), run_dir,
    )  # fmt: skip


def test_log_probs_that_are_no_numbers_end_the_run_with_teacher_and_prompt(
    overrides: list[str], tmp_path: Path
) -> None:
    overrides = [*overrides, "objective=sampled_reverse_kl"]
    prompt_id = prepared(overrides).train[0].prompt.id
    trajectory = make_trajectory([1, 2], [3, 4], prompt_id=prompt_id)
    signal = asyncio.run(stage(overrides, -1.0, tmp_path).score(trajectory))
    assert signal.logprobs.tolist() == [-1.0, -1.0]
    with pytest.raises(WorkerFailure, match=rf"teacher 'teacher' gave .*NaN.* prompt '{prompt_id}'.*scoring.dtype"):
        asyncio.run(stage(overrides, float("nan"), tmp_path).score(trajectory))
