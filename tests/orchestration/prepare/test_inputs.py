"""What only files and models can tell, refused before anything starts."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from orchestration.prepare.inputs import prepare
from orchestration.prepare.plan import check_resources, print_plan, required_cpus
from orchestration.prepare.roles import Roles
from scoring.group import Scorer
from tests.factories import configured, prepared, refusal
from tests.models import make_tiny_model
from tutelage.settings import ConfigError


def test_a_good_configuration_is_prepared(overrides: list[str]) -> None:
    found = prepared(overrides)
    assert len(found.train) == 6 and len(found.heldout) == 3 and found.over_length == 0
    assert not found.teacher_is_initial_student


def test_the_context_reaches_the_teacher_alone(overrides: list[str], tiny_tied: Path) -> None:
    found = prepared(overrides, "teacher.context='The answer is {answer}.'")
    tokenizer = AutoTokenizer.from_pretrained(tiny_tied)
    item = found.train[3]
    assert "The answer is 6." in tokenizer.decode(item.teacher_ids)
    assert "The answer is" not in tokenizer.decode(item.student_ids)


def test_a_context_with_the_answer_needs_answers(overrides: list[str], tmp_path: Path) -> None:
    train = tmp_path / "unanswered.jsonl"
    train.write_text('{"prompt": "Why?"}\n')
    text = refusal(overrides, "teacher.context='It is {answer}.'", f"data.train.path={train}")
    assert "teacher.context" in text and "add a column 'answer'" in text


def test_a_missing_model_or_dataset_is_named(overrides: list[str]) -> None:
    assert "student.model" in refusal(overrides, "student.model=/nowhere/model")
    assert "teacher.model" in refusal(overrides, "teacher.model=/nowhere/model")
    assert "data.train.path" in refusal(overrides, "data.train.path=/nowhere/prompts.jsonl")


def test_all_that_is_wrong_with_models_is_said_at_once(overrides: list[str]) -> None:
    missing = ["teacher.model=/nowhere/model", "probe.earlier_teacher=/nowhere/earlier"]
    lines = refusal(overrides, *missing, "learner.overlap_k=100000", "rollout.max_model_len=100000").splitlines()
    keys = [line.partition("=")[0] for line in lines]
    assert keys == ["teacher.model", "probe.earlier_teacher", "learner.overlap_k", "rollout.max_model_len"]


def test_all_that_is_wrong_with_prompts_is_said_at_once(overrides: list[str]) -> None:
    missing = ["data.train.path=/nowhere/a.jsonl", "data.heldout.path=/nowhere/b.jsonl"]
    assert [line.partition("=")[0] for line in refusal(overrides, *missing).splitlines()] == [
        "data.train.path", "data.heldout.path",
    ]  # fmt: skip
    gate = ["objective.gate.only_with_context=true", "rollout.max_model_len=50"]
    lines = refusal(overrides, *gate, "data.over_length=refuse").splitlines()
    assert [line.partition("=")[0] for line in lines] == [
        "rollout.max_model_len", "rollout.max_model_len", "objective.gate.only_with_context",
    ]  # fmt: skip


def test_an_empty_dataset_and_one_without_prompts_are_named(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    assert "data.heldout" in refusal(overrides, f"data.heldout.path={tmp_path}/empty.jsonl")
    (tmp_path / "other.jsonl").write_text('{"question": "why"}\n')
    text = refusal(overrides, f"data.train.path={tmp_path}/other.jsonl")
    assert "question" in text and "data.train.prompt_column" in text


def test_a_teacher_without_anything_new_is_refused(overrides: list[str], tiny_tied: Path) -> None:
    text = refusal(overrides, f"teacher.model={tiny_tied}")
    assert "teacher.context" in text and "nothing to learn" in text
    assert prepared(overrides, f"teacher.model={tiny_tied}", "teacher.context=Be brief.").teacher_is_initial_student


def test_text_that_becomes_a_token_for_pictures_is_refused(overrides: list[str], tmp_path: Path) -> None:
    path = make_tiny_model(tmp_path / "model", tied=True, seed=3)
    AutoTokenizer.from_pretrained(path, extra_special_tokens={"image_token": "<image>"}).save_pretrained(path)
    (tmp_path / "train.jsonl").write_text('{"prompt": "one"}\n{"prompt": "look: <image>", "id": "seen"}\n')
    same = [f"student.model={path}", f"teacher.model={path}", "teacher.context=hint"]
    text = refusal(overrides, *same, f"data.train.path={tmp_path}/train.jsonl")
    assert text.startswith("data.train=prompt 'seen': its text becomes id 576, for which the model has no embedding")


def test_a_hostile_template_is_refused_before_anything_starts(overrides: list[str], tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", tied=True, seed=5)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = "{{ 'A' * 2000000000 }}"
    tokenizer.save_pretrained(other)
    text = refusal(overrides, f"student.model={other}")
    assert text.startswith("student.model=") and "prompt '0'" in text and "MemoryError" in text
    assert refusal(overrides, f"teacher.model={other}").startswith("teacher.model=")


def test_a_context_that_waits_for_a_response_must_be_one_that_the_template_shows(
    overrides: list[str], tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", tied=True, seed=5)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(other)
    prepared(overrides, f"teacher.model={other}")
    text = refusal(overrides, f"teacher.model={other}", "teacher.context='You said {attempt}.'")
    assert text.startswith("teacher.model=") and "does not show message 1 (system)" in text


def test_rows_and_settings_reach_the_template(overrides: list[str], tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", tied=True, seed=5)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = (
        "{{ strftime_now('%Y') }}{{ mood }}{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(model)
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "hi", "tools": [{"name": "add"}], "chat_template_kwargs": {"mood": "gay"}}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"prompt": "ho"}) + "\n")
    both = [
        f"student.model={model}",
        f"teacher.model={model}",
        f"data.train.path={path}",
        "data.template_time=1999-05-01",
    ]
    first, second = prepared(
        overrides, *both, "+student.chat_template_kwargs={mood: sad}", "+teacher.chat_template_kwargs={mood: mad}",
        "teacher.context='Be brief.'",
    ).train  # fmt: skip
    assert tokenizer.decode(first.student_ids) == '1999gay[{"name": "add"}]hi'
    assert tokenizer.decode(second.student_ids) == "1999sadnullho"
    assert tokenizer.decode(second.teacher_ids) == "1999madnullBe brief.ho"
    text = refusal(overrides, *both, "teacher.context='Be brief.'", "+teacher.chat_template_kwargs={modo: mad}")
    assert text.startswith("teacher.chat_template_kwargs.modo=mad")
    assert "data.template_time=noon" in refusal(overrides, "data.template_time=noon")


def test_over_long_prompts_are_dropped_with_a_count_or_refused_never_cut(overrides: list[str], prompts: Path) -> None:
    long = {"prompt": "far " * 300}
    prompts.write_text(prompts.read_text() + json.dumps(long) + "\n")
    found = prepared(overrides)
    assert len(found.train) == 6 and found.over_length == 1
    text = refusal(overrides, "data.over_length=refuse")
    assert "rollout.max_model_len=256" in text and "data.over_length=drop" in text


def test_blank_prompts_are_refused_or_dropped_with_a_count(overrides: list[str], prompts: Path) -> None:
    prompts.write_text(prompts.read_text() + json.dumps({"prompt": " "}) + "\n")
    text = refusal(overrides)
    assert "data.blank_prompts=refuse" in text and "first: row '6'" in text and str(prompts) in text
    found = prepared(overrides, "data.blank_prompts=drop")
    assert len(found.train) == 6 and found.blank == 2  # both splits are this file


def test_a_share_of_the_training_prompts_is_held_out(
    overrides: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    share = [*overrides, "data.heldout.share=0.3", "data.heldout.path="]
    found = prepared(share)
    assert len(found.train) == 4 and len(found.heldout) == 2
    assert not {item.prompt.id for item in found.train} & {item.prompt.id for item in found.heldout}
    print_plan(configured(*share), found, tmp_path)
    assert "none of 2 is a training prompt" in capsys.readouterr().out
    assert "data.heldout.path=''" in refusal(overrides, "data.heldout.share=0.3")


def test_the_plan_tells_of_held_out_prompts_that_are_trained_on(
    overrides: list[str], prompts: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    same = [*overrides, f"data.heldout.path={prompts}"]
    print_plan(configured(*same), prepared(same), tmp_path)
    assert "are training prompts" in " ".join(capsys.readouterr().out.split())


def test_a_context_longer_than_the_model_is_refused(overrides: list[str]) -> None:
    assert "rollout.max_model_len" in refusal(overrides, "rollout.max_model_len=100000")


def test_special_tokens_and_contexts_are_known(overrides: list[str]) -> None:
    found = prepared(overrides)
    assert found.special_ids == {0, 1, 2}
    assert not any(item.has_context for item in found.train)
    assert all(item.has_context for item in prepared(overrides, "teacher.context=Be brief.").train)


FROM_DATA = ("objective=gkd", "objective.sequences.on_policy_fraction=0.5", "objective.sequences.other_source=dataset")


def test_completions_are_rendered_where_they_are_learned_from(overrides: list[str]) -> None:
    assert all(item.completion_ids is None for item in prepared(overrides).train)
    found = prepared(overrides, *FROM_DATA, "data.train.completion_column=answer")
    texts = [found.tokenizer.decode(item.completion_ids) for item in found.train]
    assert texts == [f"{2 * i}<|im_end|>" for i in range(6)]
    assert all(item.completion_ids is None for item in found.heldout)


def test_learning_from_data_without_completions_is_refused(overrides: list[str]) -> None:
    text = refusal(overrides, *FROM_DATA)
    assert "objective.sequences.other_source=dataset" in text and "data.train.completion_column=completion" in text


EXTRAPOLATION = "objective=reward_extrapolation"


def test_the_reference_is_found(overrides: list[str], tiny_tied: Path, tiny_untied: Path) -> None:
    assert prepared(overrides).reference_path is None
    for model, path in (("student", tiny_tied), (tiny_untied, tiny_untied)):
        found = prepared(overrides, EXTRAPOLATION, f"objective.reference.model={model}")
        assert found.reference_path == str(path)
    text = refusal(overrides, EXTRAPOLATION, "objective.reference.model=/nowhere/model")
    assert "objective.reference.model" in text


def test_a_reference_of_another_tokenizer_is_refused(overrides: list[str], tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", tied=True)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(other)
    text = refusal(overrides, EXTRAPOLATION, f"objective.reference.model={other}")
    assert "objective.reference.model" in text and "<|new|>" in text


def test_further_teachers_of_the_alignment_are_checked_where_it_is_measured(
    overrides: list[str], tiny_tied: Path, tmp_path: Path
) -> None:
    other = make_tiny_model(tmp_path / "other", tied=True)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<|new|>"])
    tokenizer.save_pretrained(other)
    measured, further = "alignment.enabled=true", f"alignment.teachers=[{{model: {other}}}]"
    text = refusal([*overrides, "data.verifier=exact"], measured, further)
    assert "alignment.teachers" in text and "<|new|>" in text
    prepared(overrides, further)
    prepared([*overrides, "data.verifier=exact"], measured, f"alignment.teachers=[{{model: {tiny_tied}}}]")


def test_workers_are_counted_with_those_of_the_objective(
    overrides: list[str], tiny_tied: Path, tiny_untied: Path
) -> None:
    def cpus(*changes: str) -> float:
        config = configured(*overrides, *changes)
        return required_cpus(config, prepare(config).roles)

    plain = cpus()
    assert cpus("objective=gkd", "objective.sequences.on_policy_fraction=0.5") == plain + 1
    student, other_spelling = "objective.reference.model=student", f"objective.reference.model={tiny_tied}/."
    assert cpus(EXTRAPOLATION, student) == cpus(EXTRAPOLATION, other_spelling) == plain + 0.5
    assert cpus(EXTRAPOLATION, f"objective.reference.model={tiny_untied}") == plain
    assert cpus(EXTRAPOLATION, f"objective.reference.model={tiny_untied}/../{tiny_untied.name}") == plain


def test_a_model_that_would_be_computed_wrongly_is_refused(overrides: list[str], tmp_path: Path) -> None:
    recurrent = make_tiny_model(tmp_path / "recurrent", tied=True)
    settings = json.loads((recurrent / "config.json").read_text()) | {"layer_types": ["linear_attention"] * 2}
    (recurrent / "config.json").write_text(json.dumps(settings))
    assert "linear_attention" in refusal(overrides, f"student.model={recurrent}")


@pytest.mark.parametrize(
    ("kind", "architecture"), [("t5", "T5ForConditionalGeneration"), ("qwen2_vl", "Qwen2VLForConditionalGeneration")]
)
def test_a_model_of_more_than_text_is_no_text_teacher(
    kind: str, architecture: str, overrides: list[str], tiny_untied: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_untied, tmp_path / kind)
    settings = {"model_type": kind, "architectures": [architecture], "vocab_size": 600}
    (tmp_path / kind / "config.json").write_text(json.dumps(settings))
    text = refusal(overrides, f"teacher.model={tmp_path / kind}")
    assert text.startswith("teacher.model=") and f"is a {architecture}" in text and "causal language model" in text


def test_more_workers_than_the_cluster_has_are_refused() -> None:
    config = configured("rollout.workers=3")
    with pytest.raises(ConfigError, match=r"rollout\.workers=3: the workers ask for 4 CPUs and the cluster has 2;"):
        check_resources(config, Roles({"teacher": Scorer("scoring", "path", config.teacher)}), 2, 0)
    check_resources(config, Roles(), 4, 0)


@pytest.mark.parametrize("kind", ["LlamaForSequenceClassification", "LlamaModel"])
def test_a_teacher_without_an_lm_head_is_refused(overrides: list[str], tmp_path: Path, kind: str) -> None:
    headless = make_tiny_model(tmp_path / "headless", tied=False)
    settings = json.loads((headless / "config.json").read_text()) | {"architectures": [kind]}
    (headless / "config.json").write_text(json.dumps(settings))
    text = refusal(overrides, f"teacher.model={headless}", "objective=full_reverse_kl")
    assert kind in text and "no LM head" in text


def test_a_support_larger_than_the_vocabulary_is_refused(overrides: list[str]) -> None:
    assert "objective.k=100000" in refusal(overrides, "objective.k=100000")
    forward = "objective.further_terms.forward.k"
    assert f"{forward}=100000" in refusal(overrides, "objective=entropy_aware", f"{forward}=100000")


def test_an_overlap_larger_than_the_vocabulary_is_refused(overrides: list[str]) -> None:
    text = refusal(overrides, "learner.overlap_k=100000")
    assert "learner.overlap_k=100000" in text and "has only 576 tokens; lower it, or set 0" in text


def test_a_gate_that_never_opens_is_refused(overrides: list[str]) -> None:
    assert "teacher.context" in refusal(overrides, "objective.gate.only_with_context=true")
    prepared(overrides, "objective.gate.only_with_context=true", "teacher.context=Be brief.")
    waiting = "teacher.context='You said {attempt}.'"  # the prompts alone do not have it
    prepared(overrides, "objective.gate.only_with_context=true", waiting)


def test_a_template_of_the_teachers_own_tells_it_nothing_more(overrides: list[str], tmp_path: Path) -> None:
    other = make_tiny_model(tmp_path / "other", tied=True, seed=5)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(other)
    item = prepared(overrides, f"teacher.model={other}").train[0]
    assert item.teacher_ids.tolist() != item.student_ids.tolist() and not item.has_context


def test_conversations_are_rendered_and_must_fit_as_a_whole(overrides: list[str], prompts: Path) -> None:
    rows = [{"prompt": "one", "follow_ups": ["two", "three"] if i else None} for i in range(3)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    short = ["sampling.max_tokens=40", "evaluation.max_tokens=40"]
    single, conversation, _ = prepared(overrides, *short).train
    assert single.follow_ups == single.teacher_follow_ups == ()
    assert [(f.role, f.text) for f in conversation.follow_ups] == [("user", "two"), ("user", "three")]
    for follow_up, ids in zip(conversation.follow_ups, conversation.teacher_follow_ups, strict=True):
        assert follow_up.ids.tolist() == ids.ids.tolist()
    needed = len(conversation.student_ids) + 3 * 40 + sum(len(f.ids) for f in conversation.follow_ups)
    assert prepared(overrides, *short, f"rollout.max_model_len={needed}").over_length == 0
    dropped = prepared(overrides, *short, f"rollout.max_model_len={needed - 1}")
    assert dropped.over_length == 4 and [item.prompt.follow_ups for item in dropped.train] == [()]
