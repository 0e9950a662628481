"""Cells are what their file says, in every format; a file that is damaged is told of with row and cause."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollout.config import PromptSourceConfig
from rollout.data import files
from rollout.data.sources import load_prompts
from tutelage.records.prompt import Message, Prompt


def read(path: Path, **options: Any) -> list[Prompt]:
    return load_prompts(PromptSourceConfig(path=str(path), **options), "data.train")


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(path)
    for part in (f"data.train.path={path}", *parts):
        assert part in str(caught.value), str(caught.value)


def answers(path: Path) -> list[str | None]:
    return [prompt.answer for prompt in read(path)]


# ---- what the file says ----------------------------------------------------------------------------------------

WRITTEN = [
    "2024-05-01",
    "2024-05-01T10:00:00",
    "72",
    "007",
    "1e5",
    "1,000",
    "3.50",
    "None",
    "true",
    "null",
    "[1]",
    " x",
]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz"])
def test_text_stays_as_it_is_in_every_format(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{suffix}"
    rows = [{"prompt": f"{number}?", "answer": text} for number, text in enumerate(WRITTEN)]
    write(path, rows)
    assert answers(path) == WRITTEN
    assert [prompt.messages[0].content for prompt in read(path)] == [row["prompt"] for row in rows]


def write(path: Path, rows: list[dict[str, str]]) -> None:
    kind = path.name.partition(".")[2].removesuffix(".gz")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
        return
    text = io.StringIO()
    if kind == "json":
        json.dump(rows, text, indent=2)
    elif kind == "jsonl":
        text.write("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = csv.DictWriter(text, ["prompt", "answer"], delimiter="\t" if kind == "tsv" else ",")
        table.writeheader()
        table.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("72", "72"),
        ("3.5", "3.5"),
        ("72.0", "72.0"),
        ("1e3", "1e3"),
        ("-0", "-0"),
        ("12345678901234567890", "12345678901234567890"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ('"2024-05-01"', "2024-05-01"),
        ("true", "true"),
        ("null", None),
        ("[]", None),
    ],
)
def test_json_answers_are_as_they_are_written(written: str, answer: str | None, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"prompt": "a", "answer": {written}}}\n{{"prompt": "b", "answer": 0.25}}\n{{"prompt": "c"}}\n')
    assert answers(path) == [answer, "0.25", None]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"])),
            st.integers(),
            st.booleans(),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
    )
)
def test_any_list_of_scalars_is_that_many_right_answers(tmp_path: Path, values: list[Any]) -> None:
    """Each as JSON writes it, text without its quotes."""
    (tmp_path / "x.jsonl").write_text(json.dumps({"prompt": "a", "answer": values}))
    (prompt,) = read(tmp_path / "x.jsonl")
    expected = [value if isinstance(value, str) else json.dumps(value) for value in values]
    assert [prompt.answer, *prompt.further_answers] == expected


def test_lists_are_several_right_answers(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answer": ["1/2", 0.5]}\n')
    (prompt,) = read(path)
    assert (prompt.answer, prompt.further_answers) == ("1/2", ("0.5",))
    pq.write_table(pa.table({"prompt": ["a", "b"], "answer": [[1, 2], None]}), tmp_path / "rows.parquet")
    first, second = read(tmp_path / "rows.parquet")
    assert (first.answer, first.further_answers, second.answer) == ("1", ("2",), None)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([72, None, 3]), ["72", None, "3"]),
        (pa.array([72.0, None, 3.0]), ["72", None, "3"]),  # integers with gaps, as pandas writes them
        (pa.array([72.0, None, 3.5]), ["72", None, "3.5"]),
        (pa.array([12345678901234567890], pa.uint64()), ["12345678901234567890"]),
        (pa.array([Decimal("12345678901234567890.10")]), ["12345678901234567890.10"]),
        (pa.array([0.1], pa.float32()), ["0.1"]),
        (pa.array([date(2024, 5, 1)]), ["2024-05-01"]),
        (pa.array([datetime(2024, 5, 1, 10)]), ["2024-05-01 10:00:00"]),
        (pa.array([True, False]), ["true", "false"]),
        (pa.array(["7", "8", "7"]).dictionary_encode(), ["7", "8", "7"]),
        (pa.array([None, None], pa.null()), [None, None]),
        (pa.array([float("nan"), 1.5]), [None, "1.5"]),
        (pa.array([1e15]), ["1000000000000000"]),
    ],
)
def test_arrow_answers_are_as_the_file_has_them(column: pa.Array, expected: list[str | None], tmp_path: Path) -> None:
    table = pa.table({"prompt": [f"{number}?" for number in range(len(column))], "answer": column})
    pq.write_table(table, tmp_path / "rows.parquet")
    assert answers(tmp_path / "rows.parquet") == expected


def test_messages_in_arrow_are_read(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "b"}]}]
    pq.write_table(pa.Table.from_pylist(rows).slice(1), tmp_path / "rows.parquet")
    (prompt,) = read(tmp_path / "rows.parquet")
    assert prompt.messages == (Message("user", "b"),)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (pa.array([{"value": 1}]), "of type object"),
        (pa.array([b"72"]), "of type bytes"),
        (pa.array([[b"72"]]), "has an item that is of type bytes"),
        (pa.array([[{"value": 1}]]), "has an item that is of type object"),
        (pa.array([1e19]), "too large to hold all its digits"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_column(answer: pa.Array, problem: str, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "answer": answer}), tmp_path / "rows.parquet")
    refused(tmp_path / "rows.parquet", "row 0, column 'answer'", problem)


@pytest.mark.parametrize("value", ['{"value": 1}', "[[1]]", "[null]", "NaN", "[NaN]", r'"\ud800"'])
def test_what_is_no_answer_in_json_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(f'{{"prompt": "a", "answer": {value}}}\n')
    refused(tmp_path / "rows.jsonl", "row 0 (line 1), column 'answer'")


def test_a_directory_of_json_keeps_its_text_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a", "answer": "2024-05-01"}\n{"prompt": "b", "answer": 72}\n')
    (tmp_path / "test.jsonl").write_text('{"prompt": "c", "answer": 3.5}\n')
    assert answers(tmp_path) == ["2024-05-01", "72"]
    (tmp_path / "train.jsonl").write_text('{"prompt": "a"}\n{"prompt": 1}\n')
    refused(tmp_path, "train.jsonl, row 1 (line 2), column 'prompt'")


def test_csv_cells_may_hold_lists_of_messages_as_json(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a, b"}]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages", "answer"], [json.dumps(messages), ""]])
    (prompt,) = read(tmp_path / "rows.csv")
    assert prompt.messages == (Message("user", "a, b"),) and prompt.answer is None
    (tmp_path / "rows.csv").write_text("messages\nhello\n")
    refused(tmp_path / "rows.csv", "column 'messages'", "is of type text")


def test_sharegpt_is_read(tmp_path: Path) -> None:
    talk = [("system", "Be kind."), ("human", "Hi"), ("gpt", "Yes?"), ("human", "Go on"), ("gpt", "No")]
    row = {"conversations": [{"from": who, "value": text} for who, text in talk]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (prompt,) = read(tmp_path / "rows.jsonl")
    assert [message.role for message in prompt.messages] == ["system", "user", "assistant", "user"]
    assert prompt.messages[-1].content == "Go on" and prompt.completion == "No"
    row["conversations"].insert(0, {"from": "observation", "value": "4"})
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    refused(tmp_path / "rows.jsonl", "'from': 'observation'", "is no message")


# ---- damage ----------------------------------------------------------------------------------------------------

GOOD = b'{"prompt": "a"}\n'


@pytest.mark.parametrize(
    ("name", "data", "place", "cause"),
    [
        ("x.jsonl", GOOD + '{"prompt": "é"}\n'.encode("latin-1"), "line 2", "(0xe9) is not UTF-8"),
        ("x.jsonl", GOOD + b'{"prompt": "b"\n', "row 1 (line 2)", "is no JSON object on one line"),
        ("x.jsonl", GOOD + b"\n[1]\n", "row 1 (line 3)", "is no row"),
        ("x.jsonl", GOOD + b'{"prompt": "b", "prompt": "c"}', "row 1 (line 2)", "has 'prompt' more than once"),
        ("x.jsonl", GOOD + b'{"prompt": ' + b"[" * 10**5, "row 1 (line 2)", "nested too deeply"),
        ("x.jsonl", GOOD + b'{"prompt": "\\ud800"}', "row 1 (line 2), column 'prompt'", "half of a pair"),
        ("x.jsonl", '{"prompt": "a"}\n'.encode("utf-16"), "", "is in UTF-16"),
        ("x.jsonl", GOOD + b"\0" * 9, "line 2", "NUL"),
        ("x.jsonl", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "", "git-LFS pointer"),
        ("x.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "", "git-LFS pointer"),
        ("x.parquet", b"PAR1 and no more", "", "cannot be read as Parquet"),
        ("x.json", b'[{"prompt": "a"},\n {"prompt": }]', "", "line 2"),
        ("x.json", b'{\n  "prompt": "a"\n}', "row 0 (line 1)", "is no JSON object on one line"),
        ("x.csv", b"prompt,answer\na,1\nb,2,3\n", "row 1 (line 3)", "has 3 cells and the header 2"),
        ("x.csv", b"prompt,answer\na\n", "row 0 (line 2)", "has 1 cells and the header 2"),
        ("x.csv", b'prompt,answer\n"a,1\n', "row 0", "is no CSV"),
        ("x.csv", b"prompt,prompt\na,1\n", "", "has column 'prompt' more than once"),
        ("x.csv", "prompt\né\n".encode("latin-1"), "line 2", "is not UTF-8"),
        ("x.jsonl.gz", gzip.compress(GOOD * 99, mtime=0)[:-9], "line", "cannot be read"),
        ("x.jsonl.gz", gzip.compress(GOOD, mtime=0) + b"rubbish", "line 2", "cannot be read"),
    ],
)
def test_damage_is_told_with_file_row_and_cause(name: str, data: bytes, place: str, cause: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, place, cause)


def test_a_row_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_BYTES", 2**20)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(GOOD + b'{"prompt": "' + b"a" * 2**22))
    refused(tmp_path / "x.jsonl.gz", "line 2", "longer than 1 MiB")


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_part_of_the_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes("prompt,answer\r\na,é\r\n".encode("utf-8-sig"))
    (prompt,) = read(tmp_path / "x.csv")
    assert (prompt.messages[0].content, prompt.answer) == ("a", "é")


def test_a_column_that_was_named_and_is_not_there_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    with pytest.raises(ValueError, match=r"data\.train\.answer_column=solution: .*has no such column; it has 'prompt'"):
        read(tmp_path / "x.jsonl", answer_column="solution")


@pytest.mark.parametrize("make", [dict, lambda **cells: {"id": 7, **cells}])
def test_ids_are_text(make: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(make(prompt="a")))
    assert read(tmp_path / "x.jsonl")[0].id in ("0", "7")
