"""What grades the student's responses: the interface that verifiers of users implement."""

from collections.abc import Iterator
from typing import Protocol

from tutelage.records.prompt import Prompt
from tutelage.settings import Refusal


class Verifier(Protocol):
    """A grader of responses, chosen by its name with data.verifier. It must not depend on earlier calls.

    class Polite(Verifier):
        def __call__(self, prompt: Prompt, response: str) -> float:
            return float("please" in response)

    VERIFIERS.add("polite", Polite())  # from rollout.verifiers import VERIFIERS
    """

    def __call__(self, prompt: Prompt, response: str) -> float:
        """Grade a response from 0 (wrong) to 1 (right); `prompt.answer` and `prompt.metadata` say what is right.

        Called in processes that do nothing else, of which `timeouts.grading` ends one that takes longer: the response
        scores 0 then and is counted. Where a prompt has several right answers it is called with each, and the highest
        grade counts. Any exception ends the run, so what a student may write must not raise one.

        Raises:
            ValueError: the prompt lacks what this verifier compares with.
        """
        ...

    def prepare(self) -> None:
        """Import or load what grading needs: once in each process, before its first response and outside its time."""
        return

    def refusals(self, source: str, kind: str) -> Iterator[Refusal]:
        """Say why prompts of a data source cannot be graded; nothing where they can.

        Args:
            source: full name of its setting, as data.train.
            kind: of that source, a name in `rollout.data.sources.SOURCES`.
        """
        yield from ()
