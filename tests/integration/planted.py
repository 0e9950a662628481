"""Teachers with a planted fault, made from a model of the lab: what distillation from them does is known beforehand.

Shape suffixes: V vocabulary, d hidden size.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from orchestration.prepare.checkpoints import LAB_MODELS

Weights = dict[str, torch.Tensor]
EOS, UNUSED = 3, 500  # ids of the lab's vocabulary
ECHO_LOGIT = 8.0  # of the token that is repeated; all others are near 0


def teacher_that_never_stops(folder: Path) -> Path:
    """Finds the end of sequence as unlikely as an id that nobody uses."""

    def plant(weights: Weights) -> None:
        weights["lm_head.weight"][EOS] = weights["lm_head.weight"][UNUSED]

    return _planted(folder, plant)


def teacher_that_repeats(folder: Path) -> Path:
    """Expects every token to be followed by itself: its layers add nothing, and its head is its embedding."""

    def plant(weights: Weights) -> None:
        for name, weight in weights.items():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.zero_()
        embedding_Vd = torch.nn.functional.normalize(weights["model.embed_tokens.weight"].float())
        weights["model.norm.weight"].fill_(1)  # a state of norm √d
        scaled = embedding_Vd * ECHO_LOGIT / embedding_Vd.shape[1] ** 0.5
        weights["lm_head.weight"] = scaled.to(weights["lm_head.weight"].dtype)

    return _planted(folder, plant)


def _planted(folder: Path, plant: Callable[[Weights], None]) -> Path:
    shutil.copytree(LAB_MODELS / "carries", folder)
    weights = load_file(folder / "model.safetensors")
    plant(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
