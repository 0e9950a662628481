"""What it costs to bring SmolLM2-135M's weights from the learner to a rollout worker.

    python -m benchmarks.weight_sync [--json PATH]

A rollout worker with SmolLM2-135M in bfloat16, one thread; the publisher runs in this process, without sharding, as
rank 0 of the learner does. A transfer is everything from `publish` to its return (freezing the engine, copying,
hashing, the calls through Ray, verifying, clearing the cache, resuming) less what vLLM itself spends on loading and
repacking. It is held against a copy of the same bytes between two buffers in use (memcpy), measured in turn with it;
then the same through Ray's object store, as between nodes, though on this one.
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
from tutelage.settings import WeightTransfer

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


def measure() -> tuple[dict[WeightTransfer, list[PublishReport]], list[float]]:
    """Publications and copies in turn, first through shared memory, then as between nodes; the first only warms up."""
    path = resolve_model(MODEL)
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    actor = ray.remote(RolloutWorker).options(num_cpus=1, runtime_env=one_thread)
    worker = actor.remote(str(path), RolloutConfig(), WeightTransfer.shared_memory.backend, 0)
    model = load_causal_lm(str(path), torch.bfloat16)
    reports: dict[WeightTransfer, list[PublishReport]] = {}
    copies: list[float] = []
    for index, transfer in enumerate((WeightTransfer.shared_memory, WeightTransfer.object_store)):
        config = LearnerConfig(zero_stage=0, weight_transfer=transfer)
        publisher = WeightPublisher(model, 0, config, {"rollout-0": worker}, DEADLINE)
        first = 1 + index * (REPEATS + 1)
        warm_up = publisher.publish(first)
        source = torch.ones(warm_up.nbytes, dtype=torch.uint8)
        target = torch.ones_like(source)
        reports[transfer] = []
        for version in range(first + 1, first + REPEATS + 1):
            reports[transfer].append(publisher.publish(version))
            copies.append(memcpy_seconds(source, target))
        publisher.close()
    ray.get(worker.shutdown.remote(), timeout=DEADLINE)
    return reports, copies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    reports, copies = measure()
    ray.shutdown()
    near, far = reports[WeightTransfer.shared_memory], reports[WeightTransfer.object_store]
    columns = {
        "memcpy": copies,
        "shared memory": [transfer_seconds(report) for report in near],
        "  of it writing": [report.write_seconds or 0.0 for report in near],
        "object store": [transfer_seconds(report) for report in far],
        "vLLM's own reload": [report.engine_seconds or 0.0 for report in (*near, *far)],
        "total, shared memory": [report.seconds for report in near],
        "total, object store": [report.seconds for report in far],
    }
    gigabytes = near[0].nbytes / 1e9
    rows = [
        (name, *(1e3 * f(seconds) for f in (min, statistics.median, max)), gigabytes / statistics.median(seconds))
        for name, seconds in columns.items()
    ]
    title = f"Weight sync of {MODEL}, {gigabytes:.3f} GB, {len(near)} updates of each kind"
    print_table(title, ("", "min ms", "median ms", "max ms", "GB/s"), rows)
    medians = {name: statistics.median(seconds) for name, seconds in columns.items()}
    figures = {
        "bandwidth_over_memcpy": medians["memcpy"] / medians["shared memory"],
        "object_store_over_shared_memory": medians["object store"] / medians["shared memory"],
        "seconds_total": medians["total, shared memory"],
    }
    finish(figures, arguments.json)


if __name__ == "__main__":
    main()
