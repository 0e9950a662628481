"""What a teacher's backend can give, and what of an objective's needs it cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tutelage.records.signal import SignalNeeds


@dataclass(frozen=True)
class Capabilities:
    """What a teacher returns besides the sampled token's log-prob, which every one gives."""

    given_ids: bool = True  # their log-probs, and so their tail mass
    max_top_k: int | None = None  # of its own most likely ids; None: up to the whole vocabulary
    entropy: bool = True
    hidden_states: bool = True  # with the LM head, so the whole distribution
    new_responses: bool = True  # scores what it was never asked about; all above holds for what it can score


def mixed(members: Sequence[Capabilities]) -> Capabilities:
    """What a mixture gives: what all of its teachers do, but for its entropy, which theirs do not tell."""
    given_ids = all(member.given_ids for member in members)
    return Capabilities(
        given_ids=given_ids,
        max_top_k=None if given_ids else 0,  # sought among given ids
        entropy=False,
        hidden_states=all(member.hidden_states for member in members),
        new_responses=all(member.new_responses for member in members),
    )


def shortfalls(needs: SignalNeeds, given: Capabilities) -> Iterator[str]:
    """List what is needed and not given, in words."""
    if needs.candidates and not given.given_ids:
        yield f"the log-probs of {needs.candidates} given ids at each position (the student's most likely ones)"
    if given.max_top_k is not None and needs.teacher_top_k > given.max_top_k:
        yield f"its {needs.teacher_top_k} most likely ids (it gives {given.max_top_k} at most)"
    if needs.teacher_entropy and not given.entropy:
        yield "its exact entropy"
    if needs.hidden_states and not given.hidden_states:
        yield "its distribution over the whole vocabulary (final states and LM head)"
