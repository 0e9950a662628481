"""What every command shares: one clear message for a bad configuration, and its exit code."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import datasets
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from orchestration.config.keys import unknown_key
from tutelage.settings import ConfigError, Refusal

# What Hydra says of a key that the schema has not: in an override, in a deletion, in a YAML file or a dictionary.
_UNKNOWN_KEY = re.compile(
    r"Could not override '([^']+)'\.\s+To append to your config|'([\w.]+)' does not exist"
    r"|Key '\w+' not in '\w+'\s+full_key: (\S+)"
)


def explain(error: BaseException) -> str:
    """The message a person needs for an error of Hydra, OmegaConf or our own checks."""
    text, cause = str(error), error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    unknown = _UNKNOWN_KEY.search(f"{text}\n{cause}")
    if unknown:
        key, value = (unknown[1] or unknown[2] or unknown[3]).lstrip("+"), re.search(r"use \+[^=\n]+=(.*)", text)
        return str(Refusal(key, value[1], unknown_key(key, value[1]))) if value else f"{key}: {unknown_key(key)}"
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
        return f"{missing_group.group(1)}: {unknown_key(missing_group.group(1))}"
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
