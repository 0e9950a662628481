"""Prompts of tasks on digits that are made here: sums in columns, numbers written backwards.

A source has `size` different problems, in an order that its seed gives; the first n of them do not depend on the size.
One in eight of all problems belongs to the split `heldout`, whatever the seed and the options, the others to `train`:
two sources of different splits have no problem in common. A sum and the one with its operands exchanged are in the
same split.

`task_options` are the fields of the task's class and of `Presentation`. A source of several kinds of problems has
`task_options.mixture` instead, a list of such options; each entry may also have a `task` (that of the source by
default) and a `weight` (1 by default). No problem is in two entries of one source.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum
from hashlib import blake2b
from itertools import islice
from typing import Any, ClassVar, Protocol

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rollout.config import PromptSourceConfig
from rollout.data.base import PromptSource, count_refusals, generated_count
from rollout.data.column_sums import ColumnSums
from tutelage.records.prompt import Message, Prompt
from tutelage.settings import ConfigError, Refusal

_SPLITS = ("train", "heldout")
_HELDOUT_SHARE = 8  # one in so many
_ROUNDS = 4


class DigitTask(Protocol):
    """A numbered set of problems; a problem is a tuple of integers."""

    name: str
    rule: str  # what the context `rule` says

    @property
    def count(self) -> int: ...
    def operands(self, index: int) -> tuple[int, ...]: ...  # the problem at 0 ≤ index < count
    def includes(self, operands: tuple[int, ...]) -> bool: ...  # whether the task's options have it
    def question(self, operands: tuple[int, ...]) -> str: ...
    def answer(self, operands: tuple[int, ...]) -> str: ...  # the right one
    def worked(self, operands: tuple[int, ...]) -> str: ...  # a whole response, with #### before its answer


@dataclass
class ReversedDigits:
    """Numbers of `digits` digits written backwards: a second task, on which the forgetting of another is measured.

    reverse 58312 ─► ####21385
    """

    name: ClassVar[str] = "reversed_digits"
    rule: ClassVar[str] = "backwards"

    digits: int = 5

    def __post_init__(self) -> None:
        if self.digits < 1:
            raise ValueError(f"digits={self.digits}: a number has digits; set 1 or more")

    @property
    def count(self) -> int:
        return 9 * 10 ** (self.digits - 1)

    def operands(self, index: int) -> tuple[int]:
        """Find the number at 0 ≤ index < count."""
        return (10 ** (self.digits - 1) + index,)

    def includes(self, operands: tuple[int, ...]) -> bool:
        return True

    def question(self, operands: tuple[int, ...]) -> str:
        return f"reverse {operands[0]}"

    def answer(self, operands: tuple[int, ...]) -> str:
        return str(operands[0])[::-1]

    def worked(self, operands: tuple[int, ...]) -> str:
        return f"####{self.answer(operands)}"


DIGIT_TASKS: dict[str, type[Any]] = {task.name: task for task in (ColumnSums, ReversedDigits)}


class Context(Enum):
    """What the teacher is told before the question."""

    none = "none"
    rule = "rule"  # the same word for every problem
    answer = "answer"  # = and the answer


@dataclass
class Presentation:
    """How a problem is put."""

    context: Context = Context.none
    visible_context: bool = False  # the student sees it too: it is a system message of the prompt


@dataclass(frozen=True)
class _MixturePart:
    key: str  # full name of the setting, for messages
    task: DigitTask
    presentation: Presentation
    weight: float


class DigitTaskSource(PromptSource):
    """The first `limit` of `size` problems with worked answers, deterministic for (seed, index).

    A prompt's `answer` is the right one also where its completion is wrong on purpose (pattern no_carry).
    """

    def refusals(self, settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
        if not settings.task:
            yield Refusal(f"{key}.task", settings.task, f"name one of {', '.join(DIGIT_TASKS)}")
        if settings.split not in _SPLITS:
            fix = f"problems are split into {' and '.join(_SPLITS)}; name one"
            yield Refusal(f"{key}.split", settings.split, fix)
        yield from count_refusals(settings, key)

    def overlaps(self, train: PromptSourceConfig, heldout: PromptSourceConfig) -> Iterator[Refusal]:
        if train.split == heldout.split and tasks_in(train) & tasks_in(heldout):
            fix = (
                "is that of data.train, so held-out problems may be training problems; use data.train.split=train and "
                "data.heldout.split=heldout"
            )
            yield Refusal("data.heldout.split", heldout.split, fix)

    def load(self, settings: PromptSourceConfig, key: str) -> list[Prompt]:
        draws = islice(_draws(settings, key), generated_count(settings))
        return [_prompt(part, operands) for part, operands in draws]


def tasks_in(source: PromptSourceConfig) -> set[str]:
    """Name the tasks that a source draws from."""
    mixture = source.task_options.get("mixture")
    entries = [entry for entry in mixture if isinstance(entry, Mapping)] if isinstance(mixture, list) else [{}]
    return {entry.get("task", source.task) for entry in entries}


def _draws(source: PromptSourceConfig, key: str) -> Iterator[tuple[_MixturePart, tuple[int, ...]]]:
    """Problems without end and without repetition; after each of them every part has its share to within one."""
    parts = _parts(source, key)
    problems = [_problems(part.task, source) for part in parts]
    used: set[tuple[str, tuple[int, ...]]] = set()
    counts = [0] * len(parts)
    while True:
        chosen = min(range(len(parts)), key=lambda index: (counts[index] + 1) / parts[index].weight)
        name = parts[chosen].task.name
        operands = next((problem for problem in problems[chosen] if (name, problem) not in used), None)
        if operands is None:
            raise ConfigError(
                Refusal(
                    f"{key}.size",
                    source.size,
                    f"{parts[chosen].key} has only {counts[chosen]} problems left to it in the "
                    f"split {source.split}; set {key}.size={len(used)} or less, or set options that have more",
                )
            )
        used.add((name, operands))
        counts[chosen] += 1
        yield parts[chosen], operands


def _problems(task: DigitTask, source: PromptSourceConfig) -> Iterator[tuple[int, ...]]:
    """All problems of the source's split, in the order of its seed."""
    for index in range(task.count):
        operands = task.operands(_shuffled(index, task.count, source.seed))
        split = _SPLITS[_hash(task.name, *sorted(operands)) % _HELDOUT_SHARE == 0]
        if split == source.split and task.includes(operands):
            yield operands


