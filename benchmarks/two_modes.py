"""python -m benchmarks.two_modes [--plot PATH]: what each objective makes of a teacher with two modes.

A vocabulary of 32 tokens on a line, one position, a teacher with two modes. Two kinds of student descend through
the real objectives, every possible sampled token weighed by its probability, so that there is no sampling noise:
one that can only be a bell (it has to choose or to cover), and a free one whose support is its current top 12
(what a truncated objective does to the mass outside becomes visible).

Shape suffixes: C = V, one row for every token that could have been sampled; K support ids.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from omegaconf import OmegaConf
from torch import Tensor

import conf
from learner.objectives import Objective, StudentChunk, TeacherChunk, build_objective
from learner.objectives.config import ObjectiveConfig
from learner.records import Rows

VOCABULARY = 32
TOP_K = 12
STEPS = 2000
PRESETS = Path(conf.__file__).parent / "objective"
PLACES = torch.arange(VOCABULARY, dtype=torch.float64)


def bell(centre: float, width: float) -> Tensor:
    return torch.softmax(-(((PLACES - centre) / width) ** 2) / 2, dim=0)


def two_modes() -> Tensor:
    """The teacher's log-probs, [V]: a large narrow mode, a smaller wide one, and a little everywhere."""
    return (0.6 * bell(8, 1.5) + 0.398 * bell(23, 2) + 0.002 / VOCABULARY).log()


@dataclass(frozen=True)
class ToyStudent:
    """Parameters and how they become logits [V]."""

    start: Callable[[], Tensor]
    logits: Callable[[Tensor], Tensor]


def _bell_logits(parameters: Tensor) -> Tensor:
    centre, log_width = parameters
    return -(((PLACES - centre) / log_width.exp()) ** 2) / 2


ONE_BELL = ToyStudent(lambda: torch.tensor([10.0, 0.7], dtype=torch.float64), _bell_logits)
FREE = ToyStudent(lambda: (0.9 * bell(16, 6) + 0.1 / VOCABULARY).log(), lambda parameters: parameters)


@dataclass(frozen=True)
class Panel:
    title: str
    preset: str
    overrides: tuple[str, ...] = ()


ONE_BELL_PANELS = (
    Panel("forward KL", "full_forward_kl"),
    Panel("JSD, beta 0.5", "gkd", ("sequences.on_policy_fraction=1",)),
    Panel("reverse KL", "full_reverse_kl"),
    Panel("sampled token, expected", "sampled_reverse_kl"),
    Panel("entropy-aware", "entropy_aware"),
)
TOP = (f"k={TOP_K}",)
FREE_PANELS = (
    Panel("stop-gradient top-k", "student_topk_reverse_kl", TOP),
    Panel("tail bucket", "student_topk_tail", TOP),
    Panel("renormalised top-k", "student_topk_renormalised", TOP),
    Panel("teacher top-k forward, no tail", "teacher_topk_forward_kl", (*TOP, "normalisation=raw")),
    Panel("naive top-k (baseline)", "naive_student_topk", TOP),
)


def composed(preset: str, overrides: tuple[str, ...]) -> Objective:
    settings = OmegaConf.merge(
        OmegaConf.structured(ObjectiveConfig),
        OmegaConf.load(PRESETS / f"{preset}.yaml"),
        OmegaConf.from_dotlist(list(overrides)),
    )
    return build_objective(cast(ObjectiveConfig, OmegaConf.to_object(settings)))


def every_sample(objective: Objective, logp: Tensor, logq: Tensor, step: int) -> Rows:
    """One row for each token that the student could have sampled; the rest is the same in all of them."""
    needs = objective.requirements

    def top(source: Tensor, k: int) -> Tensor | None:
        return source.topk(k).indices.expand(VOCABULARY, k) if k else None

    student_ids, teacher_ids = top(logp, needs.candidates), top(logq, needs.teacher_top_k)
    return Rows(
        target_ids=torch.arange(VOCABULARY),
        sampling_logprobs=logp,
        temperatures=torch.ones(VOCABULARY, dtype=torch.float64),
        teacher_logprobs=logq,
        support_ids=student_ids,
        teacher_support_logprobs=None if student_ids is None else logq[student_ids],
        teacher_top_ids=teacher_ids,
        teacher_top_logprobs=None if teacher_ids is None else logq[teacher_ids],
        teacher_entropy=(-(logq.exp() * logq).sum()).expand(VOCABULARY),
        positions=torch.zeros(VOCABULARY, dtype=torch.int64),
        slots=torch.full((VOCABULARY,), step),
    )


def expected_gradient(objective: Objective, logits: Tensor, logq: Tensor, step: int) -> Tensor:
    """Gradient of the expected loss on the logits, [V]."""
    logp = logits.log_softmax(0)
    chunk = StudentChunk.from_logits(logits.expand(VOCABULARY, -1).clone())
    teacher = None
    if objective.requirements.hidden_states:
        reverse_kl = (logp.exp() * (logp - logq)).sum().expand(VOCABULARY)
        teacher = TeacherChunk(logq.expand(VOCABULARY, -1).clone(), reverse_kl)
    grad_CV = objective(chunk, every_sample(objective, logp, logq, step), teacher).grad_logits
    return logp.exp() @ grad_CV


def descend(panel: Panel, student: ToyStudent, steps: int = STEPS) -> Tensor:
    """The student's probabilities after descent, [V]."""
    objective, logq = composed(panel.preset, panel.overrides), two_modes()
    parameters = student.start().requires_grad_()
    optimiser = torch.optim.Adam([parameters], lr=0.05)
    for step in range(steps):
        logits = student.logits(parameters)
        optimiser.zero_grad()
        logits.backward(expected_gradient(objective, logits.detach(), logq, step))
        optimiser.step()
    return student.logits(parameters).detach().softmax(0)


def divergences(p: Tensor, q: Tensor) -> tuple[float, float]:
    """KL(p || q) and KL(q || p), nats."""
    log_ratio = (p.clamp(min=1e-30) / q).log()
    return float((p * log_ratio).sum()), float(-(q * log_ratio).sum())


def draw(results: dict[str, list[tuple[Panel, Tensor]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = max(len(row) for row in results.values())
    figure, axes = plt.subplots(len(results), columns, figsize=(3 * columns, 2.6 * len(results)), sharex=True)
    q = two_modes().exp()
    for line, (name, row) in zip(axes, results.items(), strict=True):
        for axis, (panel, p) in zip(line, row, strict=True):
            reverse, forward = divergences(p, q)
            axis.fill_between(PLACES, q, color="0.8", label="teacher")
            axis.plot(PLACES, p, color="tab:blue", label="student")
            axis.set_title(f"{panel.title}\nreverse KL {reverse:.2f}, forward KL {forward:.2f}", fontsize=9)
            axis.set_ylim(0, 0.35)
            axis.tick_params(labelsize=7)
        line[0].set_ylabel(name, fontsize=9)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=Path("docs/two_modes.png"))
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    results: dict[str, list[tuple[Panel, Tensor]]] = {}
    rows = (("a student that is one bell", ONE_BELL, ONE_BELL_PANELS), (f"any student, top {TOP_K}", FREE, FREE_PANELS))
    for name, student, panels in rows:
        results[name] = [(panel, descend(panel, student, arguments.steps)) for panel in panels]
        for panel, p in results[name]:
            reverse, forward = divergences(p, two_modes().exp())
            print(f"{name}: {panel.title:30} reverse KL {reverse:7.3f}  forward KL {forward:7.3f}")
    draw(results, arguments.plot)


if __name__ == "__main__":
    main()
