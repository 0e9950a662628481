"""What the teachers of a run can give, mixtures included."""

from orchestration.config import RunConfig
from orchestration.routing import teachers_of
from scoring.capabilities import Capabilities, capabilities


def capabilities_of(config: RunConfig, key: str) -> Capabilities:
    """A mixture gives what all of its teachers do, but for its entropy, which theirs do not tell."""
    teachers = teachers_of(config)
    gpus = config.scoring.gpus_per_worker
    mixture = teachers[key].mixture
    if not mixture:
        return capabilities(teachers[key], gpus)
    parts = [capabilities(teachers[member], gpus) for member in mixture]
    return Capabilities(
        given_ids=all(part.given_ids for part in parts),
        max_top_k=None if all(part.given_ids for part in parts) else 0,  # sought among given ids
        entropy=False,
        hidden_states=all(part.hidden_states for part in parts),
        new_responses=all(part.new_responses for part in parts),
    )


def tells_entropy(config: RunConfig, key: str) -> bool:
    return capabilities_of(config, key).entropy


def shows_whole(config: RunConfig, key: str) -> bool:
    """Whether the student's new responses can be compared with this teacher over the whole vocabulary."""
    given = capabilities_of(config, key)
    return given.hidden_states and given.new_responses and not teachers_of(config)[key].cross_tokenizer
