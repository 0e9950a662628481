"""What only a teacher sees: its context template, filled for a prompt or for one response to it.

    {answer}      the prompt's own answer                          known beforehand
    {completion}  the data's own response, a full solution         known beforehand
    {attempt}     the student's response that is being scored      once it is there
    {feedback}    the verifier's word on it: correct, incorrect    once it is graded
    {sibling}     a correct response of another sample             once the prompt's samples are graded

A template without a field is one rule for all prompts; with one it tells about the instance. They teach differently:
a shared rule can be learned, an instance's own answer only be guessed at (arXiv 2605.11182).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tutelage.records.prompt import Prompt

_STATIC = ("answer", "completion")
_DYNAMIC = ("attempt", "feedback", "sibling")
SIBLING = "sibling"
_MARKERS = re.compile("{(" + "|".join((*_STATIC, *_DYNAMIC)) + ")}")


@dataclass(frozen=True)
class ContextTemplate:
    text: str

    @property
    def fields(self) -> tuple[str, ...]:
        there = set(_MARKERS.findall(self.text))
        return tuple(name for name in (*_STATIC, *_DYNAMIC) if name in there)

    @property
    def waits_for(self) -> tuple[str, ...]:
        """The fields that only a response's own fate can fill."""
        return tuple(name for name in self.fields if name in _DYNAMIC)

    @property
    def kind(self) -> str:
        """What it tells: "shared rule" or "instance-specific"."""
        return "instance-specific" if self.fields else "shared rule"

    def filled(self, values: Mapping[str, str]) -> str:
        """Put in a value for each field; what looks like a field within a value stays as it is."""
        return _MARKERS.sub(lambda marker: values[marker[1]], self.text)

    def missing(self, prompt: Prompt) -> str | None:
        """The field that this prompt's data cannot fill, if there is one."""
        return next((name for name in self.fields if name in _STATIC and getattr(prompt, name) is None), None)


def static_values(prompt: Prompt) -> dict[str, str]:
    """What the data say."""
    return {name: value for name in _STATIC if (value := getattr(prompt, name)) is not None}
