"""Low-rank adapters (LoRA, arXiv 2106.09685): a weight W stays as it is, and the learner trains B and A beside it.

    W' = W + alpha / rank * B A        W [out, in], A [rank, in], B [out, rank]; B begins with zeros

peft puts the adapters into the linear layers. Whatever leaves the learner is W', under the name of W, so neither
engines nor checkpoints know of adapters.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from learner.config import LoraConfig
from tutelage.settings import ConfigError, Refusal

_ADAPTER = "default"  # peft's name for the only one
_BASE = ".base_layer."  # what peft puts into the name of an adapted weight
_FILE = "adapter_model.safetensors"  # as peft calls it
_PREFIX = "base_model.model."  # of every name in it


@dataclass(frozen=True)
class Adapter:
    """What is added to a weight."""

    down: nn.Parameter  # A, [rank, in]
    up: nn.Parameter  # B, [out, rank]
    rank: int
    scaling: float  # alpha / rank


@dataclass(frozen=True)
class CheckpointWeight:
    """A weight as a checkpoint has it, whether it is trained itself or by an adapter."""

    name: str  # as in the Hugging Face checkpoint
    parameter: nn.Parameter
    adapter: Adapter | None

    @property
    def parts(self) -> list[nn.Parameter]:
        """What has to be whole before `value` can be asked for."""
        return [self.parameter] if self.adapter is None else [self.parameter, self.adapter.down, self.adapter.up]

    def value(self) -> Tensor:
        """Compute the weight, with an adapter as a float32 tensor of its own; detached."""
        weight = self.parameter.detach()
        if self.adapter is None:
            return weight
        down, up = self.adapter.down.detach().float(), self.adapter.up.detach().float()
        return torch.addmm(weight.float(), up, down, alpha=self.adapter.scaling)


def checkpoint_weights(model: nn.Module) -> Iterator[CheckpointWeight]:
    """Iterate over all weights of a causal LM with or without adapters, a tied one under each of its names."""
    added = adapters(model)
    own = {id(part) for adapter in added.values() for part in (adapter.down, adapter.up)}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in own:
            yield CheckpointWeight(name.replace(_BASE, "."), parameter, added.get(name))


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """Find a model's adapters, by the name of the parameter that each one is added to."""
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    return {
        f"{name}{_BASE}weight": Adapter(
            layer.lora_A[_ADAPTER].weight,
            layer.lora_B[_ADAPTER].weight,
            layer.r[_ADAPTER],
            layer.scaling[_ADAPTER],
        )
        for name, layer in layers.items()
    }


def adapted_layers(model: PreTrainedModel, config: LoraConfig) -> dict[str, nn.Linear]:
    """Choose the linear layers that get adapters, by name; never the LM head.

    Raises:
        ValueError: there are none, or no layer has the name of a target.
    """
    head = model.get_output_embeddings()
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    names = sorted({_last(name) for name in layers})
    if not names:
        fix = f"{type(model).__name__} has no linear layer beside its LM head; set 0 to train all weights"
        raise ConfigError(Refusal("student.lora.rank", config.rank, fix))
    unknown = sorted(set(config.targets) - set(names))
    if unknown:
        fix = (
            f"no linear layer is called {', '.join(unknown)}; choose from {', '.join(names)}, or leave it empty for "
            "all of them (LM head and embeddings are never adapted)"
        )
        raise ConfigError(Refusal("student.lora.targets", config.targets, fix))
    return {name: layer for name, layer in layers.items() if not config.targets or _last(name) in config.targets}


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def trainable_parameters(model_path: str, config: LoraConfig, trust_remote_code: bool = False) -> int:
    """Count the numbers that adapters on a checkpoint's model have; nothing of it is loaded but its config.

    Raises:
        ValueError: the model has no layers that could be adapted as `config` says.
    """
    settings = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(settings, trust_remote_code=trust_remote_code)
    layers = adapted_layers(model, config).values()
    return sum(config.rank * (layer.in_features + layer.out_features) for layer in layers)


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> None:
    """Put adapters beside the model's linear layers and freeze everything else.

    They have the precision of their layers. A is drawn from torch's generator.

    Raises:
        ValueError: as `adapted_layers`.
    """
    import peft  # takes seconds, and most runs do without it

    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(adapted_layers(model, config)),
        task_type=peft.TaskType.CAUSAL_LM,
    )
    peft.inject_adapter_in_model(settings, model, _ADAPTER)


def save_adapter(model: PreTrainedModel, state: dict[str, Tensor], base: str, directory: Path) -> None:
    """Write the adapters as peft reads them.

    Args:
        state: what is trained, whole, by its name in `model`.
        base: name or path of the model that they belong to.
    """
    settings = model.peft_config[_ADAPTER]
    settings.base_model_name_or_path = base
    settings.save_pretrained(str(directory))
    named = {_PREFIX + name.replace(f".{_ADAPTER}.", "."): weight for name, weight in state.items()}
    save_file(named, directory / _FILE, metadata={"format": "pt"})
