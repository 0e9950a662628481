"""What every command shares: one clear message for a bad configuration, and its exit code."""

import difflib
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import datasets
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from orchestration.config.keys import unknown_key
from tutelage.console import printable
from tutelage.errors import WorkerFailure
from tutelage.files import explained
from tutelage.settings import ConfigError, Refusal

# What Hydra says of a key that the schema has not: in an override, in a deletion, in a YAML file or a dictionary.
_UNKNOWN_KEY = re.compile(
    r"Could not override '([^']+)'\.\s+To append to your config|'([\w.]+)' does not exist"
    r"|Key '\w+' not in '\w+'\s+full_key: (\S+)"
)


def explain(error: BaseException) -> str:
    """The message a person needs for an error of Hydra, OmegaConf, the system or our own checks."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):  # some of Hydra's are both
        return explained(error)
    text, cause = str(error), error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, OverrideParseException):
        return _unparsed(cause)
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
        name = f"; to name the run write name={group.group(2)}" if group.group(1) == "experiment" else ""
        return f"{group.group(1)}={group.group(2)}: unknown; did you mean {near[0]}? There are {', '.join(names)}{name}"
    missing_group = re.search(r"Could not find (?:a config group|config group|.*override) '?([\w@/]+)'?", text)
    if missing_group:
        return f"{missing_group.group(1)}: {unknown_key(missing_group.group(1))}"
    return text


def _unparsed(error: OverrideParseException) -> str:
    """Say how an override has to be quoted, for the shell and for Hydra's grammar, where quoting is what it lacks."""
    key, _, value = error.override.partition("=")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    quoted = f'{key}="{escaped}"'
    try:
        OverridesParser.create().parse_override(quoted)
    except HydraException:
        return f"{error.override}: {str(error).splitlines()[0]}; write KEY=VALUE"
    return (
        f"{error.override}: blanks, quotes, braces, ~ and letters beyond ASCII mean something else in Hydra's grammar "
        f"unless they are quoted for it as well as for the shell; write {shlex.quote(quoted)}"
    )


def _fail(error: BaseException) -> NoReturn:
    print(f"error: {printable(explain(error))}", file=sys.stderr)
    sys.exit(1)


@contextmanager
def refusing_wrong_settings() -> Iterator[None]:
    """Print one message and exit 1 for what the user can mend: settings, files, models, prompts.

    Inside Hydra's task, since Hydra prints a line of its own about errors that leave it.
    """
    try:
        yield
    except (OmegaConfBaseException, ValueError, OSError) as error:
        _fail(error)


def run(main: Callable[[], None]) -> None:
    """Run a Hydra main; a composition that fails prints one message and exits 1."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # let errors reach us instead of Hydra's own printing
    os.environ.setdefault("WANDB_SILENT", "true")
    datasets.disable_progress_bars()  # prompts are read in a blink
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # of a terminal that has not every letter
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (HydraException, OmegaConfBaseException, ConfigError, OSError, WorkerFailure) as error:
        _fail(error)
