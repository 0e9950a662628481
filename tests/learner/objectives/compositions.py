"""Objectives that several tests are run with: two common compositions, every divergence, every wide support."""

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
DIVERGENCES = {
    "reverse KL": {"divergence": "reverse_kl"},
    "forward KL": {"divergence": "forward_kl"},
    "JSD, beta 0": {"divergence": "jsd", "beta": 0.0},
    "JSD, beta 0.3": {"divergence": "jsd", "beta": 0.3},
    "JSD, beta 1": {"divergence": "jsd", "beta": 1.0},
    "skewed reverse KL, alpha 0.1": {"divergence": "skewed_reverse_kl", "alpha": 0.1},
    "skewed forward KL, alpha 0.1": {"divergence": "skewed_forward_kl", "alpha": 0.1},
}
WIDE = [s for s in Support if s is not Support.sampled]
FEW = [support for support in WIDE if support is not Support.full]
