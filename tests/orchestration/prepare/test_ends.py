"""A student and a teacher whose turns end with different tokens of one vocabulary."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer, GenerationConfig

from orchestration.prepare.ends import ModelEnds
from orchestration.prepare.teachers import make_request_builder
from scoring.requests import TeacherRequest
from tests.factories import configured, ids, make_trajectory, prepared, refusal
from tests.models import make_tiny_model, make_tokenizer
from tutelage.records.signal import TeacherSignal
from tutelage.stops import StopClass, Swap, TurnEnds

TEXT_END, TURN_END = 0, 2


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, which ends texts: the usual student of a chat model that ends turns."""
    tokenizer = make_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = "<|endoftext|>", None
    return make_tiny_model(tmp_path_factory.mktemp("base"), tied=True, seed=3, tokenizer=tokenizer)


@pytest.fixture
def base_student(overrides: list[str], base_model: Path) -> list[str]:
    return [*overrides, f"student.model={base_model}"]


def test_a_base_student_of_a_chat_teacher_has_one_stop(base_student: list[str]) -> None:
    ends = prepared(base_student).ends
    assert ends == TurnEnds((TEXT_END, TURN_END), StopClass(kept=TURN_END, others=(TEXT_END,)))


def test_where_both_end_alike_nothing_changes(overrides: list[str]) -> None:
    assert prepared(overrides).ends == TurnEnds()
    assert prepared(overrides, "sampling.stops=both").ends == TurnEnds()
    assert prepared(overrides, "sampling.stops=teacher").ends == TurnEnds()


def test_ends_may_differ_in_the_generation_config_alone(
    overrides: list[str], tiny_untied: Path, tmp_path: Path
) -> None:
    """As of Gemma's chat models, whose tokenizers end a text as the base models' do."""
    teacher = make_tiny_model(tmp_path, tied=False, seed=1)
    GenerationConfig(eos_token_id=[TURN_END, 7]).save_pretrained(teacher)
    ends = prepared(overrides, f"teacher.model={teacher}").ends
    assert ends.stop_ids == (TURN_END, 7) and ends.merged == StopClass(TURN_END, (7,))


def test_the_other_conditions(base_student: list[str]) -> None:
    assert prepared(base_student, "sampling.stops=as_they_are").ends == TurnEnds()
    assert prepared(base_student, "sampling.stops=both").ends == TurnEnds((TEXT_END, TURN_END))
    assert prepared(base_student, "sampling.stops=teacher").ends == TurnEnds(
        swaps={"teacher": Swap(TEXT_END, TURN_END)}
    )


def test_a_teacher_that_gives_single_tokens_is_refused(base_student: list[str]) -> None:
    single = ["teacher.backend=vllm", "objective=sampled_reverse_kl", "evaluation.base_kl=never", "learner.overlap_k=0"]
    text = refusal(base_student, *single)
    assert "sampling.stops=semantic" in text and "teacher.backend=vllm" in text and "set teacher" in text
    assert prepared(base_student, *single, "sampling.stops=teacher").ends.swaps


def test_what_the_teachers_end_cannot_stand_for_is_refused(base_student: list[str], tiny_tied: Path) -> None:
    own = ["objective.sequences.on_policy_fraction=0.5", "objective.sequences.other_source=teacher", "objective=gkd"]
    assert "sampling.stops=teacher" in refusal(base_student, "sampling.stops=teacher", *own)
    reference = ["objective=reward_extrapolation", f"objective.reference.model={tiny_tied}"]
    text = refusal(base_student, "sampling.stops=teacher", *reference)
    assert "objective.reference.model ends its turns with another token" in text


def test_out_of_range_ids_of_a_generation_config_are_no_ends(base_model: Path, tmp_path: Path) -> None:
    GenerationConfig(eos_token_id=[TURN_END, 99_999]).save_pretrained(tmp_path)
    assert ModelEnds.of(AutoTokenizer.from_pretrained(base_model), str(tmp_path)).ids == {TEXT_END, TURN_END}


def test_the_class_is_asked_for_and_the_swap_is_made_and_taken_back(base_student: list[str]) -> None:
    trajectory = make_trajectory([1], [5, TEXT_END], candidate_ids=ids(5, TEXT_END, TURN_END, 7).reshape(2, 2))

    def build(stops: str) -> TeacherRequest:
        config = configured(*base_student, f"sampling.stops={stops}", "objective.k=2")
        return make_request_builder(config, prepared(base_student, f"sampling.stops={stops}")).build(
            "teacher", ids(1), trajectory
        )

    merged = build("semantic").request
    assert merged.stops == StopClass(TURN_END, (TEXT_END,)) and merged.response_ids.tolist() == [5, TEXT_END]
    swapped = build("teacher")
    asked = swapped.request
    assert asked.stops is None and asked.response_ids.tolist() == [5, TURN_END]
    assert asked.support_ids is not None and asked.support_ids.tolist() == [[5, TURN_END], [TEXT_END, 7]]
    told = TeacherSignal(
        "teacher", asked.response_ids, support_ids=asked.support_ids, top_ids=ids(TURN_END, 9)[:, None]
    )
    read = swapped.to_student_tokens(told)
    assert read.support_ids is not None and read.top_ids is not None
    assert read.support_ids.tolist() == [[5, TEXT_END], [TURN_END, 7]]
    assert read.top_ids.tolist() == [[TEXT_END], [9]]
