"""What it costs to bring SmolLM2-135M's weights from the learner to a rollout worker.

    python -m benchmarks.weight_sync [--json PATH]

A rollout worker with SmolLM2-135M in bfloat16, one thread; the publisher runs in this process, without sharding, as
rank 0 of the learner does. A transfer is everything from `publish` to its return (freezing the engine, copying,
hashing, the calls through Ray, verifying, clearing the cache, resuming) less what vLLM itself spends on loading and
repacking. It is held against a copy of the same bytes between two buffers in use (memcpy), measured in turn with it.
"""

import argparse
import statistics
import time
from pathlib import Path

import ray
import torch

from benchmarks.report import finish, print_table
from learner.config import LearnerConfig
from learner.records import PublishReport
from learner.weights.publisher import WeightPublisher
from orchestration.prepare.checkpoints import resolve_model
from rollout.config import RolloutConfig
from rollout.worker import RolloutWorker
from tutelage.lm.packed import load_causal_lm

MODEL = "smollm2-135m-instruct"
REPEATS = 9
DEADLINE = 300.0


def memcpy_seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    started = time.perf_counter()
    target.copy_(source)
    return time.perf_counter() - started


def transfer_seconds(report: PublishReport) -> float:
    if report.engine_seconds is None:
        raise RuntimeError("the engine did not say how long it took to load the weights")
    return report.seconds - report.engine_seconds


def measure() -> tuple[list[PublishReport], list[float]]:
    """Publications and copies in turn; the first of each only warms up."""
    path = resolve_model(MODEL)
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    actor = ray.remote(RolloutWorker).options(num_cpus=1, runtime_env=one_thread)
    worker = actor.remote(str(path), RolloutConfig(), "shared_memory", 0)
    model = load_causal_lm(str(path), torch.bfloat16)
    publisher = WeightPublisher(model, 0, LearnerConfig(zero_stage=0), [worker], DEADLINE)
    reports, copies = [], []
    for version in range(1, REPEATS + 2):
        reports.append(publisher.publish(version))
        if version == 1:
            source = torch.ones(reports[0].nbytes, dtype=torch.uint8)
            target = torch.ones_like(source)
        copies.append(memcpy_seconds(source, target))
    ray.get(worker.shutdown.remote(), timeout=DEADLINE)
    return reports[1:], copies[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    reports, copies = measure()
    ray.shutdown()
    transfers = [transfer_seconds(report) for report in reports]
    columns = {
        "memcpy": copies,
        "transfer": transfers,
        "  of it writing": [report.write_seconds or 0.0 for report in reports],
        "vLLM's own reload": [report.engine_seconds or 0.0 for report in reports],
        "total": [report.seconds for report in reports],
    }
    gigabytes = reports[0].nbytes / 1e9
    rows = [
        (name, *(1e3 * f(seconds) for f in (min, statistics.median, max)), gigabytes / statistics.median(seconds))
        for name, seconds in columns.items()
    ]
    title = f"Weight sync of {MODEL}, {gigabytes:.3f} GB, {len(reports)} updates"
    print_table(title, ("", "min ms", "median ms", "max ms", "GB/s"), rows)
    ratios = [copy / transfer for copy, transfer in zip(copies, transfers, strict=True)]
    figures = {
        "bandwidth_over_memcpy": statistics.median(ratios),
        "seconds_total": statistics.median(columns["total"]),
    }
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
