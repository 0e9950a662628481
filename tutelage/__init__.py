"""The ground: what all rooms share, and the few names that users' own code implements or reads."""

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tutelage.verifier import Verifier

__all__ = ["Verifier", "__version__"]


def _version() -> str:
    try:
        return version("tutelage")
    except PackageNotFoundError:  # run from a checkout
        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])


__version__ = _version()
