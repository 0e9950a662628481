"""What the weight files of a checkpoint hold, against what its architecture needs.

Headers alone are read: names, shapes and storage types. What they make together is decided by transformers' own
loading, on tensors without memory, so that its conversions of old names, tied weights and merged experts count as they
will when the model is loaded.
"""

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tutelage.settings import ConfigError, Refusal

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
_LFS = b"version https://git-lfs"
_MOST_INDEX_BYTES = 2**27
_MOST_EXPERTS = 4096
_SHOWN = 4  # names in a message
_FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_INTEGERS = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
             "BOOL": torch.bool}  # fmt: skip
# What wrappers put before every name when their own state is saved instead of the model's.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "module.": "DistributedDataParallel or DeepSpeed",
    "base_model.model.": "peft",
    "_fsdp_wrapped_module.": "FSDP",
}
_RECOMPUTED = re.compile(r"(rotary_emb\.inv_freq|\.masked_bias|\.attn\.bias|\.attention\.bias)$")  # by older versions
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class StoredWeight:
    """One entry of a safetensors header."""

    file: str
    dtype: str  # as the header spells it: F32, BF16, F8_E4M3, …
    shape: tuple[int, ...]


def read_headers(directory: Path, key: str) -> dict[str, StoredWeight]:
    """Read which weights a checkpoint has, by name, and hold them against its index.

    Raises:
        ConfigError: a file is missing, broken or not listed, naming it.
    """
    listed = _listed_weights(directory, key)
    files = sorted(set(listed.values())) if listed else [SINGLE_FILE]
    headers = {file: _read_header(directory, file, key) for file in files}
    stored = {name: weight for header in headers.values() for name, weight in header.items()}
    lost = sorted(name for name, file in listed.items() if name not in headers[file])
    twice = sorted(name for name in stored if sum(name in header for header in headers.values()) > 1)
    if twice:
        fix = f"has {named(twice)} in more than one file, and who reads them takes either; save it again"
        raise ConfigError(Refusal(key, directory, fix))
    if lost:
        fix = f"{INDEX} lists weights that are not in their files: {named(lost)} (of {listed[lost[0]]}); save it again"
        raise ConfigError(Refusal(key, directory, fix))
    return stored


def _listed_weights(directory: Path, key: str) -> dict[str, str]:
    """Files of the weights by name, as the index has them; nothing where all are in one file.

    Raises:
        ConfigError: transformers and vLLM would read different files, or some that are not there.
    """
    index = directory / INDEX
    present = {path.name for path in directory.glob("*.safetensors")}
    listed: dict[str, str] = {}
    if index.is_file():
        listed = _read_index(index, key)
    if SINGLE_FILE in present and set(listed.values()) <= {SINGLE_FILE}:
        listed = {}
    elif SINGLE_FILE in present:  # transformers reads the single file, vLLM what the index lists
        fix = f"has both {SINGLE_FILE} and {INDEX}, which may be two models; remove the one that is not meant"
        raise ConfigError(Refusal(key, directory, fix))
    elif not listed:
        fix = (
            f"has {named(sorted(present))} and neither {SINGLE_FILE} nor {INDEX}, which lists the weights of several "
            "files; bring it from where the model comes from, or save the model again with save_pretrained"
        )
        raise ConfigError(Refusal(key, directory, fix))
    missing = sorted(set(listed.values()) - present)
    if missing:
        fix = f"{INDEX} lists {named(missing)}, not in the directory: a shard is lost; bring it from the source"
        raise ConfigError(Refusal(key, directory, fix))
    others = sorted(present - {SINGLE_FILE}) if not listed else []
    if others:  # without an index vLLM reads every file
        fix = f"has {named(others)} beside {SINGLE_FILE}: an engine would read both; move it out of the directory"
        raise ConfigError(Refusal(key, directory, fix))
    return listed


