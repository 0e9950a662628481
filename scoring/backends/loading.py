"""A teacher's model, in its place: on one device or spread over several GPUs, its weights full or quantised."""

import logging
from collections.abc import Mapping

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from scoring.config import Quantization, ScoringConfig, TeacherConfig
from tutelage.lm.packed import load_causal_lm

DeviceMap = str | Mapping[str, str]


def load_teacher(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> PreTrainedModel:
    """The checkpoint in directory `path`, ready for packed forwards without gradients.

    Raises:
        ValueError: the model cannot be packed, cannot be quantised, or its workers' GPUs cannot hold it.
    """
    dtype = getattr(torch, scoring.dtype.value)
    device_map = place(scoring.gpus_per_worker)
    model = load_causal_lm(
        path,
        dtype,
        scoring.attention.value,
        teacher.trust_remote_code,
        quantization=_quantization(teacher.quantization, dtype),
        device_map=device_map,
        longest=scoring.max_model_len,
    )
    model.requires_grad_(False)
    _refuse_overflow(model, scoring.gpus_per_worker)
    return model


def place(gpus: float) -> DeviceMap:
    """Where a worker's model goes: all of it on its one device, or layer by layer over its several GPUs."""
    if gpus > 1:
        return "auto"
    return {"": "cuda" if gpus > 0 else "cpu"}


def _quantization(kind: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """How linear layers are stored; the LM head and the embeddings stay as they are."""
    if kind is not Quantization.none:
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for each matmul
    if kind is Quantization.int8:
        # Above a threshold activations would be multiplied in float16, if any token of the forward is above it: what
        # is said of one response would depend on those that it is packed with.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    if kind is Quantization.nf4:
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    return None


def _refuse_overflow(model: PreTrainedModel, gpus: float) -> None:
    """What does not fit on the GPUs would be fetched from host memory or disk again at each forward."""
    devices = map(str, (getattr(model, "hf_device_map", None) or {}).values())
    elsewhere = sorted({"cpu", "disk"} & set(devices))
    if gpus > 0 and elsewhere:
        raise ValueError(
            f"scoring.gpus_per_worker={gpus:g}: they cannot hold the teacher, and parts of it were left to "
            f"{' and '.join(elsewhere)}; raise it, or set teacher.quantization=int8 or nf4"
        )
