"""Prompts from files, directories and the hub.

A row needs a prompt column (text, or a list of messages) or a messages column; if it has both, the prompt counts.
A final assistant message is the reference answer of a fine-tuning set and no part of the prompt: it is left out,
and is the prompt's completion unless the row has a completion column.
Ids are the `id` column if there is one, else the row numbers. Messages may be those of ShareGPT: lists of `from` and
`value`, in a column `conversations` where there is no other.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from rollout.config import PromptSourceConfig
from rollout.data.base import PromptSource
from rollout.data.files import COMPRESSED, FORMATS, FileFault, Literal, Row, arrow_rows, format_of, read_rows
from tutelage.hub import explained, means_local_path
from tutelage.records.prompt import Message, Prompt
from tutelage.settings import ConfigError, Refusal

PACKAGE_PREFIX = "pkg://"
_ROLES = ("system", "developer", "user", "assistant", "tool")
_ASK = ("user", "tool")  # whom the student answers
_MORE = ("tool_calls", "reasoning_content", "name", "tool_call_id")  # of messages, for chat templates
_SHAREGPT = "conversations"
_SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class DatasetSource(PromptSource):
    """The rows of a dataset, a prompt each."""

    def refusals(self, settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
        if not settings.path:
            fix = "name a Hugging Face dataset, a directory, or a JSONL, JSON, CSV, TSV or Parquet file"
            yield Refusal(f"{key}.path", settings.path, fix)

    def load(self, settings: PromptSourceConfig, key: str) -> list[Prompt]:
        prompts: list[Prompt] = []
        columns: dict[str, None] = {}
        try:
            for index, row in enumerate(islice(_rows(settings, key), settings.limit)):
                if not index:
                    settings = _with_messages_column(settings, key, row.cells)
                columns |= dict.fromkeys(row.cells)
                prompts.append(_to_prompt(index, row, settings, key))
        except FileFault as fault:
            where = ", ".join(filter(None, (settings.path, fault.place)))
            raise ConfigError(Refusal(f"{key}.path", where, fault.cause)) from fault
        if not prompts:
            raise ConfigError(
                Refusal(f"{key}.path", settings.path, "the dataset is empty; give one with at least one row")
            )
        _check_columns(settings, key, list(columns))
        _check_ids(prompts, settings, key)
        return prompts


# ---- files -----------------------------------------------------------------------------------------------------


def _rows(source: PromptSourceConfig, key: str) -> Iterator[Row]:
    """Find the dataset and read it row by row."""
    if not (source.path.startswith(PACKAGE_PREFIX) or means_local_path(source.path, (*FORMATS, COMPRESSED))):
        from huggingface_hub import snapshot_download

        # One quick look at a small file tells what is wrong, before `datasets` starts its rounds of retries.
        with explained(f"{key}.path", source.path, "dataset"):
            snapshot_download(source.path, repo_type="dataset", allow_patterns=["README.md"])
        return _collection(source.path, source, key)
    path = _local_path(source.path)
    if not path.exists():
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"no such file or directory; paths are relative to {Path.cwd()}, "
                "and a hub dataset is called name or owner/name",
            )
        )
    if path.is_dir():
        return _directory(path, source, key)
    if format_of(path.name) is None:
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"unknown format {''.join(path.suffixes)!r}; use one of {', '.join(FORMATS)}, and all but .parquet may "
                f"be compressed ({COMPRESSED})",
            )
        )
    if path.stat().st_size == 0:
        raise ConfigError(Refusal(f"{key}.path", source.path, "the file is empty; give one with at least one row"))
    return read_rows(path, path.name)


def _local_path(path: str) -> Path:
    if not path.startswith(PACKAGE_PREFIX):
        return Path(path).expanduser()
    package, _, inside = path.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        return Path(str(resources.files(package).joinpath(inside)))
    except (ModuleNotFoundError, ValueError):
        return Path(package, inside)


def _directory(path: Path, source: PromptSourceConfig, key: str) -> Iterator[Row]:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _saved(path, source, key)
    if not any(format_of(file.name) for file in path.rglob("*")):
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"the directory has neither a saved dataset nor {', '.join(FORMATS)} files; give one that has",
            )
        )
    return _collection(str(path), source, key)


def _saved(path: Path, source: PromptSourceConfig, key: str) -> Iterator[Row]:
    from datasets import DatasetDict, load_from_disk

    with _datasets_errors(source, key):
        dataset = load_from_disk(str(path))
        if isinstance(dataset, DatasetDict):
            if source.split not in dataset:
                raise ConfigError(Refusal(f"{key}.split", source.split, f"{source.path} has only {sorted(dataset)}"))
            dataset = dataset[source.split]
        return arrow_rows(dataset.with_format("arrow").iter(batch_size=1024))


def _collection(path: str, source: PromptSourceConfig, key: str) -> Iterator[Row]:
    """Rows of a directory or a hub repository, whose files `datasets` sorts into splits.

    Its readers of text turn dates and numbers into what they take them for, so those files are read here.
    """
    from datasets import DownloadManager, load_dataset, load_dataset_builder

    with _datasets_errors(source, key):
        builder = load_dataset_builder(path, name=source.subset)
        files = builder.config.data_files or {}
        if builder.name not in ("json", "csv"):
            dataset = load_dataset(path, name=source.subset, split=source.split)
            return arrow_rows(dataset.with_format("arrow").iter(batch_size=1024))
        if source.split not in files:
            fix = f"{source.path} has only {sorted(files)}; a part of one is had by {key}.limit"
            raise ConfigError(Refusal(f"{key}.split", source.split, fix))
        download = DownloadManager().download
        return _in_turn([(str(name), Path(download(str(name)))) for name in files[source.split]])


def _in_turn(files: Sequence[tuple[str, Path]]) -> Iterator[Row]:
    for name, path in files:
        try:
            yield from (Row(f"{Path(name).name}, {row.place}", row.cells) for row in read_rows(path, Path(name).name))
        except FileFault as fault:
            raise FileFault(", ".join(filter(None, (Path(name).name, fault.place))), fault.cause) from fault


@contextmanager
def _datasets_errors(source: PromptSourceConfig, key: str) -> Iterator[None]:
    """Turn what `datasets` raises of a collection into one message."""
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ConfigError:
        raise
    except (DatasetsError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"has no rows with split={source.split}, subset={source.subset}, or cannot be read: {error}",
            )
        ) from error


# ---- rows ------------------------------------------------------------------------------------------------------


def _with_messages_column(source: PromptSourceConfig, key: str, columns: Iterable[str]) -> PromptSourceConfig:
    """The settings for a dataset that has these columns.

    Raises:
        ConfigError: it has neither prompts nor messages.
    """
    if source.prompt_column in columns or source.messages_column in columns:
        return source
    if _SHAREGPT in columns and source.messages_column == PromptSourceConfig.messages_column:
        return replace(source, messages_column=_SHAREGPT)
    raise ConfigError(
        Refusal(
            f"{key}.path",
            source.path,
            f"no column {source.prompt_column!r} or {source.messages_column!r}; it has "
            f"{', '.join(map(repr, columns))}: set {key}.prompt_column or {key}.messages_column to one of them",
        )
    )


def _check_columns(source: PromptSourceConfig, key: str, columns: Sequence[str]) -> None:
    """Refuse columns that were named and that no row has."""
    named = {item.name: getattr(source, item.name) for item in fields(source) if item.name.endswith("_column")}
    refusals = [
        Refusal(f"{key}.{name}", column, f"{source.path} has no such column; it has {', '.join(map(repr, columns))}")
        for name, column in named.items()
        if column not in (*columns, getattr(PromptSourceConfig, name), _SHAREGPT)
    ]
    if refusals:
        raise ConfigError(*refusals)


def _to_prompt(index: int, row: Row, source: PromptSourceConfig, key: str) -> Prompt:
    cells, row_id = row.cells, row.cells.get("id")

    def place(column: str) -> tuple[str, str]:
        return f"{key}.path", f"{source.path}, {row.place}, column {column!r}"

    column = source.prompt_column if cells.get(source.prompt_column) is not None else source.messages_column
    answer = cells.get(source.answer_column)
    right = answer if isinstance(answer, list) else [] if answer is None else [answer]
    answers = [_to_answer(item, place(source.answer_column), inside=right is answer) for item in right]
    messages, final_answer = _to_messages(cells.get(column), place(column), column == source.messages_column)
    completion = _to_completion(cells.get(source.completion_column), place(source.completion_column)) or final_answer
    tools = _structure(cells.get(source.tools_column), list, place(source.tools_column)) or ()
    if not all(isinstance(tool, dict) for tool in tools):
        raise ConfigError(Refusal(*place(source.tools_column), "give a list of JSON schemas, one for each tool"))
    kwargs = _structure(cells.get(source.template_kwargs_column), dict, place(source.template_kwargs_column))
    return Prompt(
        id=(row_id.text if isinstance(row_id, Literal) else _text(row_id, place("id"))) or str(index),
        messages=messages,
        answer=answers[0] if answers else None,
        further_answers=tuple(answers[1:]),
        domain=_text(cells.get(source.domain_column), place(source.domain_column)) or "",
        teacher=_text(cells.get(source.teacher_column), place(source.teacher_column)) or "",
        privileged_context=_text(cells.get(source.context_column), place(source.context_column)),
        completion=None if completion is None else completion.content,
        completion_more={} if completion is None else completion.more,
        follow_ups=_to_follow_ups(cells.get(source.follow_ups_column), place(source.follow_ups_column)),
        tools=tuple(tools),
        template_kwargs=kwargs or {},
    )


def _structure(value: Any, kind: type, where: tuple[str, str]) -> Any:
    """Read a list or an object, or its JSON."""
    value = _decoded(value)
    if value is not None and not isinstance(value, kind):
        raise ConfigError(Refusal(*where, f"is of type {_kind(value)}; give a {kind.__name__}, its JSON, or null"))
    return _plain(value)


def _plain(value: Any) -> Any:
    """Structured cells for chat templates: numbers as such, and without what is null only since other rows have it."""
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return _decoded(value.text) if isinstance(value, Literal) else value


def _kind(value: Any) -> str:
    """What a value is called in messages."""
    if isinstance(value, Literal):
        return value.kind
    names = {dict: "object", list: "list", bytes: "bytes", bool: "boolean", str: "text", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def _to_answer(value: Any, where: tuple[str, str], inside: bool) -> str:
    """A right answer as it is written in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value, where) or ""
    if isinstance(value, Literal) and not value.exact:
        fix = f"{value.text} is a {value.kind} too large to hold all its digits; write answers as text"
        raise ConfigError(Refusal(*where, fix))
    if isinstance(value, Literal) and value.text != "NaN":
        return value.text
    kind = _kind(value) if not isinstance(value, Literal) else value.text
    fix = f"{'has an item that is' if inside else 'is'} of type {kind}; give text, a number, or a list of right answers"
    raise ConfigError(Refusal(*where, fix))


