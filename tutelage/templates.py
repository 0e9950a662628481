"""Chat templates, rendered in a process of their own: they come with models, and may loop, grow or ask for the time.

A template is a program. What it is given travels to the process, what it makes travels back; it runs in the sandbox of
transformers, with a limit on its own length, on its time and memory, and on the length of what it makes. The clock that
it sees is the run's (`data.template_time`), and its dice are always thrown alike, so that a prompt is the same tokens
whenever it is rendered.
"""

import atexit
import json
import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from jinja2 import TemplateError, meta
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from tutelage.processes import GuardedPool, Overrun

T = TypeVar("T")
Message = Mapping[str, Any]  # as templates read it
LONGEST_TEMPLATE = 2**18  # characters; the longest of published models has some 2**15
SECONDS = 10.0  # of the conversations that travel together, and of one alone
_TOGETHER = 256  # conversations that travel to the process at once
_MOST_ADDED = 2**17  # characters that a template may make of nothing
_GROWTH = 8  # characters that it may make of one
_MEMORY_GIB = 1.0
# What a template's own code raises; anything else is a mistake of ours.
_FAULTS = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Writing:
    """One conversation, to be written by one template."""

    template: str
    messages: Sequence[Message]
    time: str  # in ISO 8601, for `strftime_now`
    tools: Sequence[Mapping[str, Any]] = ()
    tokens: Mapping[str, Any] = field(default_factory=dict)  # special tokens, by the names that templates know
    variables: Mapping[str, Any] = field(default_factory=dict)  # whatever else it is told
    opens_answer: bool = True  # with the generation prompt


class Unrenderable(ValueError):
    """What a template raised, or the limit that it ran into."""


def render(jobs: Sequence[Writing]) -> list[str | Unrenderable]:
    """Write conversations, each by its template; what cannot be written is told in its place.

    Behind one that overruns its limits no other is tried: a template that hangs once may hang always.
    """
    written: list[str | Unrenderable] = []
    together = _TOGETHER
    while len(written) < len(jobs):
        batch = list(jobs[len(written) : len(written) + together])
        try:
            written += _processes().call(_render, batch, deadline=SECONDS)
        except Overrun as overrun:
            if together == 1:
                return written + [Unrenderable(f"{overrun}, the limit of a chat template")] * (len(jobs) - len(written))
            together = 1  # to find out which
    return written


def run_together(writers: Sequence[Generator[list[Writing], list[str | Unrenderable], T]]) -> list[T]:
    """Run functions that ask for renderings, all of them side by side, so that what they ask for travels together."""
    results: dict[int, T] = {}
    answers: dict[int, list[str | Unrenderable] | None] = dict.fromkeys(range(len(writers)))
    while answers:
        asked: dict[int, list[Writing]] = {}
        for index, answer in answers.items():
            try:
                asked[index] = next(writers[index]) if answer is None else writers[index].send(answer)
            except StopIteration as end:
                results[index] = end.value
        written = iter(render([job for jobs in asked.values() for job in jobs]))
        answers = {index: [next(written) for _ in jobs] for index, jobs in asked.items()}
    return [results[index] for index in range(len(writers))]


def variables_of(template: str) -> frozenset[str]:
    """Find the names that a template asks for: messages, tools, and whatever else it can be told.

    Raises:
        Unrenderable: it is no template, or takes too long to read.
    """
    try:
        return _processes().call(_variables_of, template, deadline=SECONDS)
    except Overrun as overrun:
        raise Unrenderable(f"{overrun}, the limit of a chat template") from None


@cache
def _processes() -> GuardedPool:
    pool = GuardedPool(1, memory_gib=_MEMORY_GIB)
    atexit.register(pool.close)
    return pool


# In the process


def _render(jobs: Sequence[Writing]) -> list[str | Unrenderable]:
    return [_written(job) for job in jobs]


def _written(job: Writing) -> str | Unrenderable:
    if len(job.template) > LONGEST_TEMPLATE:
        return Unrenderable(f"it has {len(job.template)} characters, and the limit is {LONGEST_TEMPLATE}")
    clock = datetime.fromisoformat(job.time)
    random.seed(0)
    try:
        (text,), _ = render_jinja_template(
            conversations=[list(job.messages)],
            tools=list(job.tools) or None,
            chat_template=job.template,
            add_generation_prompt=job.opens_answer,
            **{"strftime_now": clock.strftime, **job.tokens, **job.variables},
        )
    except _FAULTS as error:
        return Unrenderable(f"{type(error).__name__}: {error}"[:500])
    limit = _MOST_ADDED + _GROWTH * len(json.dumps([job.messages, job.tools], ensure_ascii=False, default=str))
    if len(text) > limit:
        return Unrenderable(f"it makes {len(text)} characters of the conversation, and the limit is {limit}")
    return str(text)


def _variables_of(template: str) -> frozenset[str]:
    if len(template) > LONGEST_TEMPLATE:
        raise Unrenderable(f"it has {len(template)} characters, and the limit is {LONGEST_TEMPLATE}")
    try:
        environment = _compile_jinja_template(template).environment
        return frozenset(meta.find_undeclared_variables(environment.parse(template)))
    except _FAULTS as error:
        raise Unrenderable(f"{type(error).__name__}: {error}"[:500]) from None
