"""What leaves the learner: names, order, buckets, types."""

from pathlib import Path

import pytest
import torch
import xxhash
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.weights.shared_memory import write_bucket
from learner.weights.source import CausalLMSource


def load(path: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def test_names_are_those_of_the_checkpoint(tiny_untied: Path) -> None:
    source = CausalLMSource(load(tiny_untied), 0, torch.float32, 2**20)
    saved = load_file(tiny_untied / "model.safetensors")
    sent = dict(source)
    assert sent.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(sent[name], tensor)


def test_a_tied_head_is_sent_under_its_own_name(tiny_tied: Path) -> None:
    sent = dict(CausalLMSource(load(tiny_tied), 0, torch.float32, 2**20))
    assert torch.equal(sent["lm_head.weight"], sent["model.embed_tokens.weight"])


def test_metadata_describes_what_iteration_yields(tiny_tied: Path) -> None:
    source = CausalLMSource(load(tiny_tied), 0, torch.bfloat16, 2**18)
    for meta, (name, tensor) in zip(source.metadata(), source, strict=True):
        assert (meta.name, meta.dtype, meta.shape) == (name, tensor.dtype, tuple(tensor.shape))


@pytest.mark.parametrize("bucket_bytes", [1, 2**18, 2**20, 2**30])
def test_buckets_keep_their_size_and_lose_nothing(tiny_untied: Path, bucket_bytes: int) -> None:
    model = load(tiny_untied)
    source = CausalLMSource(model, 0, torch.float32, bucket_bytes)
    names = [weight.name for bucket in source.buckets for weight in bucket]
    assert names == [name for name, _ in model.named_parameters()]
    assert source.nbytes == 4 * sum(p.numel() for p in model.parameters())
    for bucket in source.buckets:
        nbytes = sum(weight.nbytes for weight in bucket)
        assert nbytes <= bucket_bytes or len(bucket) == 1
        assert nbytes <= source.largest_bucket_bytes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bucket_is_cast_laid_end_to_end_and_hashed(tiny_tied: Path, dtype: torch.dtype) -> None:
    source = CausalLMSource(load(tiny_tied), 0, dtype, 2**30)
    (bucket,) = source.buckets
    buffer = torch.zeros(source.nbytes + 64, dtype=torch.uint8)
    checksum = write_bucket(buffer, bucket, dtype)
    expected = torch.cat([w.parameter.detach().to(dtype).reshape(-1) for w in bucket]).view(torch.uint8)
    assert torch.equal(buffer[: source.nbytes], expected)
    assert checksum == xxhash.xxh3_64_hexdigest(expected.numpy())
