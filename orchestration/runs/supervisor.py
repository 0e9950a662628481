"""A driver in a process of its own, which is started again where it dies: killed, or ended by a Ray that died under it.

launch ─► this process ─► the driver ─► ends in order: its exit code
             ▲                └─ dies: once more, with resume=auto
             └──────────────────┘
"""

import atexit
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from orchestration.runs.run import TRY_AGAIN

_END = "TUTELAGE_DRIVER_END"  # the descriptor that a driver writes to when it ends in order
_FIRST_PAUSE = 1.0  # seconds before it is started again; then twice as long each time
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


def is_supervised() -> bool:
    """Whether this is a driver that another process starts again; from here on that one is told how it ends."""
    descriptor = os.environ.pop(_END, None)
    if descriptor is None:
        return False
    atexit.register(os.write, int(descriptor), b".")  # of an end in order: Ray's own, or a kill, pass it by
    return True


def supervise(arguments: Sequence[str], run_dir: Path, max_restarts: int) -> int:
    """Run `python -m orchestration.launch` until it ends in order; returns its exit code.

    Args:
        arguments: of the first start; the others continue what it began.
        run_dir: the folder that it writes to.
        max_restarts: after so many the next death is the end.
    """
    quoted = str(run_dir).replace("\\", "\\\\").replace("'", "\\'")
    command = [sys.executable, "-m", "orchestration.launch", *arguments, f"run_dir='{quoted}'"]
    for attempt in range(max_restarts + 1):
        exit_code, in_order = _run([*command, "resume=auto"] if attempt else command)
        if in_order and exit_code != TRY_AGAIN:
            return exit_code
        died = f"the driver died ({signal.Signals(-exit_code).name if exit_code < 0 else f'exit code {exit_code}'})"
        if attempt == max_restarts:
            print(f"error: {died} for the {attempt + 1}. time (recovery.max_restarts={max_restarts})", file=sys.stderr)
            break
        print(f"warning: {died}; it is started again and continues from its last checkpoint …", file=sys.stderr)
        time.sleep(_FIRST_PAUSE * 2**attempt)
    return 128 - exit_code if exit_code < 0 else exit_code or 1


def _run(command: Sequence[str]) -> tuple[int, bool]:
    """Run a driver; returns its exit code, and whether it ended in order."""
    ours, its = os.pipe()
    with open(ours, "rb") as end:
        driver = subprocess.Popen(
            command, pass_fds=(its,), env=os.environ | {_END: str(its)}, preexec_fn=_end_with_parent
        )
        os.close(its)
        before = (
            (signal.SIGINT, signal.signal(signal.SIGINT, signal.SIG_IGN)),  # a terminal sends it to the driver as well
            (signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: driver.terminate())),
        )
        exit_code = driver.wait()
        for number, handler in before:
            signal.signal(number, handler)
        os.set_blocking(ours, False)  # workers of it that are ending may still hold the other side
        return exit_code, bool(end.read(1))


def _end_with_parent() -> None:
    """In the driver: whoever supervises it is gone, so it ends as on any SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGTERM)
