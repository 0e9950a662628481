"""Resumable learner state: what DeepSpeed saves, our version and random state, and a manifest of hashes.

    directory/deepspeed/…            weights, optimiser, schedule, as DeepSpeed writes them
    directory/random-rank-*.safetensors
    directory/state.json             version of the weights, last report, number of ranks, ZeRO stage
    directory/manifest.json          sha256 of every other file; written last

The directory must be on storage that every rank sees. Atomicity is the caller's: save into a temporary name and
rename it once every rank has returned.
"""

import json
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.runtime.fp16.loss_scaler import LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors.torch import load_file, save_file

from learner.engine import LearnerEngine
from learner.records import StepReport
from tutelage.files import differences, hashes_of, write_json, write_text

_TAG = "deepspeed"
MANIFEST = "manifest.json"
_STATE = "state.json"


class CheckpointError(RuntimeError):
    """A checkpoint is incomplete, altered, in the wrong place or of another set-up."""


def save_checkpoint(engine: LearnerEngine, directory: Path) -> None:
    """Write the learner's state into `directory`. A collective: every rank must call it.

    Raises:
        NonFiniteError: the weights are not finite.
    """
    engine.check_weights()
    directory.mkdir(parents=True, exist_ok=True)
    # Weights that adapters leave as they are come from the student's checkpoint again.
    engine.deepspeed.save_checkpoint(str(directory), tag=_TAG, save_latest=False, exclude_frozen_parameters=True)
    save_file(_random_state(), _random_file(directory, engine.rank))
    dist.barrier()
    if engine.rank == 0:
        state = {**_setup(engine), "version": engine.version, "last_report": _report(engine)}
        write_text(directory / _STATE, json.dumps(state, indent=1))
        write_json(directory / MANIFEST, hashes_of(directory, but=MANIFEST))
    dist.barrier()


def load_checkpoint(engine: LearnerEngine, directory: Path, run_directory: Path) -> None:
    """Restore what `save_checkpoint` wrote. A collective: every rank must call it.

    Raises:
        CheckpointError: `directory` is not under `run_directory`, a file is missing, unexpected or altered, or
            the learner's ranks, precision or ZeRO stage are others than at saving.
    """
    _verify(directory, run_directory)
    state = json.loads((directory / _STATE).read_text())
    for name, here in _setup(engine).items():
        if state[name] != here:
            raise CheckpointError(f"{directory}: saved with learner.{name}={state[name]}, this run has {here}")
    all_trained = engine.student.lora.rank == 0
    engine.deepspeed.checkpoint_engine.load = _load  # its own runs whatever code a file holds
    engine.deepspeed.load_checkpoint(str(directory), tag=_TAG, load_module_strict=all_trained)
    random_state = load_file(_random_file(directory, engine.rank))
    torch.set_rng_state(random_state["cpu"])
    if "cuda" in random_state:
        torch.cuda.set_rng_state(random_state["cuda"])
    report = state["last_report"]
    engine.version, engine.last_report = state["version"], None if report is None else StepReport(**report)


def _load(path: str, map_location: Any = None) -> Any:
    """Read what DeepSpeed wrote: tensors, containers, numbers, and these types of its own.

    Raises:
        CheckpointError: it holds something else, which might run code; none of it was run.
    """
    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        try:
            return torch.load(path, map_location=map_location, weights_only=True)
        except UnpicklingError as error:
            raise CheckpointError(f"{path} holds more than numbers: no run of this framework has written it") from error


def _setup(engine: LearnerEngine) -> dict[str, Any]:
    config = engine.config
    return {"ranks": engine.ranks, "zero_stage": config.zero_stage, "dtype": config.dtype.value}


def _report(engine: LearnerEngine) -> dict[str, Any] | None:
    return None if engine.last_report is None else asdict(engine.last_report)


def _random_file(directory: Path, rank: int) -> Path:
    return directory / f"random-rank-{rank}.safetensors"


def _random_state() -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _verify(directory: Path, run_directory: Path) -> None:
    """Refuse what this run did not write before anything is opened."""
    if run_directory.resolve() not in directory.resolve().parents:
        raise CheckpointError(f"{directory} is not under the run directory {run_directory}")
    manifest = directory / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{directory} has no {MANIFEST}: it was never completed")
    problems = differences(json.loads(manifest.read_text()), hashes_of(directory, but=MANIFEST))
    if problems:
        raise CheckpointError(f"{directory} is not what was saved: {', '.join(problems)}")
