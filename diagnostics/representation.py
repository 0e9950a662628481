"""Do student and teacher see the same in the student's answers? Secondary evidence, from the models' internals.

Shape suffixes: N tokens of all answers, T tokens of one answer, d and e hidden sizes of student and teacher.

Linear CKA of the layers' activations (Kornblith et al. 2019, arXiv 1905.00414, equation 4), and agreement of attention:
one minus the mean total variation between the two models' attention inside the answer, averaged over heads and
renormalised there. A layer of the student is compared with the teacher's at the same relative depth. A teacher with a
context of its own reads a longer prompt, so only what both read alike, the answer, is compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Reading:
    """One answer of the student, as both models read it."""

    student_prompt_ids: NDArray[np.int32]
    teacher_prompt_ids: NDArray[np.int32]
    answer_ids: NDArray[np.int32]  # [T]


@dataclass(frozen=True)
class Layer:
    """How alike one layer of the two models is."""

    layer: int  # of the student, from 1
    cka: float  # 0 to 1, blind to rotation and scale
    attention_agreement: float  # 0 to 1


def linear_cka(left_Nd: Tensor, right_Ne: Tensor) -> float:
    """‖RᵀL‖² / (‖LᵀL‖ ‖RᵀR‖) of centred activations, Frobenius norms, in float64."""
    left, right = (x.double() - x.double().mean(0) for x in (left_Nd, right_Ne))
    cross = torch.linalg.matrix_norm(right.T @ left) ** 2
    return float(cross / (torch.linalg.matrix_norm(left.T @ left) * torch.linalg.matrix_norm(right.T @ right)))


def attention_agreement(left_TT: Tensor, right_TT: Tensor) -> float:
    """One minus the mean total variation of the rows; each row sums to one in both."""
    return float(1 - 0.5 * (left_TT - right_TT).abs().sum(-1).mean())


def compare_models(student_path: str, teacher_path: str, readings: Sequence[Reading]) -> list[Layer]:
    """Load both checkpoints in float32, on the CPU, one after the other, and compare them layer by layer."""
    student = _internals(student_path, [(r.student_prompt_ids, r.answer_ids) for r in readings])
    teacher = _internals(teacher_path, [(r.teacher_prompt_ids, r.answer_ids) for r in readings])
    count = len(student.activations)
    layers = []
    for index in range(count):
        other = max(round((index + 1) / count * len(teacher.activations)) - 1, 0)
        agreements = [
            attention_agreement(left, right)
            for left, right in zip(student.attention[index], teacher.attention[other], strict=True)
        ]
        cka = linear_cka(student.activations[index], teacher.activations[other])
        layers.append(Layer(index + 1, cka, float(np.mean(agreements))))
    return layers


@dataclass(frozen=True)
class _Internals:
    activations: list[Tensor]  # of each layer [N, d]
    attention: list[list[Tensor]]  # of each layer and answer [T, T]


def _internals(path: str, texts: Sequence[tuple[NDArray[np.int32], NDArray[np.int32]]]) -> _Internals:
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="eager", trust_remote_code=False, use_safetensors=True
    )
    activations: list[list[Tensor]] = []
    attention: list[list[Tensor]] = []
    for prompt_ids, answer_ids in texts:
        ids = torch.from_numpy(np.concatenate([prompt_ids, answer_ids]).astype(np.int64))
        with torch.no_grad():
            out = model(ids[None], output_hidden_states=True, output_attentions=True, use_cache=False)
        start = len(prompt_ids)
        activations.append([states[0, start:] for states in out.hidden_states[1:]])
        inside = [weights[0].mean(0)[start:, start:] for weights in out.attentions]
        attention.append([weights_TT / weights_TT.sum(-1, keepdim=True).clamp(min=1e-9) for weights_TT in inside])
    return _Internals(
        [torch.cat(of_layer) for of_layer in zip(*activations, strict=True)],
        [list(of_layer) for of_layer in zip(*attention, strict=True)],
    )
