"""The folder that a run owns: who may write to it, where its checkpoints lie, and what it resumes from."""

import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any, cast, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from orchestration.config.keys import RENAMED
from orchestration.config.schema import Resume, RunConfig
from orchestration.pipeline.progress import Cursor
from tutelage.files import read_sealed, sync, sync_all, write_sealed, write_text
from tutelage.settings import ConfigError, Refusal, Refusals

STAGES_KEY = "recipe.stages"
_OF_A_START = ("output_root", "run_dir", "resume", "dry_run")  # may be others each time, and mean the same
_CHECKPOINT = re.compile(r"step-(\d{6,})")
_REPLACED = ".replaced"  # a checkpoint that is about to be, until the new one is in its place
log = logging.getLogger("tutelage")


@dataclass(frozen=True)
class RunState:
    """What a checkpoint holds beside the learner's own state; every seed follows from the cursor and config.seed."""

    step: int = 0  # also the policy version: one optimiser step makes one
    cursor: Cursor = field(default_factory=Cursor)
    wandb_id: str | None = None
    wall_seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    stage_seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # of what the stage left out, by reason


class RunDirectory:
    """Holds the lock of its folder while it lives; `changes`: what a resumed run did not begin with, in words."""

    def __init__(self, path: Path, lock: IO[str], changes: Sequence[str] = ()) -> None:
        self.path, self.changes = path, changes
        self._lock = lock  # an open file: the kernel frees it when the process ends, however it ends

    def close(self) -> None:
        self._lock.close()

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def unusable_checkpoints(self) -> dict[Path, str]:
        """Those that a run does not go on from, and why."""
        unfinished = dict.fromkeys(self.checkpoints.glob("step-*.partial"), "writing it was interrupted")
        damaged = {path: "its state.json is damaged" for path in _checkpoints(self.path) if read_state(path) is None}
        return dict(sorted({**unfinished, **damaged}.items()))

    def begin_checkpoint(self, step: int) -> Path:
        """An empty folder that becomes a checkpoint by `commit_checkpoint`."""
        partial = self.checkpoints / f"step-{step:06d}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        return partial

    def commit_checkpoint(self, partial: Path, state: RunState, keep: int) -> Path:
        write_sealed(partial / "state.json", asdict(state))
        sync_all(partial)
        final = partial.with_suffix("")
        replaced = final.with_suffix(_REPLACED)
        if final.exists():
            final.rename(replaced)
        partial.rename(final)
        sync(self.checkpoints)
        shutil.rmtree(replaced, ignore_errors=True)
        for old in _checkpoints(self.path)[:-keep]:
            if _step_of(old):  # that of step 0 is kept as long as the run: what may have to be gone back to
                shutil.rmtree(old)
        return final

    def recover_replaced(self) -> None:
        """Give checkpoints their names back that were being replaced when the run was killed."""
        for replaced in self.checkpoints.glob(f"step-*{_REPLACED}"):
            if not replaced.with_suffix("").exists():
                replaced.rename(replaced.with_suffix(""))
            shutil.rmtree(replaced, ignore_errors=True)

    def check_prompts(self, digest: str) -> None:
        """Keep the digest of the run's prompts, or hold it against the one that a run to be resumed began with.

        Raises:
            ConfigError: the cursor of the checkpoint would point into other prompts.
        """
        kept = self.path / "prompts.sha256"
        if not kept.is_file():
            write_text(kept, digest)
        elif kept.read_text(encoding="utf-8") != digest:
            fix = (
                "began with other prompts than those of data; restore the data, or start anew in another run_dir (some "
                "reasoning-gym tasks differ from process to process: give every start PYTHONHASHSEED=0)"
            )
            raise ConfigError(Refusal("run_dir", self.path, fix))

    def write_config(self, composed: DictConfig) -> None:
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(composed, resolve=True))