def _read_index(index: Path, key: str) -> dict[str, str]:
    try:
        if index.stat().st_size > _MOST_INDEX_BYTES:
            raise ValueError("larger than 128 MiB")
        listed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = {str(name): str(file) for name, file in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        cause = _lfs_advice(index) or f"{type(error).__name__}: {error}"
        raise ConfigError(Refusal(key, index, f"is no index of weights ({cause}); bring it again")) from error
    outside = sorted({file for file in names.values() if Path(file).name != file or not file.endswith(".safetensors")})
    if outside or not names:
        fix = f"must list *.safetensors files of its own directory, and lists {named(outside) or 'none'}"
        raise ConfigError(Refusal(key, index, fix))
    return names


def _lfs_advice(path: Path) -> str:
    """What to do about a file that only points to the real one; empty where it does not."""
    with path.open("rb") as file:
        pointer = file.read(len(_LFS)) == _LFS
    return "a git-LFS pointer, not the file itself: run git lfs pull in the directory" if pointer else ""


def _read_header(directory: Path, file: str, key: str) -> dict[str, StoredWeight]:
    """
    Raises:
        ConfigError: the file is no whole safetensors file.
    """
    path = directory / file
    try:
        if path.exists() and not path.is_file():
            raise OSError("not a file")
        if advice := _lfs_advice(path):
            raise ConfigError(Refusal(key, path, f"is {advice}"))
        with safe_open(path, framework="pt") as weights:
            entries = {name: weights.get_slice(name) for name in weights.keys()}  # noqa: SIM118, no mapping
            return {
                name: StoredWeight(file, entry.get_dtype(), tuple(entry.get_shape())) for name, entry in entries.items()
            }
    except (SafetensorError, OSError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.exists() else "a link to nothing"
        fix = f"cannot be read as safetensors ({error}; {size}): cut short, or no such file; copy or download it again"
        raise ConfigError(Refusal(key, path, fix)) from error


def build_on_meta(config: PreTrainedConfig, trust_remote_code: bool, stored: int) -> PreTrainedModel:
    """Build a model of the architecture without memory for its weights.

    Args:
        stored: how many weights its files have; a model of more layers than that is not built.

    Raises:
        ValueError: and whatever else a config that makes no sense leads to.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > stored:
        raise ValueError(f"num_hidden_layers={layers}, and the files have {stored} weights in all")
    for name, value in config.get_text_config().to_dict().items():
        if name.endswith("experts") and isinstance(value, int) and value > _MOST_EXPERTS:
            raise ValueError(f"{name}={value}, which is more than {_MOST_EXPERTS}")
    with torch.device("meta"), quiet_transformers():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing bars and reports meanwhile: what is wrong is said in one refusal."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def checkpoint_refusals(config: PreTrainedConfig, path: str, key: str, trust_remote_code: bool) -> Iterator[Refusal]:
    """What is wrong with the weights of the checkpoint in directory `path`."""
    try:
        stored = read_headers(Path(path), key)
    except ConfigError as error:
        yield from error.refusals
        return
    try:
        model = build_on_meta(copy.deepcopy(config), trust_remote_code, len(stored))
    except Exception as error:  # whatever an architecture makes of values of anybody's
        cause = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        fix = (
            f"transformers cannot build a causal language model of its config.json ({cause}); correct it, or choose a "
            "model that predicts text from text"
        )
        yield Refusal(key, path, fix)
        return
    yield from weight_refusals(model, stored, path, key)


def weight_refusals(
    model: PreTrainedModel, stored: Mapping[str, StoredWeight], path: str, key: str
) -> Iterator[Refusal]:
    """What the stored weights lack, or have in another shape, for a model on the meta device."""
    if getattr(model.config, "quantization_config", None) is not None:
        yield from _quantised_refusals(model, stored, path, key)
        return
    needed = model.state_dict()
    weights, odd = _as_meta(stored, needed)
    with quiet_transformers():
        _, report = type(model).from_pretrained(
            None,
            config=copy.deepcopy(model.config),
            state_dict=weights,
            device_map={"": "meta"},
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=False,
        )
    missing, mismatched = sorted(report["missing_keys"]), sorted(report["mismatched_keys"], key=str)
    failed = sorted({*report.get("conversion_errors", {}), *map(str, report.get("error_msgs", []))})
    if missing or failed:
        yield Refusal(key, path, _missing_fix([*missing, *failed], stored, odd, len(needed)))
    if mismatched:
        name, seen, wanted = mismatched[0]
        file = stored[name].file if name in stored else "the weights"
        fix = (
            f"{len(mismatched)} weights have other shapes than config.json makes them, first {name}: "
            f"{list(seen)} in {file}, {list(wanted)} by config.json; the two are of different models: bring both anew"
        )
        yield Refusal(key, path, fix)
    untied = [] if mismatched else _untied(model, stored, path)
    if untied:
        fix = (
            f"config.json ties {named(untied)} to another weight (tie_word_embeddings), and {stored[untied[0]].file} "
            "has different numbers for the two; set tie_word_embeddings=false in config.json if they were trained apart"
        )
        yield Refusal(key, path, fix)
    unused = _unused(report["unexpected_keys"], model, needed)
    if unused and not missing and not mismatched:
        fix = (
            f"has {len(unused)} weights that the model of its config.json ({type(model).__name__}) does not use: "
            f"{named(unused)}; it would be another model than was trained: bring the config.json that it was saved with"
        )
        yield Refusal(key, path, fix)


def _untied(model: PreTrainedModel, stored: Mapping[str, StoredWeight], path: str) -> list[str]:
    """Weights that the config ties to others, and that the files have with other numbers of their own.

    transformers would leave them apart and an engine would not read them. The first row of each tells.
    """

    def first_row(name: str) -> Tensor:
        with safe_open(Path(path, stored[name].file), framework="pt") as weights:
            row: Tensor = weights.get_slice(name)[:1]
        return row.float()

    tied = dict(model.all_tied_weights_keys or {})
    both = [(one, other) for one, other in tied.items() if one in stored and other in stored]
    return [one for one, other in both if not torch.equal(first_row(one), first_row(other))]


def _as_meta(
    stored: Mapping[str, StoredWeight], needed: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, StoredWeight]]:
    """Tensors without memory of what can be loaded, and entries of other storage types, which are left out."""
    weights, odd = {}, {}
    for name, entry in stored.items():
        target = needed.get(name)
        types = _FLOATS if target is None or target.is_floating_point() else _INTEGERS
        if entry.dtype in types:
            weights[name] = torch.empty(entry.shape, dtype=types[entry.dtype], device="meta")
        else:
            odd[name] = entry
    return weights, odd


def _missing_fix(
    missing: Sequence[str], stored: Mapping[str, StoredWeight], odd: Mapping[str, StoredWeight], needed: int
) -> str:
    """Say why weights are missing: another type, a wrapper's prefix, or nothing there at all."""
    fix = f"{len(missing)} of {needed} weights are missing: {named(missing)}; they would be random numbers"
    wrapper = next((name[: -len(missing[0])] for name in stored if name.endswith(f".{missing[0]}")), None)
    if odd:
        types, file = ", ".join(sorted({entry.dtype for entry in odd.values()})), next(iter(odd.values())).file
        return (
            f"{len(odd)} weights are stored as {types} ({named(sorted(odd))} in {file}), which is not loaded; save "
            f"the model in float32, float16 or bfloat16, or bring the quantization_config that belongs to it"
        )
    if wrapper is not None:
        who = f", as {_WRAPPERS[wrapper]} saves them" if wrapper in _WRAPPERS else ""
        return (
            f"{fix}. Its names begin with {wrapper}{who}: save the model inside of it, or take {wrapper} off every name"
        )
    files = ", ".join(sorted({entry.file for entry in stored.values()})[:_SHOWN])
    return f"{fix}. {files} had {len(stored)}: save the model again with save_pretrained, LM head included"


def _unused(unexpected: Sequence[str], model: PreTrainedModel, needed: Mapping[str, Tensor]) -> list[str]:
    """Weights of the language model itself that its config leaves out: a layer more, a bias.

    What stands beside it (a value head, a vision tower, draft layers) changes nothing of what it computes.
    """
    modules = {name for name, _ in model.named_modules()}
    stacks = {_LAYER.split(name)[0] for name in needed if _LAYER.search(name)}
    names = [name for name in unexpected if not _RECOMPUTED.search(name)]
    return sorted(
        name
        for name in names
        if name.rpartition(".")[0] in modules or (_LAYER.search(name) and _LAYER.split(name)[0] in stacks)
    )


def _quantised_refusals(
    model: PreTrainedModel, stored: Mapping[str, StoredWeight], path: str, key: str
) -> Iterator[Refusal]:
    """Quantised layers are stored under names of their method's; what each module has must be there under some name."""
    if key == "student.model":
        fix = "its weights are quantised (quantization_config in config.json), and those cannot be trained; choose the "
        yield Refusal(key, path, fix + "checkpoint that it was made from")
    tied = {} if model.all_tied_weights_keys is None else model.all_tied_weights_keys
    modules = {name.rpartition(".")[0] for name in stored}
    missing = sorted(name for name in model.state_dict() if name.rpartition(".")[0] not in modules and name not in tied)
    experts = [name for name in missing if ".experts." not in name]  # merged while they are loaded
    if experts:
        yield Refusal(key, path, _missing_fix(experts, stored, {}, len(model.state_dict())))


def named(names: Sequence[str]) -> str:
    """The first few of several names."""
    rest = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
