"""The learning rate of every step."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.config import LearnerConfig, Schedule
from learner.deepspeed_setup import schedule


def rates(config: LearnerConfig, total: int, resumed_at: int | None = None) -> list[float]:
    """The rate of every step; from `resumed_at` on a new schedule has the state of the first."""
    found = []
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    scheduler = schedule(config, total, optimizer)
    for step in range(total):
        if step == resumed_at:
            state, optimizer = scheduler.state_dict(), torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
            scheduler = schedule(config, total, optimizer)
            scheduler.load_state_dict(state)
        found.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return found


@given(kind=st.sampled_from(Schedule), warmup=st.integers(0, 9), more=st.integers(1, 9), data=st.data())
def test_every_step_of_the_warm_up_learns(kind: Schedule, warmup: int, more: int, data: st.DataObject) -> None:
    config, total = LearnerConfig(schedule=kind, warmup_steps=warmup, learning_rate=2e-3), warmup + more
    found = rates(config, total)
    assert found[: warmup + 1] == pytest.approx([2e-3 * (step + 1) / (warmup + 1) for step in range(warmup + 1)])
    assert min(found) > 0 and max(found) == pytest.approx(2e-3)
    assert rates(config, total, data.draw(st.integers(1, total))) == pytest.approx(found)


def test_after_the_warm_up_it_is_the_curve_of_its_name() -> None:
    linear = rates(LearnerConfig(schedule=Schedule.linear, warmup_steps=2, learning_rate=1.0), 6)
    assert linear[2:] == pytest.approx([1.0, 0.75, 0.5, 0.25])
    cosine = rates(LearnerConfig(schedule=Schedule.cosine, warmup_steps=2, learning_rate=1.0), 6)
    assert cosine[4] == pytest.approx(0.5)
    assert rates(LearnerConfig(warmup_steps=0, learning_rate=1.0), 3) == [1.0, 1.0, 1.0]
