"""Names that may mean a local path or a repository of the Hugging Face hub, and what the hub's errors mean."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

from tutelage.settings import ConfigError, Refusal


@contextmanager
def explained(key: str, value: str, kind: str) -> Iterator[None]:
    """Turn the hub's errors into a ConfigError that names the setting and the fix.

    Args:
        key, value: of the setting, as student.model and owner/name.
        kind: what was looked for: "model" or "dataset".
    """
    fixes: dict[
        type[Exception], str
    ] = {  # the first that fits: a gated repository counts as one that was not found, too
        HFValidationError: "neither a local path nor a valid hub name",
        GatedRepoError: f"this {kind} is gated; accept its terms on the hub and set HF_TOKEN",
        RepositoryNotFoundError: f"no such {kind} on the hub, and no such path here; check the name (private ones need "
        "HF_TOKEN)",
        LocalEntryNotFoundError: "no such path here, not in the local hub cache, and the hub cannot be reached; give a "
        f"local {kind}, or go online",
    }
    try:
        yield
    except tuple(fixes) as error:
        fix = next(fix for error_type, fix in fixes.items() if isinstance(error, error_type))
        raise ConfigError(Refusal(key, value, fix)) from error


_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def means_local_path(name: str, suffixes: tuple[str, ...] = ()) -> bool:
    """Tell whether `name` exists here or can only have been meant as a path.

    The latter: it has not the form of a hub name (`name` or `owner/name`), or it starts like a path, or
    its suffix is one of `suffixes`, or the directory that should contain it exists.
    """
    path = Path(name).expanduser()
    return (
        path.exists()
        or name.startswith((".", "/", "~"))
        or _HUB_NAME.fullmatch(name) is None
        or path.suffix.lower() in suffixes
        or (len(path.parts) > 1 and path.parent.is_dir())
    )
