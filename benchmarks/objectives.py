"""Peak memory and CPU time of the fused head against the plain path and against other libraries' chunked losses.

    python -m benchmarks.objectives [--json PATH] [--quick]

Plain: `logits = hidden @ head.T` for all tokens, log-softmax, the formula, autograd. Fused: the same loss and
gradients through `learner.head.fused_head_loss`, which also gives entropies, both KLs and the overlap of the two top
16. Every path runs in a process of its own, in float32 on one thread; memory is the peak resident set beyond inputs
and gradients; all paths of an objective must agree in loss and gradient norm. `--quick` measures 1,024 tokens of the
smaller model only. What each path is: `benchmarks.objective_paths`.
"""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.objective_paths import PathCost
from benchmarks.report import finish, print_table

PEER_PYTHON = Path(".venv-bench/bin/python")
PEERS = ("trl", "verl")
MIB = 2**20
AGREEMENT = 1e-4  # relative


@dataclass(frozen=True)
class Size:
    tokens: int
    vocabulary: int
    hidden: int
    repeats: int

    @property
    def name(self) -> str:
        return f"{self.tokens} x {self.vocabulary}"


SHORT, LONG = Size(1024, 49_152, 576, 3), Size(4096, 49_152, 576, 2)  # SmolLM2-135M's shapes
LARGE = Size(1024, 151_936, 896, 2)  # Qwen2.5-0.5B's
VERY_LONG = Size(16_384, 49_152, 576, 0)
AGAINST_PLAIN = ("reverse_kl", "forward_kl", "jsd", "student_topk")
AGAINST_TRL, AGAINST_VERL = ("reverse_kl", "forward_kl", "jsd"), ("teacher_topk",)


@dataclass(frozen=True)
class Measurement:
    path: str
    objective: str
    size: Size

    def run(self) -> PathCost:
        """Measure in a process of its own."""
        size = self.size
        sizes = (size.tokens, size.vocabulary, size.hidden, size.repeats)
        python = PEER_PYTHON if self.path in PEERS else sys.executable
        command = [python, "-m", "benchmarks.objective_paths", self.path, self.objective, *sizes]
        result = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, check=True, text=True)
        return PathCost(**json.loads(result.stdout.splitlines()[-1]))


Results = dict[Measurement, PathCost]


def jobs(quick: bool, peers: bool) -> list[Measurement]:
    """What is measured, in order."""
    compared = (SHORT,) if quick else (SHORT, LONG, LARGE)
    both = [Measurement(path, name, size) for size in compared for name in AGAINST_PLAIN for path in ("plain", "fused")]
    sampled = [Measurement("fused", "sampled", size) for size in compared]
    flat = [] if quick else [Measurement("fused", name, VERY_LONG) for name in ("reverse_kl", "student_topk")]
    topk = [Measurement("fused", name, SHORT) for name in AGAINST_VERL if peers]
    trl = [Measurement("trl", name, SHORT) for name in AGAINST_TRL if peers]
    verl = [Measurement("verl", name, SHORT) for name in AGAINST_VERL if peers]
    return both + sampled + flat + topk + trl + verl


def check_agreement(results: Results) -> None:
    """Paths that compute different things cannot be compared.

    Raises:
        RuntimeError: naming both.
    """
    for job, measured in results.items():
        other = Measurement("fused", job.objective, job.size)
        for quantity in ("loss", "grad_norm"):
            ours, theirs = getattr(results[other], quantity), getattr(measured, quantity)
            if not math.isclose(ours, theirs, rel_tol=AGREEMENT):
                raise RuntimeError(f"{quantity} of {other} is {ours} and of {job} {theirs}")


def ratio(results: Results, quantity: str, over: Measurement, under: Measurement) -> float:
    return getattr(results[over], quantity) / getattr(results[under], quantity)


def worst(results: Results, quantity: str, path: str, size: Size) -> float:
    """The largest ratio of the fused path over `path` among the objectives that `path` was measured with."""
    there = [job for job in results if job.path == path and job.size == size]
    return max(ratio(results, quantity, Measurement("fused", job.objective, size), job) for job in there)


def figures(results: Results) -> dict[str, float]:
    found = {}
    for size, name in ((SHORT, "1024"), (LONG, "4096"), (LARGE, "large_vocabulary")):
        if Measurement("plain", AGAINST_PLAIN[0], size) in results:
            found[f"peak_memory_over_plain_{name}"] = worst(results, "peak_bytes", "plain", size)
            found[f"cpu_seconds_over_plain_{name}"] = worst(results, "cpu_seconds", "plain", size)
            topk, sampled = (Measurement("fused", objective, size) for objective in ("student_topk", "sampled"))
            found[f"topk_over_sampled_{name}"] = ratio(results, "cpu_seconds", topk, sampled)
    for objective in ("reverse_kl", "student_topk"):
        if Measurement("fused", objective, VERY_LONG) in results:
            ends = (Measurement("fused", objective, size) for size in (VERY_LONG, SHORT))
            found[f"peak_memory_16384_over_1024_{objective}"] = ratio(results, "peak_bytes", *ends)
    for peer in PEERS:
        if any(job.path == peer for job in results):
            found[f"peak_memory_over_{peer}"] = worst(results, "peak_bytes", peer, SHORT)
            found[f"cpu_seconds_over_{peer}"] = worst(results, "cpu_seconds", peer, SHORT)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="1,024 tokens of the smaller model only")
    arguments = parser.parse_args()
    if not PEER_PYTHON.exists():
        print(f"{PEER_PYTHON} is missing, so nothing is compared with other libraries; `make bench` builds it")
    results = {job: job.run() for job in jobs(arguments.quick, PEER_PYTHON.exists())}
    check_agreement(results)
    rows = [
        [job.objective, job.size.name, job.path, measured.peak_bytes / MIB, measured.cpu_seconds or "-"]
        for job, measured in results.items()
    ]
    columns = ["objective", "tokens x vocabulary", "path", "peak MiB", "CPU s"]
    print_table("Loss and gradients from hidden states, float32, one thread", columns, rows)
    finish(figures(results), arguments.json)


if __name__ == "__main__":
    main()
