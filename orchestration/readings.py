"""What each teacher is asked about a trajectory that is trained on, in training and before it.

It reads by its own tokenizer, and is asked what the objective needs, and what is watched as far as it can tell.
"""

import numpy as np
from numpy.typing import NDArray

from learner.objectives import Requirements
from orchestration.capability import tells_entropy
from orchestration.config import RunConfig
from orchestration.preparation import Prepared, RenderedPrompt
from orchestration.routing import teachers_of
from rollout.trajectory import Trajectory
from scoring.views import TeacherView, Views, make_aligner


class Readings:
    """`scoring.views` of every teacher by key, made when the first trajectory comes to it."""

    def __init__(self, config: RunConfig, prepared: Prepared, needs: Requirements) -> None:
        self._config, self._prepared, self._needs = config, prepared, needs
        self._views: dict[str, Views] = {}
        across = any(teacher.cross_tokenizer for teacher in teachers_of(config).values())
        self._overlap_k = 0 if across else config.learner.overlap_k  # measured in all examples of a batch, or in none

    def of(self, item: RenderedPrompt, prompt_ids: NDArray[np.int32], trajectory: Trajectory) -> TeacherView:
        """
        Args:
            prompt_ids: what the prompt's teacher sees of it.
        """
        key = item.prompt.teacher
        if key not in self._views:
            self._views[key] = self._make(key)
        return self._views[key].of(key, prompt_ids, trajectory, item.teacher_follow_ups)

    def _make(self, key: str) -> Views:
        aligner = None
        if teachers_of(self._config)[key].cross_tokenizer:
            aligner = make_aligner(self._prepared.tokenizer, self._prepared.teachers[key].tokenizer)
        entropy, longest = tells_entropy(self._config, key), self._config.rollout.max_model_len
        return Views(self._needs, self._overlap_k, aligner, entropy, longest)


def sampled_candidates(config: RunConfig, needs: Requirements) -> int:
    """Most likely ids that rollouts return: more than are compared where some have no equal at a teacher."""
    across = [teacher.twin_candidates for teacher in teachers_of(config).values() if teacher.cross_tokenizer]
    return max([needs.candidates, *across]) if needs.candidates else 0
