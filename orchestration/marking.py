"""What is asked of a reference about a trajectory that is trained on; and how many of all marks were kept."""

from rollout.trajectory import Trajectory
from scoring.cache import CacheStats
from scoring.signal import ScoringRequest

REFERENCE = "reference"  # key of objective.reference.model


def reference_request(trajectory: Trajectory) -> ScoringRequest:
    """Log-probs of the response to the student's prompt, whatever the teacher sees of it."""
    return ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids)


def in_words(stats: CacheStats) -> str:
    """How much of what was asked for was there."""
    asked = stats.hits + stats.misses
    faults = f", {stats.unreadable} files could not be read" if stats.unreadable else ""
    faults += f", {stats.unwritten} could not be written" if stats.unwritten else ""
    return f"kept marks: {stats.hits} of {asked} requests were there already, {stats.misses} were not{faults}"
