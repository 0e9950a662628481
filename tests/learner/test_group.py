"""Ranks that fail together: the one that is gone is named, though others notice it first."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from learner import group
from learner.group import LearnerGroup
from learner.packing import pack
from learner.records import Batch
from tests.learner.examples import make_examples
from tutelage.errors import WorkerFailure, WorkerLost
from tutelage.settings import TimeoutConfig


class Rank:
    """Answers after a while, with what it was given or by failing."""

    def __init__(self, name: str, seconds: float = 0.0, failure: Exception | None = None, report: str = "") -> None:
        self.name, self.seconds, self.failure, self.report = name, seconds, failure, report

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        await asyncio.sleep(self.seconds)
        if self.failure is not None:
            raise self.failure
        return args

    async def death_report(self) -> str | None:
        return self.report or None


def ask(*ranks: Rank) -> list[Any]:
    learner = LearnerGroup(ranks, (), TimeoutConfig())  # type: ignore[arg-type]
    return asyncio.run(learner._all("export", str(Path("x")), deadline=5))


CLOSED = WorkerFailure("learner-0 failed in step: connection closed by peer")


@pytest.mark.parametrize(
    "other",
    [
        Rank("learner-1", 0.1, WorkerLost("learner-1 died: its node is gone")),  # noticed later
        Rank("learner-1", 0.0, None, "learner-1 died: its node is gone"),  # after it had answered
        Rank("learner-1", 9.0, None, "learner-1 died: its node is gone"),
    ],
)
def test_the_rank_that_is_gone_is_the_cause(other: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_FIND_OUT_SECONDS", 0.3)
    with pytest.raises(WorkerLost, match=r"^learner-1 died: its node is gone$"):
        ask(Rank("learner-0", 0.0, CLOSED), other)


def test_where_all_live_the_first_failure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "_FIND_OUT_SECONDS", 0.1)
    with pytest.raises(WorkerFailure, match="connection closed") as caught:
        ask(Rank("learner-0", 0.0, CLOSED), Rank("learner-1", 9.0))
    assert not isinstance(caught.value, WorkerLost)


def test_a_rank_is_given_its_own_share_only() -> None:
    batch = pack(make_examples(), 2, 40, 0)
    shares = [batch.share(rank) for rank in range(2)]
    for rank, share in enumerate(shares):
        assert share.ranks[rank] == batch.ranks[rank]
        assert set(share.ranks[1 - rank]) == {None} and len(share.ranks[1 - rank]) == len(batch.ranks[1 - rank])
        assert isinstance(share, Batch) and share.loss_tokens == batch.loss_tokens
