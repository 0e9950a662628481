"""One process of the learner's group."""

import os
import warnings
from datetime import timedelta

import deepspeed
import torch
import torch.distributed


def join_group(threads: int, timeout_s: float) -> torch.device:
    """Enter the group that RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT describe.

    Args:
        threads: of torch in this process, when it computes on CPU.
        timeout_s: of every collective; a rank that waits longer fails.

    Returns:
        The device of this rank.
    """
    torch.set_num_threads(threads)
    on_gpu = torch.cuda.is_available()
    # DeepSpeed would compile its shared-memory all-reduce, which only its inference path calls.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    # DeepSpeed 0.19 calls names that torch 2.13 has renamed, at every collective.
    warnings.filterwarnings("ignore", r"`torch\.distributed\..*is deprecated", FutureWarning)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=timeout_s),
    )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
