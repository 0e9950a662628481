"""Two compositions that the tests of what surrounds an objective are run with."""

from learner.objectives import ObjectiveConfig
from learner.objectives.config import Gradient, Importance, Support

COMPOSITIONS = {
    "student_topk_reverse_kl": ObjectiveConfig(),
    "sampled_reverse_kl": ObjectiveConfig(
        name="sampled_reverse_kl",
        support=Support.sampled,
        gradient=Gradient.policy_gradient,
        importance=Importance.truncated,
    ),
}
