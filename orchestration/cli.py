"""What every command shares: one clear message for a bad configuration, and its exit code."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import NoReturn, get_type_hints

import datasets
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from orchestration.config.schema import RunConfig
from tutelage.settings import ConfigError


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for item in fields(cls):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")


def _nearest_key(key: str) -> str | None:
    every = list(_keys(RunConfig))
    settings = [name for name in every if not any(other.startswith(f"{name}.") for other in every)]
    group, _, leaf = key.rpartition(".")
    siblings = {name.rpartition(".")[2]: name for name in settings if name.rpartition(".")[0] == group}
    near = difflib.get_close_matches(leaf, siblings, n=1, cutoff=0.6)
    if near:
        return siblings[near[0]]
    near = difflib.get_close_matches(key, settings, n=1, cutoff=0.8)
    return near[0] if near else None


def _unknown_key_message(key: str) -> str:
    nearest = _nearest_key(key)
    group = key.rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in _keys(RunConfig) if group and name.rpartition(".")[0] == group]
    advice = "python -m orchestration.launch --cfg job lists every key"
    if siblings:
        advice = f"{group} has {', '.join(siblings)}"
    if nearest:
        advice = f"did you mean {nearest}?"
    return f"{key}: there is no such configuration key; {advice}"


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def explain(error: BaseException) -> str:
    """The message a person needs for an error of Hydra, OmegaConf or our own checks."""
    text = str(error)
    override = re.search(r"Could not override '([^']+)'", text)
    cause = _innermost(error)
    if override and re.search(r"not in (struct|'?\w+'?)|Key '.*' is not in struct|does not exist", f"{text} {cause}"):
        return _unknown_key_message(override.group(1).lstrip("+"))
    if isinstance(cause, OmegaConfBaseException) and getattr(cause, "full_key", None):
        return f"{cause.full_key}: {cause.msg.splitlines()[0] if cause.msg else cause}"
    group = re.search(r"Could not find '([^'/]+)/([^']+)'", text)
    options = re.search(r"Available options in '[^']+':\n((?:\t.*\n?)+)", text)
    if group and options:
        names = [line.strip() for line in options.group(1).splitlines()]
        near = difflib.get_close_matches(group.group(2), names, n=1, cutoff=0.0)
        return f"{group.group(1)}={group.group(2)}: unknown; did you mean {near[0]}? There are {', '.join(names)}"
    missing_group = re.search(r"Could not find (?:a config group|config group|.*override) '?([\w@/]+)'?", text)
    if missing_group:
        return _unknown_key_message(missing_group.group(1))
    return text


def _fail(error: BaseException) -> NoReturn:
    print(f"error: {explain(error)}", file=sys.stderr)
    sys.exit(1)


@contextmanager
def refusing_wrong_settings() -> Iterator[None]:
    """Print one message and exit 1 for what the user can mend: settings, files, models, prompts.

    Inside Hydra's task, since Hydra prints a line of its own about errors that leave it.
    """
    try:
        yield
    except (OmegaConfBaseException, ValueError) as error:
        _fail(error)


def run(main: Callable[[], None]) -> None:
    """Run a Hydra main; a composition that fails prints one message and exits 1."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach us instead of Hydra's own printing
    os.environ.setdefault("WANDB_SILENT", "true")
    datasets.disable_progress_bars()  # prompts are read in a blink
    try:
        main()
    except (HydraException, OmegaConfBaseException, ConfigError) as error:
        _fail(error)
