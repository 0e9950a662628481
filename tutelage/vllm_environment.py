"""What vLLM's own processes inherit: settings that it takes from the environment only, and whose engine they are."""

import os
import signal
import threading
import time

from vllm.platforms import current_platform

_OWNER = "TUTELAGE_ENGINE_OWNER"  # pid of the process whose engine it is
_LOOK_SECONDS = 1.0


def prepare_environment(threads: int, in_process: bool, enforce_eager: bool) -> None:
    """Set what vLLM and its child processes will read, before the first engine of this process.

    Args:
        threads: of the model, on CPU.
        in_process: on CPU: let the model run in the engine's own process, since one that waits for another spins on a
            core.
        enforce_eager: on CPU: compile nothing.
    """
    os.environ[_OWNER] = str(os.getpid())
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    if not current_platform.is_cpu():
        return
    # Otherwise vLLM pins each engine to the cores that it believes free, the same ones for every engine.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if in_process:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if enforce_eager:
        # vLLM's sampler compiles a small function even so: 25 s at the first request of a fresh machine.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


def end_with_owner() -> None:
    """A plugin of vLLM's: the process of an engine ends when the worker is gone that started it, however that died."""
    owner = os.getppid()
    if os.environ.get(_OWNER) == str(owner):
        threading.Thread(target=_watch, args=(owner,), daemon=True).start()


def _watch(owner: int) -> None:
    while os.getppid() == owner:
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
