"""Whether a name in the config means something on this machine or something on the hub."""

import re
from pathlib import Path

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def means_local_path(name: str, suffixes: tuple[str, ...] = ()) -> bool:
    """True if `name` exists here or can only have been meant as a path.

    That is: it has not the form of a hub name (`name` or `owner/name`), or it starts like a path, or
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
