"""What every command shares: one clear message for a bad configuration, and its exit code."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import datasets
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from orchestration.config import RunConfig


def _keys(cls: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(cls)
    for item in fields(cls):
        yield prefix + item.name
        if is_dataclass(hints[item.name]):
            yield from _keys(hints[item.name], f"{prefix}{item.name}.")


def _nearest_key(key: str) -> str | None:
    known = list(_keys(RunConfig))
    by_path = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if by_path:
        return by_path[0]
    leaf = key.rsplit(".", 1)[-1]
    by_leaf = difflib.get_close_matches(leaf, [k.rsplit(".", 1)[-1] for k in known], n=1, cutoff=0.7)
    return next((k for k in known if by_leaf and k.rsplit(".", 1)[-1] == by_leaf[0]), None)


def _unknown_key_message(key: str) -> str:
    nearest = _nearest_key(key)
    advice = f"did you mean {nearest}?" if nearest else "python -m orchestration.launch --cfg job lists every key"
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


def run(main: Callable[[], None]) -> None:
    """Run a Hydra main; print one message and exit 1 for anything the user can mend."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach us instead of Hydra's own printing
    os.environ.setdefault("WANDB_SILENT", "true")
    datasets.disable_progress_bars()  # prompts are read in a blink
    try:
        main()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        sys.exit(1)
