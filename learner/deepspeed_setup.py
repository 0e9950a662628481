"""From the learner's configuration to a DeepSpeed engine."""

import os
import socket
import warnings
from datetime import timedelta
from functools import partial
from typing import Any

import deepspeed
import psutil
import torch
import torch.distributed
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from learner.config import LearnerConfig
from tutelage.settings import DType

_BUCKET_ELEMENTS = 50_000_000  # of a collective; DeepSpeed's own 5e8 reserves gigabytes


def initialise(module: nn.Module, config: LearnerConfig, total_steps: int) -> Any:
    """Wrap `module`; the process group exists already. `total_steps` is the length of the schedule."""
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.betas[0], config.betas[1]),
        weight_decay=config.weight_decay,
        fused=True,  # one pass over the state, on CPU too
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=partial(schedule, config, total_steps),
        config=_settings(config),
    )
    return engine


def schedule(config: LearnerConfig, total_steps: int, optimizer: Optimizer) -> LRScheduler:
    """The learning rate of every step: (s + 1) / (w + 1) of the whole at step s of w that warm up, and then its curve.

    transformers' schedules begin at 0, where a step would change nothing; this is theirs of one step more, begun at
    its second. It follows from the step alone, so a resumed run goes on with it.
    """
    aside = SGD([torch.zeros(1)], lr=1.0)  # transformers gives its curves as schedulers of an optimizer only
    curve = get_scheduler(config.schedule.value, aside, config.warmup_steps + 1, total_steps + 1).lr_lambdas[0]
    return LambdaLR(optimizer, lambda step: curve(step + 1))


def _settings(config: LearnerConfig) -> dict[str, Any]:
    return {
        # The engine accumulates by hand and normalises the loss itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype is DType.bfloat16},
        # DeepSpeed has no float32 accumulation for bf16 parameters without ZeRO.
        "data_types": {"grad_accum_dtype": "fp32" if config.zero_stage else None},
        "communication_data_type": "fp32",
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": _BUCKET_ELEMENTS,
            "allgather_bucket_size": _BUCKET_ELEMENTS,
        },
        "steps_per_print": None,
    }


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
    backend, timeout = "nccl" if on_gpu else "gloo", timedelta(seconds=timeout_s)
    alone = os.environ["WORLD_SIZE"] == "1"
    interface = "lo" if alone else _interface_towards(os.environ["MASTER_ADDR"])
    if interface is not None:
        # Each would listen where the host's name points to: on many machines an address that no other node reaches.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
    if alone and not torch.distributed.is_initialized():
        # One rank needs to meet nobody: the store of env:// would listen on every interface.
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1, timeout=timeout)
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
    )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")


def _interface_towards(host: str) -> str | None:
    """The network interface from which this node reaches another one, or itself; None where nothing says so."""
    (family, kind, _, _, address), *_ = socket.getaddrinfo(host, 1, type=socket.SOCK_DGRAM)
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # of datagrams: nothing is sent
        ours = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(known.address.partition("%")[0] == ours for known in addresses):
            return name
    return None