def read_settings(folder: Path) -> dict[str, Any]:
    """Read the configuration of a run, a recipe or a diagnosis as plain values.

    Raises:
        ConfigError: the file is damaged.
    """
    path = folder / "config.yaml"
    try:
        settings = OmegaConf.to_container(OmegaConf.load(path))
        if isinstance(settings, dict) and settings:
            return cast(dict[str, Any], settings)
        said = "no settings"
    except (YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        said = " ".join(str(error).split())[:200]
    raise ConfigError(Refusal("run_dir", path, f"damaged ({said}); restore it, or start anew elsewhere"))


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    whole = whole_checkpoints(run_dir)
    return whole[-1] if whole else None


def whole_checkpoints(run_dir: Path) -> list[Path]:
    """In order of step; one whose writing was interrupted still has its temporary name, one may be damaged."""
    return [path for path in _checkpoints(run_dir) if read_state(path) is not None]


def _checkpoints(run_dir: Path) -> list[Path]:
    folders = (run_dir / "checkpoints").glob("step-*")
    return sorted((path for path in folders if _CHECKPOINT.fullmatch(path.name)), key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def read_state(checkpoint: Path) -> RunState | None:
    """Read how far a run was at a checkpoint; None: its file is missing, cut short or altered.

    Raises:
        ConfigError: a newer version has written it.
    """
    read = read_sealed(checkpoint / "state.json")
    if read is None:
        return None
    raw, is_sealed = read
    unknown = sorted(raw.keys() - {item.name for item in fields(RunState)})
    try:
        cursor = Cursor(**{**raw["cursor"], "pending": tuple(raw["cursor"]["pending"])})
    except (ValueError, KeyError, TypeError):
        return None
    if "step" not in raw or (unknown and not is_sealed):
        return None
    if unknown:
        fix = f"written by a newer version, whose {', '.join(unknown)} this one does not know; continue with that one"
        raise ConfigError(Refusal("run_dir", checkpoint, fix))
    return RunState(**{**raw, "cursor": cursor})


def _lock(path: Path) -> IO[str]:
    handle = (path / ".lock").open("a")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        fix = "in use by a run that is still going; choose another, or stop it"
        raise ConfigError(Refusal("run_dir", path, fix)) from None
    return handle


def read_summary(path: Path) -> dict[str, Any] | None:
    """Read what the last start of a run came to; None: none has ended, or its file is damaged, which is said."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
        if isinstance(summary["status"], str):
            return cast(dict[str, Any], summary)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    log.warning("%s is damaged, so how that run ended is not known", path / "summary.json")
    return None


def is_finished(path: Path, if_damaged: bool = False) -> bool:
    """Whether a run is over; `if_damaged` is what to say where its summary cannot be read."""
    summary = read_summary(path)
    if summary is None:
        return if_damaged and (path / "summary.json").exists()
    return bool(summary["status"] == "completed")


def stage_folders(path: Path) -> list[Path]:
    """List the folders of a recipe's stages that were begun."""
    return sorted(folder for folder in path.glob("[1-9]*-*") if (folder / "config.yaml").is_file())


def _fresh_path(root: Path) -> Path:
    begun = [path.name[:19] for path in root.glob("????-??-??_??-??-??*")]
    stamp = max([datetime.now().strftime("%Y-%m-%d_%H-%M-%S"), *begun])  # the newest is last, also if clocks go back
    path, count = root / stamp, 1
    while path.exists():
        path, count = root / f"{stamp}.{count:03d}", count + 1
    return path


def locate(config: RunConfig) -> Path:
    """The folder that a run or a recipe with this configuration writes to; nothing is created.

    Raises:
        ConfigError: the folder holds another run and `resume` does not say to continue it.
    """
    root = _root(config)
    if config.run_dir is None:
        begun = stage_folders if config.recipe.stages else _checkpoints
        runs = sorted(root.glob("*")) if config.resume is Resume.auto else []
        unfinished = [path for path in runs if begun(path) and not is_finished(path, if_damaged=True)]
        path = unfinished[-1] if unfinished else _fresh_path(root)
        _check_writable(path, "output_root", config.output_root)
        return path
    path = Path(config.run_dir).expanduser()
    _check_writable(path, "run_dir", config.run_dir)
    used = path.is_dir() and any(item.name != ".lock" for item in path.iterdir())
    if used and config.resume is Resume.never:
        fix = "holds another run; choose another folder, or resume=auto to continue it"
        raise ConfigError(Refusal("run_dir", path, fix))
    if used and is_finished(path):
        raise ConfigError(Refusal("run_dir", path, "holds a run that is completed; choose another folder"))
    return path


def _root(config: RunConfig) -> Path:
    return Path(config.output_root).expanduser() / config.name


def _check_writable(path: Path, key: str, value: str) -> None:
    """Refuse a folder that could not be made or written; nothing is created.

    Raises:
        ConfigError: naming the part of the path that is in the way.
    """
    there = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise ConfigError(Refusal(key, value, f"{there} is a file, so there can be no folder {path}; choose another"))
    read_only = os.statvfs(there).f_flag & os.ST_RDONLY or not os.access(there, os.W_OK | os.X_OK)
    if read_only or there.is_relative_to("/proc") or there.is_relative_to("/sys"):
        raise ConfigError(Refusal(key, value, f"{there} cannot be written to; choose a folder that can"))


def check_identity(path: Path, config: DictConfig, flag: str = "resume") -> None:
    """Refuse to resume a run under another meaning.

    Args:
        flag: of the fields that must be the same: "resume", or "finished" for a stage that is over.

    Raises:
        ConfigError: naming each setting that differs from the folder's config.yaml.
    """
    stored_file = path / "config.yaml"
    if not stored_file.is_file():
        return
    stored = OmegaConf.create(read_settings(path))
    plain = cast(DictConfig, OmegaConf.create(OmegaConf.to_yaml(config, resolve=True)))
    _check_origin(path, stored, plain)
    refusals = Refusals()
    for key in kept_keys(RunConfig, flag):
        before, now = OmegaConf.select(stored, key), OmegaConf.select(plain, key)
        refusals += _differences(key, before, now, stored_file)
    refusals.raise_all()


def _check_origin(path: Path, stored: DictConfig, config: DictConfig) -> None:
    """Refuse to continue what is not of the same kind."""
    if any(OmegaConf.select(stored, key) is not None for key in RENAMED):
        fix = (
            "begun by an older version, whose settings had other names; start anew in another run_dir, or continue "
            "with the version that began it"
        )
        raise ConfigError(Refusal("run_dir", path, fix))
    if bool(OmegaConf.select(stored, STAGES_KEY)) != bool(OmegaConf.select(config, STAGES_KEY)):
        fix = "of a recipe and a plain run, it holds one and this is the other; use another folder"
        raise ConfigError(Refusal("run_dir", path, fix))


def kept_keys(settings: type, flag: str, prefix: str = "") -> Iterator[str]:
    """The keys of all fields that say by a flag of `setting` that their value may not change."""
    hints = get_type_hints(settings)
    for item in fields(settings):
        if not item.metadata.get(flag, True):
            yield prefix + item.name
        elif is_dataclass(hints[item.name]):
            yield from kept_keys(cast(type, hints[item.name]), flag, f"{prefix}{item.name}.")


def _differences(key: str, before: Any, now: Any, stored_file: Path) -> Iterator[Refusal]:
    if isinstance(before, DictConfig) and isinstance(now, DictConfig):
        for name in map(str, {**before, **now}):
            yield from _differences(f"{key}.{name}", before.get(name), now.get(name), stored_file)
    elif before != now:
        fix = f"was {before!s} in {stored_file}; a resumed run keeps it: restore the value or start anew"
        yield Refusal(key, now, fix)


def open_run_directory(config: RunConfig, composed: DictConfig) -> RunDirectory:
    """Create or continue the run's folder and take its lock.

    Raises:
        ConfigError: in use, or holding something else.
    """
    path = locate(config)
    path.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    check_identity(path, composed)
    directory = RunDirectory(path, lock, _changes(path, composed))
    directory.logs.mkdir(exist_ok=True)
    directory.checkpoints.mkdir(exist_ok=True)
    directory.recover_replaced()
    directory.write_config(composed)
    return directory


def _changes(path: Path, composed: DictConfig) -> list[str]:
    """Say which settings differ from those that the folder's run was last started with."""
    stored_file = path / "config.yaml"
    if not stored_file.is_file():
        return []
    before = OmegaConf.create(read_settings(path))
    now = cast(DictConfig, OmegaConf.create(OmegaConf.to_yaml(composed, resolve=True)))
    differ = [
        refusal
        for name in map(str, {**before, **now})
        if name not in _OF_A_START
        for refusal in _differences(name, before.get(name), now.get(name), stored_file)
    ]
    return [f"{item.key} is {item.value} from here on, and was {OmegaConf.select(before, item.key)}" for item in differ]


def locate_diagnosis(config: RunConfig) -> Path:
    """A folder beside the runs of the same name; nothing is created.

    Raises:
        ConfigError: `run_dir` is set and holds something.
    """
    if config.run_dir is not None:
        return locate(config)
    path = _fresh_path(_root(config) / "diagnosis")
    _check_writable(path, "output_root", config.output_root)
    return path


def open_diagnosis_directory(path: Path, composed: DictConfig) -> RunDirectory:
    """Create the folder of a diagnosis and take its lock."""
    path.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(path, _lock(path))
    directory.logs.mkdir(exist_ok=True)
    directory.write_config(composed)
    return directory


def open_recipe_directory(path: Path, composed: DictConfig, stages: Sequence[str]) -> RunDirectory:
    """Create or continue a recipe's folder and take its lock; every stage has a folder of its own inside.

    Args:
        path: as `locate` gave it.
        stages: the names of their folders.

    Raises:
        ConfigError: in use, or holding something else, stages of another recipe among it.
    """
    path.mkdir(parents=True, exist_ok=True)
    directory = RunDirectory(path, _lock(path))
    if (path / "config.yaml").is_file():  # each stage checks its own settings
        _check_origin(path, OmegaConf.create(read_settings(path)), composed)
    foreign = [folder.name for folder in stage_folders(path) if folder.name not in stages]
    if foreign:
        fix = (
            f"holds {', '.join(foreign)}, which is no stage of this recipe ({', '.join(stages)}); choose another "
            "folder, or resume with the recipe it began with"
        )
        raise ConfigError(Refusal("run_dir", path, fix))
    directory.write_config(composed)
    return directory
