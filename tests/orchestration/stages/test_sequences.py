"""What a cold start keeps of the sequences, what it counts, and the batches that it makes of them."""

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from diagnostics.monitors import repetition
from orchestration.config.schema import ColdStartConfig, RunConfig
from orchestration.pipeline.progress import Cursor
from orchestration.pipeline.schedule import PromptSchedule
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.models import PreparedTeacher
from orchestration.prepare.roles import Roles
from orchestration.stages.cold_start import Epochs
from orchestration.stages.sequences import (
    NothingToLearn,
    SequenceVerdict,
    collect_once,
    load_sequences,
    sequence_verdicts,
    teacher_tokens,
    verdict_counts,
)
from rollout.grading import Grader, verifier_pool
from tests.factories import configured, ids, message
from tests.models import make_tokenizer
from tests.orchestration.pipeline.engines import Engines
from tutelage.records.prompt import Message, Prompt, RenderedPrompt
from tutelage.records.trajectory import FinishReason, Origin, RolloutRequest, Trajectory, foreign_trajectory

TOKENIZER = make_tokenizer()


def written(slot: int, *response: int, reason: FinishReason = FinishReason.STOP, prompt: int = 5) -> Trajectory:
    request = RolloutRequest(slot, f"p{prompt}", slot, ids(1, prompt), seed=0, max_tokens=64)
    return foreign_trajectory(request, ids(*response), reason, Origin.TEACHER)


def verdicts(*trajectories: Trajectory, **settings: Any) -> list[str]:
    return [verdict.value for verdict in sequence_verdicts(trajectories, ColdStartConfig(**settings))]


def test_repetition_is_the_share_of_ngrams_that_were_there_before() -> None:
    assert repetition([1, 2, 3, 4], 2) == 0
    assert repetition([7] * 11, 2) == pytest.approx(0.9)  # one of ten bigrams is new
    assert repetition([1, 2, 1, 2, 1], 2) == pytest.approx(0.5)
    assert repetition([1], 2) == 0


def test_each_fault_has_its_verdict_and_the_first_one_counts() -> None:
    wrong = replace(written(1, 8, 9), reward=0.5)
    looping = written(3, *[7, 8] * 20)
    assert verdicts(
        written(0, 8, 9, reason=FinishReason.LENGTH),
        wrong,
        replace(wrong, finish_reason=FinishReason.LENGTH),
        looping,
        replace(written(4, 5, 6), reward=1.0),
        written(5, 5, 6),
        written(6, 5, 6, prompt=9),
    ) == ["truncated", "incorrect", "truncated", "repetitive", "kept", "duplicate", "kept"]
    assert verdicts(wrong, looping, looping, only_correct=False, max_repetition=1, keep_duplicates=True) == ["kept"] * 3


def test_a_copy_of_what_was_left_out_is_no_duplicate() -> None:
    bad = replace(written(0, 8, 9), reward=0.0)
    assert verdicts(bad, written(1, 8, 9)) == ["incorrect", "kept"]


class Teacher:
    """Stands in for engines that are started when asked for."""

    def __init__(self) -> None:
        self.asked, self.engines = 0, Engines(0)

    async def get(self) -> Engines:
        self.asked += 1
        return self.engines


def prepared(count: int, answer: str = "?") -> Prepared:
    def prompt(index: int) -> RenderedPrompt:
        text = Prompt(f"p{index}", (Message("user", "?"),), answer=answer)
        return RenderedPrompt(text, ids(1, index), ids(9, 1, index), ids(*range(50, 52 + index)))

    train = tuple(prompt(index) for index in range(count))
    return Prepared(
        "student", {"teacher": PreparedTeacher("teacher", TOKENIZER)}, None, TOKENIZER, train, (), 0, Roles()
    )


def collected(run_dir: Path, others: str, teacher: Teacher, count: int = 5, **grading: Any) -> tuple[Any, list[str]]:
    config = RunConfig()
    config.objective = configured(
        "stage=cold_start", "objective=supervised", f"objective.sequences.other_source={others}"
    ).objective
    config.sampling.max_tokens, config.sampling.samples_per_prompt = 4, 2
    found, said = prepared(count, **grading), list[str]()
    with verifier_pool("exact" if grading else "none", 60) as verifier:
        grader = Grader(verifier, found.train, TOKENIZER)
        work = collect_once(config, found, cast(Any, teacher), grader, run_dir, said.append)
        return asyncio.run(work), said


