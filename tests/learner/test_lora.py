"""Adapters: their gradients, what leaves the learner, and what is refused."""

import itertools
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel

from learner.config import LearnerConfig, LoraConfig, StudentConfig
from learner.lora import adapted_layers, add_adapters, checkpoint_weights, save_adapter, trainable_parameters
from learner.packing import pack
from learner.perturbation import Perturbation
from learner.student import Student, load_student
from learner.tensors import PackedTensors, to_tensors
from learner.weights.shared_memory import write_bucket
from learner.weights.source import CausalLMSource
from tests.learner.examples import make_examples
from tutelage.settings import DType

RANK, ALPHA = 3, 6
PARTS = ("base_layer", "lora_A.default", "lora_B.default")
BACKBONE = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def adapted_student(path: Path, dtype: torch.dtype = torch.float32, **options: object) -> Student:
    """A student whose adapters are as training could have left them: B is not zero."""
    settings = StudentConfig(lora=LoraConfig(**{"rank": RANK, "alpha": ALPHA, **options}))  # type: ignore[arg-type]
    torch.manual_seed(0)
    student = load_student(str(path), settings, LearnerConfig(dtype=DType.float32)).to(dtype)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return student


def plain(path: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def merged_by_hand(path: Path, adapters: dict[str, Tensor]) -> dict[str, Tensor]:
    """W + alpha / rank * B A for every weight that has them, from leaves of autograd."""
    weights = dict(plain(path, torch.float64).named_parameters())
    for name in [name for name in adapters if "lora_A" in name]:
        down, up = adapters[name], adapters[name.replace("lora_A", "lora_B")]
        target = name.replace("lora_A.default.", "")
        weights[target] = weights[target].detach() + ALPHA / RANK * up @ down
    return weights


def loss_of(logits_RV: Tensor, weights_RV: Tensor) -> Tensor:
    return (logits_RV.double().log_softmax(-1) * weights_RV).sum()


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_autograd_through_the_merged_weights(
    tied: bool, tiny_tied: Path, tiny_untied: Path
) -> None:
    """Packed sequences through base and adapters, against one sequence at a time through W', in float64."""
    path = tiny_tied if tied else tiny_untied
    student = adapted_student(path, torch.float64)
    packed = to_tensors(pack(make_examples(), 1, 10_000, 0).ranks[0][0], torch.device("cpu"))
    scores_RV = torch.randn(len(packed.logit_positions), 576, generator=torch.Generator().manual_seed(1)).double()
    student(packed, lambda hidden, head, bias: loss_of(hidden @ head.T, scores_RV)).backward()
    ours = {n.removeprefix("causal_lm."): p.grad for n, p in student.named_parameters() if p.requires_grad}

    leaves = {
        name: p.detach().clone().requires_grad_() for name, p in student.causal_lm.named_parameters() if p.requires_grad
    }
    weights, model = merged_by_hand(path, leaves), plain(path, torch.float64)
    logits = [functional_call(model, weights, (ids[None],)).logits[0] for ids in sequences(packed)]
    loss_of(torch.cat(logits)[packed.logit_positions], scores_RV).backward()
    assert ours.keys() == leaves.keys() and len(ours) == 2 * 7 * 2  # A and B of seven layers in each of two blocks
    for name, leaf in leaves.items():
        assert leaf.grad is not None and ours[name] is not None
        torch.testing.assert_close(ours[name], leaf.grad, rtol=1e-9, atol=1e-9 * float(leaf.grad.abs().max()))


def sequences(packed: PackedTensors) -> list[Tensor]:
    bounds = packed.segment_starts.tolist()
    return [packed.token_ids[start:stop] for start, stop in itertools.pairwise(bounds)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_sent_has_the_checkpoints_names_and_the_merged_weights(
    tied: bool, dtype: torch.dtype, tiny_tied: Path, tiny_untied: Path
) -> None:
    """Merged in float32 and then cast, by either way of sending."""
    path = tiny_tied if tied else tiny_untied
    model = adapted_student(path, dtype).causal_lm
    source = CausalLMSource(model, 0, dtype, 2**18)
    sent = dict(source)
    assert list(sent) == [name for name, _ in plain(path).named_parameters(remove_duplicate=False)]
    parameters = dict(model.named_parameters())
    for name, weight in sent.items():
        layer = name.removesuffix(".weight")
        expected = parameters.get(name)
        if expected is None and f"{layer}.base_layer.weight" in parameters:
            base, down, up = (parameters[f"{layer}.{part}.weight"].float() for part in PARTS)
            assert not torch.equal(base.to(dtype), weight)
            expected = base + ALPHA / RANK * (up @ down)
        elif expected is None:
            expected = parameters["model.embed_tokens.weight"]  # the tied head
        torch.testing.assert_close(weight, expected.to(dtype), rtol=1e-6 if dtype is torch.float32 else 1e-2, atol=1e-6)
    buffer = torch.zeros(source.nbytes, dtype=torch.uint8)
    for bucket in source.buckets:
        write_bucket(buffer, bucket, dtype)
        written = buffer.view(dtype)[: sum(w.nbytes for w in bucket) // dtype.itemsize]
        assert torch.equal(written, torch.cat([sent[w.name].reshape(-1) for w in bucket]))


@pytest.mark.parametrize(("rank", "alpha"), [(1, 64), (16, 8)])
def test_a_perturbation_reaches_what_adapters_add_and_keeps_it_small(rank: int, alpha: int, tiny_tied: Path) -> None:
    """Too much would blow up the rounding of bfloat16, in which engine and learner differ."""
    model = plain(tiny_tied)
    add_adapters(model, LoraConfig(rank=rank, alpha=alpha))
    perturbation = Perturbation(model, sharded=False, seed=3, size=0.1)
    for weight in checkpoint_weights(model):
        if weight.adapter is not None:
            added = (weight.value() - weight.parameter).square().mean().sqrt()
            down = weight.adapter.down.square().mean().sqrt()
            assert 0.02 < added / down < 0.5
    perturbation.restore()
    assert not any(p.any() for name, p in model.named_parameters() if "lora_B" in name)


def test_only_adapters_are_trained_and_at_first_they_add_nothing(tiny_untied: Path) -> None:
    student = load_student(str(tiny_untied), StudentConfig(lora=LoraConfig(rank=2)), LearnerConfig(dtype=DType.float32))
    trained = {name for name, parameter in student.named_parameters() if parameter.requires_grad}
    assert trained and all(".lora_A." in name or ".lora_B." in name for name in trained)
    saved = load_file(tiny_untied / "model.safetensors")
    assert all(torch.equal(w.value(), saved[w.name]) for w in checkpoint_weights(student.causal_lm))


def test_peft_loads_what_is_saved(tiny_tied: Path, tmp_path: Path) -> None:
    model = adapted_student(tiny_tied).causal_lm
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_adapter(model, state, str(tiny_tied), tmp_path / "adapter")
    theirs = PeftModel.from_pretrained(plain(tiny_tied), tmp_path / "adapter").merge_and_unload()
    for weight in checkpoint_weights(model):
        torch.testing.assert_close(theirs.get_parameter(weight.name).detach(), weight.value(), rtol=1e-5, atol=1e-6)


def test_targets_choose_layers_and_their_numbers_are_counted(tiny_untied: Path) -> None:
    model = plain(tiny_untied)
    config = LoraConfig(rank=4, targets=["q_proj", "down_proj"])
    chosen = adapted_layers(model, config)
    assert {name.rpartition(".")[2] for name in chosen} == {"q_proj", "down_proj"} and len(chosen) == 4
    for settings in (config, LoraConfig(rank=4)):
        adapted = plain(tiny_untied)
        add_adapters(adapted, settings)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        assert trainable_parameters(str(tiny_untied), settings) == trained


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_porj"])
def test_a_target_that_is_no_inner_linear_layer_is_refused(target: str, tiny_tied: Path) -> None:
    config = LoraConfig(rank=4, targets=["q_proj", target])
    with pytest.raises(ValueError, match=rf"student\.lora\.targets=.*{target}; choose from {', '.join(BACKBONE)}, or"):
        trainable_parameters(str(tiny_tied), config)
