"""Settings that vLLM takes from the environment only; its processes inherit them."""

import os

from vllm.platforms import current_platform


def prepare_environment(threads: int, in_process: bool, enforce_eager: bool) -> None:
    """Set what vLLM and its child processes will read, before the first engine of this process.

    Args:
        threads: of the model, on CPU.
        in_process: on CPU: let the model run in the engine's own process, since one that waits for another spins on a
            core.
        enforce_eager: on CPU: compile nothing.
    """
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
