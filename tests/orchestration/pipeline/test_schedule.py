"""Prompts, samples and seeds follow from the slot alone."""

from hypothesis import given
from hypothesis import strategies as st

from orchestration.pipeline.schedule import PromptSchedule


@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 2**31), st.booleans())
def test_every_epoch_draws_each_prompt_once_with_all_its_samples(
    prompts: int, samples: int, seed: int, shuffle: bool
) -> None:
    schedule = PromptSchedule(prompts, samples, seed, shuffle)
    for epoch in range(2):
        start = epoch * prompts * samples
        plans = [schedule.plan(slot) for slot in range(start, start + prompts * samples)]
        drawn = sorted((plan.prompt_index, plan.sample_index) for plan in plans)
        assert drawn == [(p, s) for p in range(prompts) for s in range(samples)]
        assert all(plans[i].prompt_index == plans[i - i % samples].prompt_index for i in range(len(plans)))


def test_a_slot_means_the_same_whatever_was_asked_before() -> None:
    forward, backward = (PromptSchedule(7, 2, 3, True) for _ in range(2))
    plans = [forward.plan(slot) for slot in range(60)]
    assert [backward.plan(slot) for slot in reversed(range(60))] == plans[::-1]
    assert len({plan.seed for plan in plans}) == len(plans)


def test_the_share_of_the_students_own_sequences() -> None:
    pure, mixed, foreign = (PromptSchedule(50, 1, 0, True, on_policy_fraction=share) for share in (1.0, 0.3, 0.0))
    plans = [mixed.plan(slot) for slot in range(2000)]
    share = sum(plan.student for plan in plans) / len(plans)
    assert abs(share - 0.3) < 5 * (0.3 * 0.7 / len(plans)) ** 0.5
    assert all(pure.plan(slot).student and not foreign.plan(slot).student for slot in range(200))
    assert [(p.prompt_index, p.seed) for p in plans[:200]] == [
        (p.prompt_index, p.seed) for p in map(pure.plan, range(200))
    ]


def test_another_seed_is_another_order() -> None:
    one, two = (PromptSchedule(50, 1, seed, True) for seed in (0, 1))
    assert [one.plan(i).prompt_index for i in range(50)] != [two.plan(i).prompt_index for i in range(50)]
