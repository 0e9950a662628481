"""Prompts from files, directories and the hub.

A row needs a prompt column (text, or a list of messages) or a messages column; if it has both, the prompt counts.
A final assistant message is the reference answer of a fine-tuning set and no part of the prompt: it is left out,
and is the prompt's completion unless the row has a completion column.
Ids are the `id` column if there is one, else the row numbers.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from rollout.config import PromptSourceConfig
from rollout.data.base import PromptSource
from tutelage.hub import explained, means_local_path
from tutelage.records.prompt import Message, Prompt
from tutelage.settings import ConfigError, Refusal

PACKAGE_PREFIX = "pkg://"
_FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_ROLES = ("system", "user", "assistant")


class DatasetSource(PromptSource):
    """The rows of a dataset, a prompt each."""

    def refusals(self, settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
        if not settings.path:
            fix = "name a Hugging Face dataset, a directory, or a JSONL or Parquet file"
            yield Refusal(f"{key}.path", settings.path, fix)

    def load(self, settings: PromptSourceConfig, key: str) -> list[Prompt]:
        columns, rows = _open_dataset(settings, key)
        _check_columns(settings, key, columns)
        prompts = [_to_prompt(index, row, settings, key) for index, row in enumerate(islice(rows, settings.limit))]
        if not prompts:
            raise ConfigError(
                Refusal(f"{key}.path", settings.path, "the dataset is empty; give one with at least one row")
            )
        _check_ids(prompts, settings, key)
        return prompts


# ---- files -----------------------------------------------------------------------------------------------------


def _open_dataset(source: PromptSourceConfig, key: str) -> tuple[Sequence[str], Iterable[Mapping[str, Any]]]:
    """Find the dataset; returns its column names and its rows."""
    from datasets import DatasetDict

    local = source.path.startswith(PACKAGE_PREFIX) or means_local_path(source.path, tuple(_FILE_FORMATS))
    dataset = _read_local(source, key) if local else _read_hub(source, key)
    if isinstance(dataset, DatasetDict):
        if source.split not in dataset:
            raise ConfigError(Refusal(f"{key}.split", source.split, f"{source.path} has only {sorted(dataset)}"))
        dataset = dataset[source.split]
    return dataset.column_names, dataset


def _read_local(source: PromptSourceConfig, key: str) -> Any:
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
        return _read_directory(path, source, key)
    if path.suffix.lower() not in _FILE_FORMATS:
        raise ConfigError(
            Refusal(
                f"{key}.path", source.path, f"unknown format {path.suffix!r}; use one of {', '.join(_FILE_FORMATS)}"
            )
        )
    if path.stat().st_size == 0:
        raise ConfigError(Refusal(f"{key}.path", source.path, "the file is empty; give one with at least one row"))
    return _load(source, key, _FILE_FORMATS[path.suffix.lower()], data_files={source.split: str(path)})


def _local_path(path: str) -> Path:
    if not path.startswith(PACKAGE_PREFIX):
        return Path(path).expanduser()
    package, _, inside = path.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        return Path(str(resources.files(package).joinpath(inside)))
    except (ModuleNotFoundError, ValueError):
        return Path(package, inside)


def _read_directory(path: Path, source: PromptSourceConfig, key: str) -> Any:
    from datasets import load_from_disk

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return load_from_disk(str(path))
    if not any(file.suffix.lower() in _FILE_FORMATS for file in path.rglob("*")):
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"the directory has neither a saved dataset nor {', '.join(_FILE_FORMATS)} files; give one that has",
            )
        )
    return _load(source, key, str(path), name=source.subset)


def _read_hub(source: PromptSourceConfig, key: str) -> Any:
    from huggingface_hub import snapshot_download

    # One quick look at a small file tells what is wrong, before `datasets` starts its rounds of retries.
    with explained(f"{key}.path", source.path, "dataset"):
        snapshot_download(source.path, repo_type="dataset", allow_patterns=["README.md"])
    return _load(source, key, source.path, name=source.subset)


def _load(source: PromptSourceConfig, key: str, path: str, **options: Any) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    try:
        return load_dataset(path, split=source.split, **options)
    # StopIteration is what the JSON reader raises for a file of blank lines.
    except (DatasetsError, OSError, ValueError, StopIteration) as error:
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"has no rows with split={source.split}, subset={source.subset}, or cannot be read: {error}",
            )
        ) from error


# ---- rows ------------------------------------------------------------------------------------------------------


def _check_columns(source: PromptSourceConfig, key: str, columns: Sequence[str]) -> None:
    if source.prompt_column not in columns and source.messages_column not in columns:
        raise ConfigError(
            Refusal(
                f"{key}.path",
                source.path,
                f"no column {source.prompt_column!r} or {source.messages_column!r}; it has "
                f"{', '.join(map(repr, columns))}: set {key}.prompt_column or {key}.messages_column to one of them",
            )
        )


def _to_prompt(index: int, row: Mapping[str, Any], source: PromptSourceConfig, key: str) -> Prompt:

    def place(column: str) -> tuple[str, str]:
        return f"{key}.path", f"{source.path}, row {index}, column {column!r}"

    column = source.prompt_column if row.get(source.prompt_column) is not None else source.messages_column
    answer = row.get(source.answer_column)
    row_id = row.get("id")
    messages, final_answer = _to_messages(row.get(column), place(column))
    completion = _to_completion(row.get(source.completion_column), place(source.completion_column))
    return Prompt(
        id=str(index if row_id is None else row_id),
        messages=messages,
        answer=None if answer is None else str(answer),
        domain=_text(row.get(source.domain_column), place(source.domain_column)) or "",
        teacher=_text(row.get(source.teacher_column), place(source.teacher_column)) or "",
        privileged_context=_text(row.get(source.context_column), place(source.context_column)),
        completion=final_answer if completion is None else completion,
        follow_ups=_to_follow_ups(row.get(source.follow_ups_column), place(source.follow_ups_column)),
    )


def _to_follow_ups(value: Any, where: tuple[str, str]) -> tuple[Message, ...]:
    """Read texts of the user, or messages of whoever speaks to the student."""
    if value is None:
        return ()
    if not isinstance(value, list):
        raise ConfigError(
            Refusal(*where, f"is of type {type(value).__name__}; give a list of texts or messages, or null")
        )
    follow_ups = [Message("user", item) if isinstance(item, str) else _to_message(item, where) for item in value]
    unasked = [message for message in follow_ups if message.role == "assistant" or not message.content.strip()]
    if unasked:
        raise ConfigError(
            Refusal(*where, f"{unasked[0]} is nothing that the student could answer; give another side's text")
        )
    return tuple(follow_ups)


def _text(value: Any, where: tuple[str, str]) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(Refusal(*where, f"is of type {type(value).__name__}; give text or null"))
    return value


def _to_completion(value: Any, where: tuple[str, str]) -> str | None:
    """Text, or a list of the one assistant message that it is."""
    if isinstance(value, list) and len(value) == 1:
        message = _to_message(value[0], where)
        value = message.content if message.role == "assistant" else value
    return _text(value, where)


def _to_messages(value: Any, where: tuple[str, str]) -> tuple[tuple[Message, ...], str | None]:
    """The prompt, and the content of a final assistant message."""
    if isinstance(value, str):
        messages = [Message("user", value)]
    elif isinstance(value, list):
        messages = [_to_message(item, where) for item in value]
    else:
        raise ConfigError(Refusal(*where, f"is of type {type(value).__name__}; give text or a list of messages"))
    answered = bool(messages) and messages[-1].role == "assistant"
    final_answer = messages.pop().content if answered else None
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise ConfigError(
            Refusal(*where, "does not end with a user message that has text; the student answers that one")
        )
    return tuple(messages), final_answer


def _to_message(item: Any, where: tuple[str, str]) -> Message:
    role, content = (item.get("role"), item.get("content")) if isinstance(item, Mapping) else (None, None)
    if role not in _ROLES or not isinstance(content, str):
        raise ConfigError(
            Refusal(
                *where,
                f"{str(item)[:80]!r} is no message; give {{'role': one of {', '.join(_ROLES)}, 'content': text}}",
            )
        )
    return Message(role, content)


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
