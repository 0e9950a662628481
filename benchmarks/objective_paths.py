"""Ways to compute an objective from hidden states, each measured in a process of its own.

    python -m benchmarks.objective_paths PATH OBJECTIVE TOKENS VOCABULARY HIDDEN REPEATS

Prints what `PathCost` holds as JSON. PATH is "fused" (`learner.head`), "plain" (logits of all tokens, log-softmax,
autograd), or that of another library, which needs its interpreter: "trl" (its chunked divergence) or "verl" (its
chunked top-k loss, on logits of all tokens). All in float32 on one thread.

Shape suffixes: R tokens, V vocabulary, d hidden size, K support ids.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from learner.config import LearnerConfig
from learner.head.fused_loss import FullTeacher, fused_head_loss
from learner.objectives import ObjectiveConfig, build_objective
from learner.objectives.config import Gradient, Importance, Support
from learner.records import Rows
from tutelage.lm.head import Head, LogitTransform

K, BETA = 16, 0.5


@dataclass(frozen=True)
class Inputs:
    """A student whose gradients are wanted, and all that a teacher can say."""

    hidden: Tensor  # [R, d]
    weight: Tensor  # [V, d]
    rows: Rows
    teacher: FullTeacher

    def gradients(self) -> tuple[Tensor, Tensor]:
        assert self.hidden.grad is not None and self.weight.grad is not None
        return self.hidden.grad, self.weight.grad


@dataclass(frozen=True)
class PathCost:
    peak_bytes: int  # resident at the peak, beyond inputs and gradients
    cpu_seconds: float  # of the fastest pass after the first one; 0 without repeats
    loss: float
    grad_norm: float


Runner = Callable[[Inputs], Tensor]  # runs forward and backward, returns the loss

OBJECTIVES = {
    "reverse_kl": ObjectiveConfig(support=Support.full),
    "forward_kl": ObjectiveConfig(support=Support.full, divergence="forward_kl"),
    "jsd": ObjectiveConfig(support=Support.full, divergence="jsd", beta=BETA),
    "student_topk": ObjectiveConfig(support=Support.student_topk, k=K),
    "teacher_topk": ObjectiveConfig(support=Support.teacher_topk, k=K, divergence="forward_kl"),
    "sampled": ObjectiveConfig(
        support=Support.sampled, gradient=Gradient.policy_gradient, importance=Importance.truncated
    ),
}


def make_inputs(tokens: int, vocabulary: int, hidden: int) -> Inputs:
    """Flat-ish random distributions; the top ids are made up, their log-probs are not the teacher's."""
    torch.manual_seed(0)
    first = torch.randint(0, vocabulary - K, (tokens, 1))
    ids_RK, logq_RK = first + torch.arange(K), -3 - 5 * torch.rand(tokens, K)
    rows = Rows(
        target_ids=torch.randint(0, vocabulary, (tokens,)),
        sampling_logprobs=-5 * torch.rand(tokens),
        temperatures=torch.ones(tokens),
        teacher_logprobs=-5 * torch.rand(tokens),
        support_ids=ids_RK,
        teacher_support_logprobs=logq_RK,
        teacher_top_ids=ids_RK,
        teacher_top_logprobs=logq_RK,
        teacher_entropy=5 * torch.rand(tokens),
    )
    teacher_head = Head(torch.randn(vocabulary, hidden).mul_(0.05), None, LogitTransform())
    return Inputs(
        torch.randn(tokens, hidden, requires_grad=True),
        torch.randn(vocabulary, hidden).mul_(0.05).requires_grad_(),
        rows,
        FullTeacher(torch.randn(tokens, hidden), teacher_head),
    )


# Paths


def fused(name: str) -> Runner:
    objective, learner = build_objective(OBJECTIVES[name]), LearnerConfig()

    def run(inputs: Inputs) -> Tensor:
        teacher = inputs.teacher if objective.requirements.hidden_states else None
        loss, _ = fused_head_loss(
            inputs.hidden,
            inputs.weight,
            None,
            inputs.rows,
            objective,
            learner.head_chunk_tokens,
            LogitTransform(),
            teacher,
            learner.overlap_k,
        )
        loss.backward()
        return loss.detach()

    return run


