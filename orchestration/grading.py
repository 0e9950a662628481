"""A verifier's score on each trajectory, off the event loop."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from orchestration.preparation import RenderedPrompt, with_ids
from rollout.trajectory import Trajectory
from rollout.verifiers import Verifier


class Grader:
    """Scores responses to `prompts`, a conversation by its last answer; without a verifier they stay as they are."""

    def __init__(
        self, verifier: Verifier | None, prompts: Sequence[RenderedPrompt], tokenizer: PreTrainedTokenizerBase
    ) -> None:
        self._verifier, self._prompts, self._tokenizer = verifier, with_ids(prompts), tokenizer

    async def grade(self, trajectory: Trajectory) -> Trajectory:
        if self._verifier is None:
            return trajectory
        last = trajectory.response_ids[trajectory.answers[-1]]
        text = self._tokenizer.decode(last, skip_special_tokens=True)
        prompt = self._prompts[trajectory.prompt_id].prompt
        return replace(trajectory, reward=await asyncio.to_thread(self._verifier, prompt, text))
