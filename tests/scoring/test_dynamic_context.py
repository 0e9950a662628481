"""What a teacher sees once a response is there: the attempt, the verifier's word, a correct sibling."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestration.config.schema import RunConfig
from orchestration.prepare.inputs import Prepared, prepare
from orchestration.prepare.teachers import make_dynamic_context
from scoring.dynamic_context import PromptView
from tests.factories import configured
from tutelage.records.trajectory import FinishReason, Origin, RolloutRequest, Trajectory, foreign_trajectory

SAMPLES = 3
TOLD = "teacher.context='{feedback} was {attempt}, right is {sibling}'"


@pytest.fixture
def run(tmp_path: Path, tiny_tied: Path) -> tuple[RunConfig, Prepared]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Say {i}.", "answer": str(i)}) + "\n" for i in range(2)))
    config = configured(
        f"student.model={tiny_tied}", f"teacher.model={tiny_tied}", TOLD, f"data.train.path={path}",
        f"data.heldout.path={path}", "rollout.max_model_len=256", "data.verifier=exact", "pipeline.batch_size=6",
        f"sampling.samples_per_prompt={SAMPLES}",
    )  # fmt: skip
    return config, prepare(config)


def answered(prepared: Prepared, rewards: Sequence[float]) -> list[Trajectory]:
    """The samples of both prompts, "sample SLOT" each."""
    found = []
    for slot, reward in enumerate(rewards):
        item = prepared.train[slot // SAMPLES]
        ids = np.array(prepared.tokenizer(f"sample {slot}")["input_ids"], np.int32)
        request = RolloutRequest(slot, item.prompt.id, slot % SAMPLES, item.student_ids, slot, 9)
        trajectory = foreign_trajectory(request, ids, FinishReason.STOP, Origin.STUDENT)
        found.append(replace(trajectory, reward=reward))
    return found


def views(config: RunConfig, prepared: Prepared, samples: Sequence[Trajectory]) -> list[PromptView]:
    """Asked for as each sample arrives, in this order; the answers in order of slot."""

    async def ask() -> list[PromptView]:
        maker = make_dynamic_context(config, prepared)
        assert maker.wait_for_samples
        by_id = {item.prompt.id: item for item in prepared.train}
        tasks = {}
        for sample in samples:
            maker.arrived(sample)
            tasks[sample.slot] = asyncio.create_task(maker.of(sample, by_id[sample.prompt_id]))
            await asyncio.sleep(0)
        return [await tasks[slot] for slot in sorted(tasks)]

    return asyncio.run(asyncio.wait_for(ask(), 20))


def test_each_sample_is_shown_a_correct_one_of_the_others(run: tuple[RunConfig, Prepared]) -> None:
    config, prepared = run
    samples = answered(prepared, [0, 1, 1, 0, 0, 1])
    found = views(config, prepared, [samples[i] for i in (4, 0, 5, 2, 3, 1)])
    texts = [prepared.tokenizer.decode(view.prompt_ids) for view in found]
    shown = [1, 2, 1, 5, 5, None]  # of the last prompt only one is right, and it has no sibling
    for slot, (text, sibling) in enumerate(zip(texts, shown, strict=True)):
        word = "correct" if samples[slot].reward else "incorrect"
        expected = f"{word} was sample {slot}, right is sample {sibling}"
        assert (expected in text) == (sibling is not None), text
    assert [view.privileged for view in found] == [True, True, True, True, True, False]
    np.testing.assert_array_equal(found[5].prompt_ids, prepared.train[1].student_ids)


def test_a_context_that_does_not_fit_is_left_out(run: tuple[RunConfig, Prepared]) -> None:
    config, prepared = run
    long = np.resize(answered(prepared, [1])[0].response_ids, 240)
    samples = answered(prepared, [1, 1, 1])
    samples[1] = replace(samples[1], response_ids=long)
    assert [view.privileged for view in views(config, prepared, samples)] == [False, False, True]


def test_contexts_without_such_fields_are_rendered_beforehand(run: tuple[RunConfig, Prepared]) -> None:
    _, prepared = run
    config = configured("teacher.context='Be brief.'")
    maker = make_dynamic_context(config, prepared)
    (sample, *_) = answered(prepared, [0])
    view = asyncio.run(maker.of(sample, prepared.train[0]))
    assert view.prompt_ids is prepared.train[0].teacher_ids and not maker.wait_for_samples
