"""Top-p and top-k sampling that keeps the order of the ids that it leaves out.

vLLM gives an id that top-p or top-k leaves out a logit of minus infinity. Where it is asked for the most likely ids
beside the sampled one, it takes them of those same logits, and once the ids that are left run out it names arbitrary
ones: at top-p .9 half of 16. Here such an id's logit is lowered by a finite amount instead: its probability is 0 in
float32 all the same, so that the sampled tokens and their log-probs are what they were, and the most likely ids are
those of the whole softmax.
"""

import sys
from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor
from vllm.v1.sample.ops import topk_topp_sampler

_Truncation = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]

_NAME = "apply_top_k_top_p"
# Modules that have the function under a name of their own as soon as they are imported.
_IMPORTERS = ("vllm.v1.worker.gpu.sample.sampler", "vllm.v1.worker.gpu.sample.states")
# Nats: e^-128 is 0 in float32, far beyond the noise of Gumbel sampling, and leaves differences of 2e-5 nats.
_BELOW = 128.0


def ordered(truncate: _Truncation) -> _Truncation:
    """The same choice of ids, with those left out below all others and in their order."""

    @wraps(truncate)
    def lower(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
        if k is None and p is None:
            return logits
        # A copy, since it is overwritten; bfloat16 would round what is lowered to whole nats.
        untruncated = logits.to(torch.float32, copy=True)
        kept = truncate(logits, k, p)
        return torch.where(kept == -torch.inf, untruncated - _BELOW, kept)

    return lower


def install() -> None:
    """Put it in the place of vLLM's own, in this process; a second call does nothing."""
    own = getattr(topk_topp_sampler, _NAME)
    if hasattr(own, "__wrapped__"):
        return
    replacement = ordered(own)
    setattr(topk_topp_sampler, _NAME, replacement)
    for name in _IMPORTERS:
        if name in sys.modules:
            setattr(sys.modules[name], _NAME, replacement)
