"""Peak memory and CPU time of the fused head against the plain [tokens, vocabulary] path.

    python -m benchmarks.objectives [--json PATH]

Plain: `logits = hidden @ head.T` for all tokens, log-softmax, the top-k loss, autograd. Fused: the same loss
through `learner.head.fused_head_loss`, which also reports entropy and log-prob gaps. Both in float32 on one
thread, from SmolLM2's shapes. Each variant runs in a process of its own; memory is the peak resident set over
what was resident once the inputs were there.

Shape suffixes: R tokens, V vocabulary, d hidden size, K support ids.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.report import finish, print_table
from learner.config import LearnerConfig
from learner.head import fused_head_loss
from learner.objectives import ObjectiveConfig, Rows, build_objective
from learner.objectives.config import Importance, Realisation, Support

VOCABULARY, HIDDEN, K = 49_152, 576, 16
TOKENS = (1024, 4096)
OBJECTIVES = {
    "student_topk_reverse_kl": ObjectiveConfig(k=K),
    "sampled_reverse_kl": ObjectiveConfig(
        support=Support.sampled, realisation=Realisation.policy_gradient, importance=Importance.truncated
    ),
}
VARIANTS = ("plain", *OBJECTIVES)
REPEATS = 3
MIB = 2**20


def make_inputs(tokens: int) -> tuple[Tensor, Tensor, Rows]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, requires_grad=True)
    weight = torch.randn(VOCABULARY, HIDDEN).mul_(0.02).requires_grad_()
    targets = torch.randint(0, VOCABULARY, (tokens,))
    first = torch.randint(0, VOCABULARY - K, (tokens, 1))
    rows = Rows(
        target_ids=targets,
        sampling_logprobs=-5 * torch.rand(tokens),
        temperatures=torch.ones(tokens),
        teacher_logprobs=-5 * torch.rand(tokens),
        support_ids=first + torch.arange(K),
        support_teacher_logprobs=-3 - 5 * torch.rand(tokens, K),
    )
    return hidden, weight, rows


def plain(hidden: Tensor, weight: Tensor, rows: Rows) -> None:
    logp_RV = (hidden @ weight.T).log_softmax(-1)
    ids_RK, logq_RK = rows.support()
    logp_RK = logp_RV.gather(1, ids_RK)
    (logp_RK.exp() * (logp_RK.detach() - logq_RK)).sum().backward()


def fused(name: str) -> Callable[[Tensor, Tensor, Rows], None]:
    objective = build_objective(OBJECTIVES[name])
    chunk = LearnerConfig().head_chunk_tokens

    def run(hidden: Tensor, weight: Tensor, rows: Rows) -> None:
        loss, _ = fused_head_loss(hidden, weight, None, rows, objective, chunk)
        loss.backward()

    return run


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the peak)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure(variant: str, tokens: int) -> dict[str, float]:
    """Peak memory of a first pass, CPU seconds of the fastest of the `REPEATS` that follow."""
    torch.set_num_threads(1)
    inputs = make_inputs(tokens)
    run = plain if variant == "plain" else fused(variant)
    torch.mm(torch.ones(8, 8), torch.ones(8, 8))  # the matrix library's own workspace
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    run(*inputs)
    peak = resident("VmHWM") - before
    seconds = []
    for _ in range(REPEATS):
        for leaf in inputs[:2]:
            leaf.grad = None
        started = time.process_time()
        run(*inputs)
        seconds.append(time.process_time() - started)
    return {"peak_bytes": peak, "cpu_seconds": min(seconds)}


def in_own_process(variant: str, tokens: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.objectives", "--measure", variant, str(tokens)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(json_path: Path | None) -> None:
    results = {(v, n): in_own_process(v, n) for n in TOKENS for v in VARIANTS}
    rows = [
        [variant, tokens, result["peak_bytes"] / MIB, result["cpu_seconds"]]
        for (variant, tokens), result in results.items()
    ]
    print_table(
        f"Loss and gradients from hidden states: V = {VOCABULARY}, d = {HIDDEN}, one thread",
        ["path", "tokens", "peak MiB", "CPU s"],
        rows,
    )

    def ratio(quantity: str, over: str, under: str, tokens: int) -> float:
        return results[over, tokens][quantity] / results[under, tokens][quantity]

    topk, sampled = VARIANTS[1:]
    finish(
        {
            "peak_memory_over_plain_1024": ratio("peak_bytes", topk, "plain", 1024),
            "peak_memory_over_plain_4096": ratio("peak_bytes", topk, "plain", 4096),
            "cpu_seconds_over_plain": ratio("cpu_seconds", topk, "plain", 4096),
            "topk_over_sampled": ratio("cpu_seconds", topk, sampled, 4096),
        },
        json_path,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--measure", nargs=2, metavar=("VARIANT", "TOKENS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        variant, tokens = arguments.measure
        print(json.dumps(measure(variant, int(tokens))))
    else:
        compare(arguments.json)


if __name__ == "__main__":
    main()
