"""Top-p and top-k that keep the order of what they leave out, against vLLM's own."""

import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm.v1.sample.ops import topk_topp_sampler
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

from rollout.truncation import install, ordered

V = 50


def own(logits: Tensor, k: Tensor | None, p: Tensor | None) -> Tensor:
    return apply_top_k_top_p_pytorch(logits.clone(), k, p)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    top_p=st.one_of(st.none(), st.floats(0.05, 1)),
    top_k=st.one_of(st.none(), st.integers(1, V)),
    spread=st.floats(0.1, 20),
)
def test_what_is_left_out_keeps_its_order_and_no_probability(
    seed: int, top_p: float | None, top_k: int | None, spread: float
) -> None:
    logits = spread * torch.randn(3, V, generator=torch.Generator().manual_seed(seed))
    k = None if top_k is None else torch.full((3,), top_k)
    p = None if top_p is None else torch.full((3,), top_p)
    truncated, lowered = own(logits, k, p), ordered(own)(logits, k, p)
    torch.testing.assert_close(lowered.softmax(-1), truncated.softmax(-1), rtol=0, atol=0)
    kept = truncated > -torch.inf
    torch.testing.assert_close(lowered.log_softmax(-1)[kept], truncated.log_softmax(-1)[kept], rtol=0, atol=0)
    # the k most likely ids are those of the whole softmax, up to what float32 rounds together
    found = logits.gather(1, lowered.log_softmax(-1).topk(16).indices).sort(descending=True).values
    torch.testing.assert_close(found, logits.topk(16).values, rtol=0, atol=1e-4)


def test_half_precision_keeps_the_order_too() -> None:
    logits = torch.randn(1, V, generator=torch.Generator().manual_seed(0)).bfloat16()
    lowered = ordered(own)(logits, torch.tensor([2]), None)
    found = logits.gather(1, lowered.topk(16).indices)
    torch.testing.assert_close(found, logits.topk(16).values, rtol=0, atol=0)


def test_an_id_that_the_model_itself_excludes_stays_excluded() -> None:
    logits = torch.randn(1, V)
    logits[0, 7] = -torch.inf
    assert ordered(own)(logits, torch.tensor([4]), None)[0, 7] == -torch.inf


def test_it_takes_the_place_of_vllms_own_wherever_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = ModuleType("vllm.v1.worker.gpu.sample.sampler")
    imported.apply_top_k_top_p = own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, imported.__name__, imported)
    monkeypatch.setattr(topk_topp_sampler, "apply_top_k_top_p", own)
    install()
    first = topk_topp_sampler.apply_top_k_top_p
    install()
    assert topk_topp_sampler.apply_top_k_top_p is first is imported.apply_top_k_top_p  # type: ignore[attr-defined]
    assert first(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1]), None).tolist() == [[2.0, -127.0, -128.0]]
