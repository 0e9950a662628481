"""What is asked about a trajectory that is trained on, in training and before it; and how much of it was kept."""

import numpy as np
from numpy.typing import NDArray

from learner.objectives import requirements
from orchestration.capability import tells_entropy
from orchestration.config import RunConfig
from rollout.trajectory import Trajectory
from scoring.cache import CacheStats
from scoring.request import build_request, with_monitored
from scoring.signal import ScoringRequest

REFERENCE = "reference"  # key of objective.reference.model


def teacher_request(
    config: RunConfig, key: str, prompt_ids: NDArray[np.int32], trajectory: Trajectory
) -> ScoringRequest:
    """What the objective needs of a teacher, and what is watched.

    Args:
        prompt_ids: [P'], what the teacher sees of the prompt.
    """
    request = build_request(key, prompt_ids, trajectory, requirements(config.objective))
    return with_monitored(request, config.learner.overlap_k, tells_entropy(config, key))


def reference_request(trajectory: Trajectory) -> ScoringRequest:
    """Log-probs of the response to the student's prompt, whatever the teacher sees of it."""
    return ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids)


def in_words(stats: CacheStats) -> str:
    """How much of what was asked for was there."""
    asked = stats.hits + stats.misses
    faults = f", {stats.unreadable} files could not be read" if stats.unreadable else ""
    faults += f", {stats.unwritten} could not be written" if stats.unwritten else ""
    return f"kept marks: {stats.hits} of {asked} requests were there already, {stats.misses} were not{faults}"
