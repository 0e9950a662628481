"""What is asked of the engines: the one place that makes requests for samples, each with a seed from `derive_seed`."""

from collections.abc import Sequence

from rollout.group import RolloutGroup
from tutelage.records.prompt import RenderedPrompt
from tutelage.records.trajectory import RolloutRequest, Trajectory


def rollout_request(
    item: RenderedPrompt,
    slot: int,
    seed: int,
    max_tokens: int,
    *,
    sample_index: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = -1,
) -> RolloutRequest:
    """Ask for one response to a prompt as the student sees it; by default from the whole distribution."""
    return RolloutRequest(
        slot=slot,
        prompt_id=item.prompt.id,
        sample_index=sample_index,
        prompt_ids=item.student_ids,
        seed=seed,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
    )


async def roll_out_all(rollouts: RolloutGroup, requests: Sequence[RolloutRequest]) -> list[Trajectory]:
    """All responses, in order of slot, whatever order they come in."""
    return sorted([item async for item in rollouts.roll_out(requests)], key=lambda item: item.slot)