def test_the_teachers_sequences_are_counted_kept_and_not_asked_for_twice(tmp_path: Path) -> None:
    teacher = Teacher()
    found, said = collected(tmp_path, "teacher", teacher)
    assert Counter(item.prompt_id for item in found) == {f"p{index}": 2 for index in range(5)}
    # The echoing engines answer with the teacher's prompt, twice for every prompt.
    assert verdict_counts(found) == {
        "sequences_kept": 5, "sequences_truncated": 0, "sequences_incorrect": 0, "sequences_repetitive": 0,
        "sequences_duplicate": 5,
    }  # fmt: skip
    assert teacher_tokens(found) == 30 and "5 kept" in said[-1] and "5 duplicate" in said[-1]
    again, _ = collected(tmp_path, "teacher", teacher)
    assert again == found == load_sequences(tmp_path) and teacher.asked == 1 and len(teacher.engines.requests) == 10


@pytest.mark.parametrize("spoil", ["flip", "cut"])
def test_collected_sequences_that_were_altered_are_not_learned_from(tmp_path: Path, spoil: str) -> None:
    collected(tmp_path, "teacher", Teacher())
    file = tmp_path / "sequences.jsonl"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if spoil == "flip" else content[: content.rindex(b"\n", 0, -1) + 1])
    with pytest.raises(NothingToLearn, match=r"sequences\.jsonl is not what was collected"):
        collected(tmp_path, "teacher", Teacher())


def test_responses_may_hold_any_end_of_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TOKENIZER, "decode", lambda *_, **__: "a\u2028b\u0085c\x1cd\r\n\x0b\u2029")
    found, _ = collected(tmp_path, "teacher", Teacher())
    assert {item.response for item in found} == {"a\u2028b\u0085c\x1cd\r\n\x0b\u2029"} and len(found) == 10


def test_the_datas_completions_need_no_engine_and_come_once_each(tmp_path: Path) -> None:
    teacher = Teacher()
    found, _ = collected(tmp_path, "dataset", teacher)
    assert teacher.asked == 0 and len(found) == 5 and teacher_tokens(found) == 0
    assert verdict_counts(found)["sequences_kept"] == 3  # of 2, 3 and 4 tokens; the longer ones were cut
    assert verdict_counts(found)["sequences_truncated"] == 2


def test_nothing_left_to_learn_stops_the_run_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(NothingToLearn, match=r"0 kept.*incorrect.*cold_start\.only_correct"):
        collected(tmp_path, "teacher", Teacher(), answer="never said")
    assert {item.verdict for item in load_sequences(tmp_path)} == {"incorrect"}


def batches(next_slot: int = 0) -> tuple[Epochs, Any]:
    prompts = {item.prompt.id: item for item in prepared(5).train}
    sequences = [
        SimpleNamespace(prompt_id=f"p{index}", sample_index=0, origin="teacher", response_ids=(50 + index, 2))
        for index in range(5)
    ]
    schedule = PromptSchedule(5, 1, seed=3, shuffle=True)
    return Epochs(cast(Any, sequences), prompts, schedule, 2, Cursor(next_slot)), prompts


def test_every_epoch_has_every_sequence_once_in_an_order_of_its_own() -> None:
    epochs, prompts = batches()
    examples = [example for _ in range(5) for example in asyncio.run(epochs.next_batch())]
    order = [int(example.trajectory.response_ids[0]) - 50 for example in examples]
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5)) and order[:5] != order[5:]
    for example in examples:
        trajectory = example.trajectory
        np.testing.assert_array_equal(trajectory.prompt_ids, prompts[trajectory.prompt_id].student_ids)
        assert example.signal is None and np.isnan(trajectory.sampling_logprobs).all() and trajectory.loss_mask.all()


def test_epochs_go_on_where_the_cursor_stands() -> None:
    whole, _ = batches()
    expected = [e.trajectory.slot for _ in range(3) for e in asyncio.run(whole.next_batch())]
    later, _ = batches(next_slot=4)
    assert [e.trajectory.slot for e in asyncio.run(later.next_batch())] == expected[4:]
    assert whole.cursor == later.cursor == Cursor(6)


def test_stages_refuse_objectives_of_another_kind() -> None:
    assert "objective=supervised" in message("stage=cold_start")
    assert "objective=supervised" in message(
        "stage=cold_start", "objective=gkd", "objective.sequences.on_policy_fraction=0"
    )
    assert "stage=cold_start" in message("objective=supervised")
    assert "cold_start.max_repetition" in message(
        "stage=cold_start", "objective=supervised", "cold_start.max_repetition=2"
    )
    assert "on_policy_fraction=0" in message(
        "stage=cold_start", "objective=supervised", "objective.sequences.on_policy_fraction=0.5"
    )


def test_verdicts_are_all_counted() -> None:
    assert set(verdict_counts([])) == {f"sequences_{verdict.value}" for verdict in SequenceVerdict}