def plain(name: str) -> Runner:
    def run(inputs: Inputs) -> Tensor:
        logp_RV = (inputs.hidden @ inputs.weight.T).log_softmax(-1)
        loss = _plain_few(name, logp_RV, inputs) if name.endswith("topk") else _plain_full(name, logp_RV, inputs)
        loss.backward()
        return loss.detach()

    return run


def _plain_few(name: str, logp_RV: Tensor, inputs: Inputs) -> Tensor:
    ids_RK, logq_RK = inputs.rows.support()
    logp_RK = logp_RV.gather(1, ids_RK)
    if name == "student_topk":
        return (logp_RK.exp() * (logp_RK.detach() - logq_RK)).sum()
    return (logq_RK.exp() * (logq_RK - logp_RK)).sum()


def _plain_full(name: str, logp_RV: Tensor, inputs: Inputs) -> Tensor:
    logq_RV = (inputs.teacher.hidden @ inputs.teacher.head.weight.T).log_softmax(-1)
    if name == "reverse_kl":
        return (logp_RV.exp() * (logp_RV - logq_RV)).sum()
    if name == "forward_kl":
        return (logq_RV.exp() * (logq_RV - logp_RV)).sum()
    logm_RV = torch.logaddexp(logq_RV + math.log(BETA), logp_RV + math.log1p(-BETA))
    of_teacher = (logq_RV.exp() * (logq_RV - logm_RV)).sum()
    return BETA * of_teacher + (1 - BETA) * (logp_RV.exp() * (logp_RV - logm_RV)).sum()


def trl(name: str) -> Runner:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    beta = {"forward_kl": 0.0, "jsd": BETA, "reverse_kl": 1.0}[name]

    def run(inputs: Inputs) -> Tensor:
        teacher = inputs.teacher
        divergence_R, _ = ChunkedDivergenceFunction.apply(
            inputs.hidden, inputs.weight, None, teacher.hidden, teacher.head.weight, None, beta
        )
        loss = divergence_R.sum()
        loss.backward()
        return loss.detach()

    return run


def verl(name: str) -> Runner:
    from verl.trainer.distillation.fsdp.losses import compute_forward_kl_topk
    from verl.workers.config import DistillationConfig, DistillationLossConfig

    if name != "teacher_topk":
        raise ValueError(f"verl has no {name} on CPU")
    settings = DistillationLossConfig(use_chunked_topk=True, chunked_topk_chunk_size=128, log_prob_min_clamp=None)
    config = DistillationConfig(distillation_loss=settings)

    def run(inputs: Inputs) -> Tensor:
        ids_RK, logq_RK = inputs.rows.teacher_top()
        logits_RV = inputs.hidden @ inputs.weight.T
        nested = (torch.nested.as_nested_tensor([x], layout=torch.jagged) for x in (logq_RK, ids_RK))
        losses = compute_forward_kl_topk(logits_RV[None], *nested, config, "thd")
        loss = losses["distillation_losses"].sum()
        loss.backward()
        return loss.detach()

    return run


PATHS: dict[str, Callable[[str], Runner]] = {"fused": fused, "plain": plain, "trl": trl, "verl": verl}


# Measuring


def resident(field: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the peak)."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def measure(path: str, objective: str, tokens: int, vocabulary: int, hidden: int, repeats: int) -> PathCost:
    """Peak memory of a first pass, CPU seconds of those that follow."""
    torch.set_num_threads(1)
    run, inputs = PATHS[path](objective), make_inputs(tokens, vocabulary, hidden)
    torch.mm(torch.ones(8, 8), torch.ones(8, 8))  # the matrix library's own workspace
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = resident("VmRSS")
    loss = run(inputs)
    peak = resident("VmHWM") - before - sum(grad.nbytes for grad in inputs.gradients())
    norm = sum(float(grad.double().square().sum()) for grad in inputs.gradients()) ** 0.5
    seconds = [_cpu_seconds(run, inputs) for _ in range(repeats)]
    return PathCost(peak, min(seconds, default=0.0), float(loss), norm)


def _cpu_seconds(run: Runner, inputs: Inputs) -> float:
    inputs.hidden.grad = inputs.weight.grad = None
    started = time.process_time()
    run(inputs)
    return time.process_time() - started


def main() -> None:
    path, objective, *sizes = sys.argv[1:]
    tokens, vocabulary, hidden, repeats = map(int, sizes)
    print(json.dumps(asdict(measure(path, objective, tokens, vocabulary, hidden, repeats))))


if __name__ == "__main__":
    main()
