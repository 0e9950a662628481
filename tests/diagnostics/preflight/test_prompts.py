"""Prompts, verifier, sampling and plan: what is well, and every planted fault."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.check import Check, Status, worst
from diagnostics.preflight.budget import (
    Measured,
    ModelSize,
    StepPlan,
    WorkerMemory,
    check_arithmetic,
    check_memory,
    check_time,
    engine_memory,
    learner_memory,
    predict_seconds,
    scorer_memory,
)
from diagnostics.preflight.prompts import (
    GRADED_PROMPTS,
    VerifierTrial,
    check_grades,
    check_overlap,
    check_prompts,
    check_verifier,
    graded_prompts,
)
from diagnostics.preflight.sampling import check_sampling, check_teacher_temperature
from learner.objectives.config import Gradient, Importance, ObjectiveConfig, Support
from learner.objectives.rules.case import RunFacts
from tutelage.records.prompt import Message, Prompt


def prompts(name: str, count: int, answer: str | None = "7") -> list[Prompt]:
    return [Prompt(f"{name}/{i}", (Message("user", f"{name} {i}?"),), answer=answer) for i in range(count)]


def test_good_prompts_pass() -> None:
    assert worst(check_prompts(prompts("a", 20), 1, 5)) is Status.passed
    assert check_overlap(prompts("a", 20), prompts("b", 5)).status is Status.passed


def test_empty_duplicate_and_over_long_prompts_are_counted() -> None:
    empty = [*prompts("a", 9), Prompt("empty", (Message("user", "  \n"),))]
    (check,) = check_prompts(empty, 0, 5)
    assert check.status is Status.failed and "'empty'" in check.seen
    few = [*prompts("a", 99), Prompt("again", (Message("user", " A  0? "),))]
    (check,) = check_prompts(few, 0, 5)
    assert check.status is Status.passed and "1 of them repeat" in check.seen
    (check,) = check_prompts(prompts("a", 10) * 2, 0, 5)
    assert check.status is Status.warned and "10 of them repeat" in check.seen
    (check,) = check_prompts(prompts("a", 10), 30, 5)
    assert check.status is Status.warned and "rollout.max_model_len" in check.fix


def test_held_out_prompts_that_are_trained_on_fail_and_few_of_them_warn() -> None:
    train = prompts("a", 50)
    assert check_overlap(train, train[:10]).status is Status.failed
    check = check_overlap(train, [*prompts("b", 30), train[3]])
    assert check.status is Status.warned and "1 of 31" in check.seen and "'a/3'" in check.seen


def trials(count: int, **said: Any) -> list[VerifierTrial]:
    return [VerifierTrial(f"a/{i}", **{"reference": 1.0} | said) for i in range(count)]


def test_a_verifier_that_accepts_the_reference_answers_passes() -> None:
    assert check_verifier(trials(5)).status is Status.passed
    none = check_verifier(trials(5, reference=None))
    assert none.status is Status.passed and "none of 5 prompts has a reference answer" in none.seen


def test_a_verifier_that_cannot_grade_or_accepts_everything_fails() -> None:
    check = check_verifier([*trials(2), *trials(3, error="data.verifier=exact needs an answer")])
    assert check.status is Status.failed and "cannot grade 3 of 5" in check.seen and "needs an answer" in check.seen
    check = check_verifier(trials(3, nothing=1.0))
    assert check.status is Status.failed and "accepts an empty answer to 3 of 3" in check.seen
    check = check_verifier([*trials(9), *trials(1, nothing=1.0)])
    assert check.status is Status.warned and "1 of 10" in check.seen and "'a/0'" in check.seen


@pytest.mark.parametrize(("rejected", "status"), [(1, Status.warned), (10, Status.warned), (11, Status.failed)])
def test_a_verifier_that_rejects_more_than_a_tenth_of_the_references_fails(rejected: int, status: Status) -> None:
    check = check_verifier([*trials(100 - rejected), *trials(rejected, reference=0.5), *trials(20, reference=None)])
    assert check.status is status and f"rejects the reference answer of {rejected} of 100" in check.seen


@pytest.mark.parametrize(("late", "status"), [(1, Status.warned), (2, Status.failed)])
def test_a_verifier_that_takes_too_long_for_references_is_told_of(late: int, status: Status) -> None:
    check = check_verifier([*trials(10 - late), *trials(late, reference=None, overran=True)])
    assert check.status is status and "timeouts.grading" in check.fix


@given(st.integers(0, 1000))
def test_the_verifier_is_tried_on_prompts_from_all_over_a_split(count: int) -> None:
    numbers = [int(prompt.id.partition("/")[2]) for prompt in graded_prompts(prompts("a", count))]
    assert len(numbers) <= GRADED_PROMPTS and len(numbers) >= min(count, GRADED_PROMPTS // 2)
    assert not count or (numbers[0] == 0 and numbers[-1] >= count - math.ceil(count / GRADED_PROMPTS))


def test_grades_that_are_all_alike_warn() -> None:
    assert check_grades([1.0, 0.0]).status is Status.passed
    assert check_grades([0.0]).status is Status.passed
    for grades, fix in (([1.0, 1.0], "nothing to gain"), ([0.0, 0.0, 0.0], "data.verifier")):
        check = check_grades(grades)
        assert check.status is Status.warned and fix in check.fix


RATIOS = ObjectiveConfig(
    name="sampled",
    support=Support.sampled,
    divergence="reverse_kl",
    gradient=Gradient.policy_gradient,
    importance=Importance.truncated,
)


def test_truncated_sampling_fails_where_ratios_are_weighed_and_warns_elsewhere() -> None:
    assert check_sampling(RATIOS, RunFacts(temperature=0.7)).status is Status.passed
    check = check_sampling(RATIOS, RunFacts(top_p=0.9))
    assert check.status is Status.failed and "set sampling.top_p=1" in check.fix
    check = check_sampling(ObjectiveConfig(support=Support.full), RunFacts(top_k=20))
    assert check.status is Status.warned and "top-k 20" in check.seen


def test_a_softened_teacher_warns() -> None:
    assert check_teacher_temperature(ObjectiveConfig()).status is Status.passed
    check = check_teacher_temperature(ObjectiveConfig(support=Support.full, teacher_temperature=2.0))
    assert check.status is Status.warned and "temperature 2" in check.seen


SIZE = ModelSize(parameters=2**30, head=2**28, vocabulary=2**16, cache=2**14)


def test_memory_is_that_of_weights_state_and_caches() -> None:
    assert sum(engine_memory(SIZE, 2, 3.0).values()) == 5.0
    assert scorer_memory(SIZE, 2, 256) == {"weights": 2.0, "float32 head": 1.0, "logits": 0.125}
    assert learner_memory(SIZE, 4, 0, 1, 0) == {"weights": 4.0, "gradients": 4.0, "optimiser": 8.0, "logits": 0.0}
    sharded = learner_memory(SIZE, 2, 3, 4, 0)
    assert sharded == {"weights": 0.5, "gradients": 1.0, "optimiser": 3.0, "logits": 0.0}
    adapted = learner_memory(SIZE, 4, 0, 1, 0, adapters=2**28)
    assert adapted == {"weights": 5.0, "gradients": 1.0, "optimiser": 2.0, "logits": 0.0}


def test_more_memory_than_there_is_fails() -> None:
    workers = [WorkerMemory("engine(s)", 2, {"weights": 4.0}, on_gpu=False), WorkerMemory("x", 1, {"w": 90.0}, True)]
    assert sum(worker.total for worker in workers) == pytest.approx(8 + 3 * 0.8)
    statuses = [check_memory(workers, there).status for there in (16.0, 11.0, 10.0)]
    assert statuses == [Status.passed, Status.warned, Status.failed]
    assert check_memory(workers, None).status is Status.passed


PLAN = StepPlan(
    batch_size=16, max_staleness=1, max_tokens=48, prompt_tokens=52, longest=200, steps=30, engines=2, max_num_seqs=64,
    cache_tokens=10_000, scorers=1, ranks=2, micro_batch_tokens=1024, is_on_policy=True,
)  # fmt: skip


def arithmetic(**changes: int) -> Check:
    return check_arithmetic(replace(PLAN, **changes))


def test_the_arithmetic_of_a_step() -> None:
    assert PLAN.in_flight == 16 and PLAN.concurrency == 50
    assert arithmetic().status is Status.passed
    assert arithmetic(cache_tokens=150).status is Status.failed
    assert "rollout.kv_cache_gib" in arithmetic(cache_tokens=1000).fix
    assert "learner.ranks to 16" in arithmetic(ranks=20).fix
    assert "scoring.workers to 16" in arithmetic(scorers=20).fix


MEASURED = Measured(
    rollout_seconds=1.6, sequences=2, sampled_tokens=16, learner_seconds=0.5, learner_tokens=200, scoring_seconds=1.0,
    scoring_tokens=400, sync_seconds=0.3,
)  # fmt: skip


def test_the_time_of_a_step_follows_from_a_few_sequences() -> None:
    found = predict_seconds(PLAN, MEASURED)
    assert found["rollout"] == pytest.approx((4.8, 19.2))
    assert found["learning"] == pytest.approx((12.0, 12.0))  # 1600 tokens, three times a forward pass
    assert found["scoring"] == pytest.approx((4.0, 4.0)) and found["weight_sync"] == (0.3, 0.3)
    assert "12–19 s in all" in check_time(PLAN, MEASURED).seen
    assert "21–36 s in all" in check_time(replace(PLAN, max_staleness=0), MEASURED).seen
    assert "rollout" not in predict_seconds(replace(PLAN, is_on_policy=False), MEASURED)
