"""A folder of a run's own for what its processes would leave in the system's: sockets, Ray's session, temporary files.

Whoever is killed tidies nothing up. The driver removes the folder when it leaves its cluster; where the driver itself
was killed, the next one that starts does.
"""

import fcntl
import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_PREFIX = "tutelage-"
_LONGEST = 21  # letters of a folder below which Ray's sockets have names that the system takes (107)
RAY = "r"  # its folder in ours, which it opens to everybody; sockets have no room for a longer name
_LOCK = "in_use"  # held by the driver while it lives; as old as the folder
_SEMAPHORES = "sem.[lm]*"  # of multiprocessing and loky
_COMPILED = "TORCHINDUCTOR_CACHE_DIR"  # which torch keeps among temporary files, for later processes too


class Scratch:
    """The folder, and the environment that leads this process and its children to it until `remove`."""

    def __init__(self) -> None:
        """Make it, and tidy up after drivers that were killed.

        Raises:
            OSError: the system's folder for temporary files cannot be written.
        """
        system = Path(tempfile.gettempdir())
        if len(str(system)) > _LONGEST:
            system = Path("/tmp")
        for folder in system.glob(f"{_PREFIX}*/{RAY}"):
            if [path.name for path in folder.parent.iterdir()] == [RAY]:  # made anew by whoever outlived its removal
                shutil.rmtree(folder.parent, ignore_errors=True)
        for lock in system.glob(f"{_PREFIX}*/{_LOCK}"):
            with suppress(OSError), lock.open("r+") as file:  # another user's, or in use
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.parent)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=system))
        self._lock = (self.path / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        compiled = os.environ.get(_COMPILED, str(system / f"torchinductor_{os.getuid()}"))
        self._before = {name: os.environ.get(name) for name in ("TMPDIR", _COMPILED)}
        os.environ |= {"TMPDIR": str(self.path), _COMPILED: compiled}
        tempfile.tempdir = None  # it remembers

    def remove(self) -> None:
        """Remove it with all that is in it, and the semaphores that nobody uses any more."""
        for name, value in self._before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None
        _remove(self.path)
        self._lock.close()


def _remove(folder: Path) -> None:
    """Remove a driver's folder, and its semaphores with it."""
    lock = folder / _LOCK
    if not lock.exists():
        return
    since = lock.stat().st_mtime
    for _ in range(5):  # somebody may still be ending
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.2)
    _unlink_semaphores(since)


def _unlink_semaphores(since: float) -> None:
    """Unlink those of this user that are younger and that no process has mapped: theirs was killed."""
    found = {}
    for path in Path("/dev/shm").glob(_SEMAPHORES):
        with suppress(OSError):
            status = path.stat()
            if status.st_uid == os.getuid() and status.st_mtime >= since:
                found[status.st_ino] = path
    if not found:
        return
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):  # it has ended, or is another user's
            for line in maps.read_text().splitlines():
                if "/dev/shm/sem." in line:
                    found.pop(int(line.split()[4]), None)
    for path in found.values():
        path.unlink(missing_ok=True)