def _to_follow_ups(value: Any, where: tuple[str, str]) -> tuple[Message, ...]:
    """Read texts of the user, or messages of whoever speaks to the student."""
    value = _decoded(value)
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConfigError(Refusal(*where, f"is of type {_kind(value)}; give a list of texts or messages, or null"))
    follow_ups = [Message("user", item) if isinstance(item, str) else _to_message(item, where) for item in value]
    unasked = [message for message in follow_ups if message.role == "assistant" or not message.content.strip()]
    if unasked:
        raise ConfigError(
            Refusal(*where, f"{unasked[0]} is nothing that the student could answer; give another side's text")
        )
    return tuple(follow_ups)


def _text(value: Any, where: tuple[str, str]) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ConfigError(Refusal(*where, f"is of type {_kind(value)}; give text or null"))
    try:
        value.encode()
    except UnicodeEncodeError as error:
        fix = f"character {error.start + 1} is half of a pair (\\u{ord(value[error.start]):x}) and no text; mend it"
        raise ConfigError(Refusal(*where, fix)) from error
    return value


def _decoded(value: Any) -> Any:
    """What a cell of text holds, where a format without lists has one written as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _to_completion(value: Any, where: tuple[str, str]) -> Message | None:
    """Text, or a list of the one assistant message that it is."""
    if isinstance(value, list) and len(value) == 1:
        message = _to_message(value[0], where)
        if message.role == "assistant":
            return message
    text = _text(value, where)
    return None if text is None else Message("assistant", text)


def _to_messages(value: Any, where: tuple[str, str], of_messages: bool) -> tuple[tuple[Message, ...], Message | None]:
    """The prompt, and a final assistant message. A prompt may be blank: the run decides about it.

    Args:
        of_messages: the column is one of messages, where text is JSON.
    """
    value = _decoded(value) if of_messages else value
    if value is None:
        messages = [Message("user", "")]
    elif isinstance(value, str) and not of_messages:
        messages = [Message("user", _text(value, where) or "")]
    elif isinstance(value, list):
        messages = [_to_message(item, where) for item in value]
    else:
        fix = f"is of type {_kind(value)}; give {'a' if of_messages else 'text or a'} list of messages"
        raise ConfigError(Refusal(*where, fix))
    answered = bool(messages) and messages[-1].role == "assistant"
    final_answer = messages.pop() if answered else None
    if not messages or messages[-1].role not in _ASK:
        raise ConfigError(Refusal(*where, "does not end with a user message; the student answers that one"))
    return tuple(messages), final_answer


def _to_message(item: Any, where: tuple[str, str]) -> Message:
    given = {name: value for name, value in item.items() if value is not None} if isinstance(item, Mapping) else {}
    if "from" in given and "role" not in given:
        given |= {"role": _SHAREGPT_ROLES.get(str(given.pop("from"))), "content": given.pop("value", None)}
    content = given.get("content", "" if given.get("tool_calls") else None)
    if given.get("role") not in _ROLES or not isinstance(content, str):
        raise ConfigError(
            Refusal(
                *where,
                f"{str(item)[:80]!r} is no message; give {{'role': one of {', '.join(_ROLES)}, 'content': text}}, or "
                f"{{'from': one of {', '.join(_SHAREGPT_ROLES)}, 'value': text}}",
            )
        )
    unknown = sorted(given.keys() - {"role", "content", *_MORE})
    if unknown:
        fix = f"a message has {', '.join(unknown)}, which no chat template is told; leave it out, or use "
        raise ConfigError(Refusal(*where, fix + ", ".join(_MORE)))
    more = {name: _plain(given[name]) for name in _MORE if name in given}
    return Message(given["role"], _text(content, where) or "", more)


def _check_ids(prompts: Sequence[Prompt], source: PromptSourceConfig, key: str) -> None:
    repeated = [identifier for identifier, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if repeated:
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"{len(repeated)} values of column 'id' occur more than once "
                f"(first: {repeated[0]!r}); make them unique, or leave the column out",
            )
        )
