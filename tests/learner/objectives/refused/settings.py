"""Objectives and runs that the cases are composed from."""

from typing import Any

from omegaconf import OmegaConf

from learner.objectives.config import ObjectiveConfig
from learner.objectives.rules.case import RunFacts

ON_POLICY = RunFacts(batch_size=16)
USUAL = RunFacts(temperature=0.7, max_staleness=1, batch_size=16)
ACROSS = RunFacts(batch_size=16, cross_tokenizer=True)
GRADED = RunFacts(batch_size=16, samples_per_prompt=4, has_verifier=True)
SAMPLED = {"support": "sampled", "gradient": "policy_gradient", "importance": "truncated"}
LIKELIHOOD = {"support": "sampled", "gradient": "backprop", "estimator": "likelihood", "divergence": "forward_kl"}

# What is wrong, its settings, the run, parts of the messages, what mends it.
Refused = tuple[str, dict[str, Any], RunFacts, list[str], dict[str, Any]]


def objective(settings: dict[str, Any]) -> ObjectiveConfig:
    """An objective as a config file or the command line composes it."""
    built = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ObjectiveConfig), settings))
    assert isinstance(built, ObjectiveConfig)
    return built
