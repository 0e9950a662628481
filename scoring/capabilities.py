"""What a teacher's backend can give, and what of an objective's needs it cannot."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tutelage.records.signal import ScoringRequest, SignalNeeds


@dataclass(frozen=True)
class Capabilities:
    """What a teacher returns besides the sampled token's log-prob, which every one gives."""

    given_ids: bool = True  # their log-probs, and so their tail mass
    max_top_k: int | None = None  # of its own most likely ids; None: up to the whole vocabulary
    entropy: bool = True
    merged_stops: bool = False  # all ends of a turn as one action: it reads `ScoringRequest.stops`
    hidden_states: bool = True  # with the LM head, so the whole distribution
    new_responses: bool = True  # scores what it was never asked about; all above holds for what it can score


def mixed(members: Sequence[Capabilities]) -> Capabilities:
    """What a mixture gives: what all of its teachers do, but for its entropy, which theirs do not tell."""
    given_ids = all(member.given_ids for member in members)
    return Capabilities(
        given_ids=given_ids,
        max_top_k=None if given_ids else 0,  # sought among given ids
        entropy=False,
        merged_stops=all(member.merged_stops for member in members),
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


def check_request(request: ScoringRequest, unanswerable: Sequence[str] = (), why: str = "") -> None:
    """Refuse a request that does not fit together, or that asks for what a backend cannot give.

    Args:
        unanswerable: fields that ask for what it cannot give.
        why: and what to do about it, for the message.

    Raises:
        ValueError: such a field is set, the prompt is empty, or the mask or the support has another length.
    """
    if len(request.prompt_ids) == 0:
        raise ValueError("ScoringRequest.prompt_ids is empty: no state predicts the first response token")
    if request.scored_mask is not None and len(request.scored_mask) != len(request.response_ids):
        raise ValueError(
            f"ScoringRequest.scored_mask has {len(request.scored_mask)} places for "
            f"{len(request.response_ids)} response tokens"
        )
    support, tokens = request.support_ids, request.num_scored
    if support is not None and len(support) != tokens:
        raise ValueError(
            f"ScoringRequest.support_ids has {len(support)} positions for {tokens} scored tokens; give one row of "
            "ids for each"
        )
    for name in unanswerable:
        value = getattr(request, name)
        if value is not None and value is not False:
            raise ValueError(f"ScoringRequest.{name}: {why}")