def _shuffled(index: int, count: int, seed: int) -> int:
    """Where a permutation of range(count) takes an index: a Feistel network with cycle walking.

    Black and Rogaway, Ciphers with arbitrary finite domains (2002), section 5.
    """
    half = ((count - 1).bit_length() + 1) // 2
    while True:
        left, right = divmod(index, 1 << half)
        for number in range(_ROUNDS):
            left, right = right, left ^ _hash(seed, number, right) % (1 << half)
        index = (left << half) + right
        if index < count:
            return index


def _hash(*parts: int | str) -> int:
    return int.from_bytes(blake2b(repr(parts).encode(), digest_size=8).digest(), "big")


def _prompt(part: _MixturePart, operands: tuple[int, ...]) -> Prompt:
    task, shown = part.task, part.presentation.visible_context
    context = _context(part, operands)
    question = task.question(operands)
    system = (Message("system", context),) if shown and context else ()
    return Prompt(
        id=f"{task.name}:{question}",
        messages=(*system, Message("user", question)),
        answer=task.answer(operands),
        domain=task.name,
        privileged_context=None if shown else context,
        completion=task.worked(operands),
    )


def _context(part: _MixturePart, operands: tuple[int, ...]) -> str | None:
    match part.presentation.context:
        case Context.none:
            return None
        case Context.rule:
            return part.task.rule
        case Context.answer:
            return f"={part.task.answer(operands)}"


# ---- options ---------------------------------------------------------------------------------------------------


def _parts(source: PromptSourceConfig, key: str) -> list[_MixturePart]:
    mixture = source.task_options.get("mixture")
    if mixture is None:
        return [_part(source.task, source.task_options, 1.0, f"{key}.task_options", f"{key}.task")]
    beside = ", ".join(name for name in source.task_options if name != "mixture")
    if beside:
        raise ConfigError(
            Refusal(f"{key}.task_options", beside, "stands beside mixture; set it in the entries of the mixture")
        )
    if not isinstance(mixture, list) or not mixture:
        raise ConfigError(
            Refusal(f"{key}.task_options.mixture", mixture, "nothing to draw from; give a list of entries")
        )
    parts = []
    for index, entry in enumerate(mixture):
        where = f"{key}.task_options.mixture[{index}]"
        if not isinstance(entry, Mapping):
            raise ConfigError(Refusal(where, entry, "is no set of options; give for instance {pattern: carries}"))
        options = {name: value for name, value in entry.items() if name not in ("task", "weight")}
        weight = entry.get("weight", 1.0)
        if not isinstance(weight, int | float) or weight <= 0:
            raise ConfigError(Refusal(f"{where}.weight", weight, "give a number above 0, or leave the entry out"))
        parts.append(_part(entry.get("task", source.task), options, weight, where, f"{where}.task"))
    return parts


def _part(task: str, options: Mapping[str, Any], weight: float, key: str, task_key: str) -> _MixturePart:
    if task not in DIGIT_TASKS:
        raise ConfigError(Refusal(task_key, task, f"no such task of digits; choose one of {', '.join(DIGIT_TASKS)}"))
    names = {field.name for field in fields(Presentation)}
    presentation = _typed(Presentation, {name: options[name] for name in names & options.keys()}, key)
    if presentation.visible_context and presentation.context is Context.none:
        raise ConfigError(
            Refusal(f"{key}.visible_context", True, "there is no context to show; set context=rule or answer")
        )
    own = {name: value for name, value in options.items() if name not in names}
    return _MixturePart(key, _typed(DIGIT_TASKS[task], own, key), presentation, weight)


def _typed(options_class: type[Any], options: Mapping[str, Any], key: str) -> Any:
    """An instance of the dataclass; unknown names and values of another type are refused."""
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(options_class), dict(options)))
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).partition("\n")[0]
        names = dict.fromkeys(field.name for known in (options_class, Presentation) for field in fields(known))
        raise ConfigError(Refusal(key, dict(options), f"{reason}; its options are {', '.join(names)}")) from error
