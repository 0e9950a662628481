"""Choices that can be added to: each name in a config stands for something that says itself what it needs and does.

    BACKENDS: Registry[Backend] = Registry("teacher.backend")
    BACKENDS.add("transformers", Transformers())

Packages of users add theirs in a module that an entry point of the group `tutelage.extensions` names. Every process
that looks a name up has loaded those modules before, so a name that the driver knows is known to each worker.
"""

import functools
from collections.abc import Iterator
from importlib.metadata import EntryPoints, entry_points
from typing import Generic, TypeVar

from tutelage.settings import Refusal

GROUP = "tutelage.extensions"
T = TypeVar("T")
_loaded: set[str] = set()


class Registry(Generic[T]):
    """What can be chosen for one config key, by name."""

    def __init__(self, key: str) -> None:
        """
        Args:
            key: full name of the setting that chooses, for messages.
        """
        self.key = key
        self._items: dict[str, T] = {}

    def add(self, name: str, item: T) -> T:
        """Let a name stand for an item.

        Raises:
            ValueError: the name stands for another one already.
        """
        if self._items.setdefault(name, item) is not item:
            raise ValueError(f"{self.key}: {name!r} is taken; choose another name")
        return item

    def __getitem__(self, name: str) -> T:
        """The item of a name that `refusal` has nothing against."""
        load_extensions()
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        load_extensions()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        load_extensions()
        return iter(self._items)

    def refusal(self, name: str, key: str | None = None) -> Refusal | None:
        """What is wrong with a choice; None: nothing.

        Args:
            key: full name of the setting, where it is another than the registry's.
        """
        if name in self:
            return None
        return Refusal(key or self.key, name, f"is none of {', '.join(self)}")


def load_extensions() -> None:
    """Import the modules of installed packages that add choices, each once in a process.

    Raises:
        ValueError: one of them cannot be imported; it is named.
    """
    for point in _extensions():
        if point.value in _loaded:
            continue
        _loaded.add(point.value)  # before the import, which may look up names itself
        try:
            point.load()
        except Exception as error:  # code of a user's, which may raise anything
            _loaded.discard(point.value)
            package = point.dist.name if point.dist else "a package"
            raise ValueError(
                f"{GROUP}: {point.value} of {package} cannot be imported: {error!r}; mend it, or uninstall {package}"
            ) from error


@functools.cache
def _extensions() -> EntryPoints:
    """The entry points of all installed packages; to read them takes tens of milliseconds."""
    return entry_points(group=GROUP)
