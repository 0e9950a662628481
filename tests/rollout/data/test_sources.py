"""Prompts from every kind of source, and one clear message for every way it can be wrong."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from rollout.config import PromptSourceConfig
from rollout.data.sources import load_prompts
from tests.rollout.data.made_up import tasks
from tutelage.records.prompt import Message

ROWS = [
    {"prompt": "One?", "answer": "1", "domain": "count", "privileged_context": "It is 1."},
    {"prompt": "Two?", "answer": "2", "domain": "count", "privileged_context": None},
]


@pytest.fixture(autouse=True)
def private_dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> PromptSourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return PromptSourceConfig(path=str(path))


def refuse(source: PromptSourceConfig, *parts: str) -> None:
    with pytest.raises(ValueError) as caught:
        load_prompts(source, "data.train")
    message = str(caught.value)
    assert message.startswith("data.train."), message
    for part in parts:
        assert part in message, message


def write_source(kind: str, directory: Path) -> PromptSourceConfig:
    dataset = Dataset.from_list(ROWS)
    path = directory / f"rows.{kind}"
    if kind == "parquet":
        dataset.to_parquet(path)
    elif kind == "saved":
        dataset.save_to_disk(path)
    elif kind == "saved splits":
        DatasetDict({"test": Dataset.from_list([{"prompt": "no"}]), "train": dataset}).save_to_disk(path)
    elif kind == "files":
        path.mkdir()
        write_jsonl(path / "train.jsonl", ROWS)
        write_jsonl(path / "test.jsonl", [{"prompt": "no"}])
    else:
        return write_jsonl(path, ROWS)
    return PromptSourceConfig(path=str(path))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "saved", "saved splits", "files"])
def test_every_format_gives_the_same_prompts(kind: str, tmp_path: Path) -> None:
    first, second = load_prompts(write_source(kind, tmp_path))
    assert (first.id, first.messages, first.answer) == ("0", (Message("user", "One?"),), "1")
    assert (first.domain, first.privileged_context) == ("count", "It is 1.")
    assert (second.id, second.answer, second.privileged_context) == ("1", "2", None)


def test_columns_have_configurable_names(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"question": "One?", "solution": 1, "topic": "a", "hint": "b"}])
    source.prompt_column, source.answer_column = "question", "solution"
    source.domain_column, source.context_column = "topic", "hint"
    (prompt,) = load_prompts(source)
    assert prompt.messages == (Message("user", "One?"),)
    assert (prompt.answer, prompt.domain, prompt.privileged_context) == ("1", "a", "b")


@pytest.mark.parametrize("column", ["messages", "prompt"])
def test_messages_without_the_reference_answer(column: str, tmp_path: Path) -> None:
    turns = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Go on"), ("assistant", "No")]
    messages = [{"role": role, "content": content} for role, content in turns]
    (prompt,) = load_prompts(write_jsonl(tmp_path / "x.jsonl", [{column: messages}]))
    assert prompt.messages == tuple(Message(role, content) for role, content in turns[:-1])
    assert prompt.completion == "No"


@pytest.mark.parametrize("completion", ["Green.", [{"role": "assistant", "content": "Green."}]])
def test_completions(completion: object, tmp_path: Path) -> None:
    (prompt,) = load_prompts(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "Colour?", "completion": completion}]))
    assert prompt.completion == "Green."
    source = write_jsonl(tmp_path / "y.jsonl", [{"prompt": "Colour?", "reply": completion}])
    (prompt,) = load_prompts(source)
    assert prompt.completion is None
    source.completion_column = "reply"
    (prompt,) = load_prompts(source)
    assert prompt.completion == "Green."


def test_a_completion_that_is_no_text_is_refused(tmp_path: Path) -> None:
    refuse(write_jsonl(tmp_path / "x.jsonl", [{"prompt": "?", "completion": 3}]), "row 0", "'completion'", "number")


def test_follow_ups_are_texts_of_the_user_or_messages(tmp_path: Path) -> None:
    rows = [
        {"prompt": "One?", "follow_ups": ["Why?", "And then?"]},
        {"prompt": "Two?", "follow_ups": None},
    ]
    first, second = load_prompts(write_jsonl(tmp_path / "rows.jsonl", rows), "data.train")
    assert first.follow_ups == (Message("user", "Why?"), Message("user", "And then?")) and second.follow_ups == ()
    rows = [{"prompt": "One?", "then": [{"role": "user", "content": "Why?"}]}]
    source = write_jsonl(tmp_path / "other.jsonl", rows)
    source.follow_ups_column = "then"
    assert load_prompts(source, "data.train")[0].follow_ups == (Message("user", "Why?"),)


@pytest.mark.parametrize(
    ("follow_ups", "problem"),
    [
        ("Why?", "is of type text"),
        ([" "], "nothing that the student could answer"),
        ([{"role": "user"}], "is no message"),
    ],
)
def test_wrong_follow_ups_are_refused(follow_ups: object, problem: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "One?", "follow_ups": follow_ups}])
    refuse(source, "row 0 (line 1), column 'follow_ups'", problem)


def test_ids_and_limit(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"id": f"row-{i}", "prompt": "?"} for i in range(5)])
    source.limit = 2
    assert [prompt.id for prompt in load_prompts(source)] == ["row-0", "row-1"]


def test_files_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    expected = load_prompts(PromptSourceConfig(path="conf/data/everyday_heldout.jsonl"))
    monkeypatch.chdir(tmp_path)
    assert load_prompts(PromptSourceConfig(path="pkg://conf/data/everyday_heldout.jsonl")) == expected
    refuse(PromptSourceConfig(path="pkg://conf/data/none.jsonl"), "pkg://conf/data/none.jsonl", "no such file")
    refuse(PromptSourceConfig(path="pkg://nowhere/none.jsonl"), "no such file")


@pytest.mark.parametrize("path", ["nowhere.jsonl", "./nowhere", "/nowhere/at/all", "conf/nowhere", "a/b.parquet"])
def test_missing_paths_never_reach_a_hub(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    refuse(PromptSourceConfig(path=path), f"data.train.path={path}", "no such file or directory")


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refuse(PromptSourceConfig(path="nobody/nothing"), "data.train.path=nobody/nothing", "the hub cannot be reached")


def test_unreadable_files(tmp_path: Path) -> None:
    refuse(PromptSourceConfig(), "data.train.path=''")
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    refuse(PromptSourceConfig(path=str(empty)), "empty.jsonl", "the file is empty")
    empty.write_text("\n\n")
    refuse(PromptSourceConfig(path=str(empty)), "the dataset is empty")
    empty.write_text('{"prompt": "x"\n')
    refuse(PromptSourceConfig(path=str(empty)), "empty.jsonl, row 0 (line 1)", "is no JSON object on one line")
    text = tmp_path / "x.txt"
    text.write_text("hello")
    refuse(PromptSourceConfig(path=str(text)), "unknown format '.txt'", ".jsonl")
    (tmp_path / "bare").mkdir()
    refuse(PromptSourceConfig(path=str(tmp_path / "bare")), "neither a saved dataset nor")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"never loaded")
    refuse(PromptSourceConfig(path=str(tmp_path / "x.pkl")), "unknown format '.pkl'")
    refuse(PromptSourceConfig(path=str(tmp_path)), "neither a saved dataset nor")


def test_unknown_splits(tmp_path: Path) -> None:
    for kind in ("saved splits", "files"):
        source = write_source(kind, tmp_path)
        source.split = "validation"
        refuse(source, "split=validation", "train")


def test_empty_dataset(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", ROWS)
    source.limit = 0
    refuse(source, "the dataset is empty")
    Dataset.from_dict({"prompt": []}).to_parquet(tmp_path / "x.parquet")
    refuse(PromptSourceConfig(path=str(tmp_path / "x.parquet")), "the dataset is empty")


def test_no_prompt_column(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "x.jsonl", [{"question": "One?", "answer": "1"}])
    refuse(source, "no column 'prompt' or 'messages'", "'question', 'answer'", "data.train.prompt_column")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": 3}, "column 'prompt': is of type number"),
        ({"messages": []}, "does not end with a user message"),
        ({"messages": [{"role": "system", "content": "x"}]}, "does not end with a user message"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "is no message"),
        ({"messages": [{"role": "user", "content": "x", "mood": "gay"}]}, "has mood, which no chat template is told"),
        ({"prompt": "x", "tools": "{"}, "column 'tools': is of type text"),
        ({"prompt": "x", "tools": {"name": "add"}}, "column 'tools': is of type object"),
        ({"prompt": "x", "chat_template_kwargs": [1]}, "column 'chat_template_kwargs': is of type list"),
        ({"messages": [{"role": "user", "content": None}]}, "is no message"),
        ({"messages": ["hello"]}, "'hello' is no message"),
        ({"prompt": "x", "domain": 3}, "column 'domain': is of type number"),
        ({"prompt": "x", "privileged_context": ["a"]}, "column 'privileged_context': is of type list"),
    ],
)
def test_wrong_values_are_named(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    refuse(write_jsonl(tmp_path / "x.jsonl", [row]), "row 0", problem)


def test_repeated_ids(tmp_path: Path) -> None:
    rows = [{"id": "a", "prompt": "x"}, {"id": "b", "prompt": "y"}, {"id": "a", "prompt": "z"}]
    refuse(write_jsonl(tmp_path / "x.jsonl", rows), "1 values of column 'id'", "'a'")


# ---- procedural tasks ----------------------------------------------------------------------------------------


def test_tasks_repeat_and_depend_on_the_seed() -> None:
    options = {"min_terms": 2, "max_terms": 2}
    first = load_prompts(tasks(task="chain_sum", size=4, seed=1, task_options=options))
    assert first == load_prompts(tasks(task="chain_sum", size=4, seed=1, task_options=options))
    other = load_prompts(tasks(task="chain_sum", size=4, seed=2, task_options=options))
    assert [prompt.messages for prompt in first] != [prompt.messages for prompt in other]
    assert first[0].metadata["entry"]["answer"] == first[0].answer
    assert first[0].metadata["entry"]["metadata"]["num_terms"] == 2
    assert len({prompt.id for prompt in first}) == 4


def test_tasks_do_not_depend_on_the_hashes_of_the_process() -> None:
    source = tasks(task="ransom_note", size=3, seed=1)
    here = load_prompts(source)
    assert [prompt.answer for prompt in here] == [prompt.metadata["entry"]["answer"] for prompt in here]
    command = (
        "from rollout.data.sources import load_prompts; from tests.rollout.data.made_up import tasks; "
        "print(load_prompts(tasks(task='ransom_note', size=3, seed=1)))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123"}
    there = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == str(here)


def test_bad_tasks() -> None:
    refuse(tasks(task="chain_summ"), "data.train.task=chain_summ", "nearest is 'chain_sum'")
    refuse(tasks(task="chain_sum", size=0), "data.train.size=0")
    refuse(tasks(task="chain_sum", task_options={"min_terms": 0}), "min_terms must be positive")
    refuse(tasks(task="chain_sum", task_options={"terms": 2}), "data.train.task_options", "'terms'")
