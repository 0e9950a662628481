"""One micro-batch with heads of student and teacher, whole vocabularies."""

from dataclasses import dataclass

import torch
from torch import Tensor

from learner.head.fused_loss import FullTeacher
from learner.records import Rows
from tutelage.lm.head import Head, LogitTransform

D, TEACHER_D = 24, 31
PLAIN = LogitTransform()


@dataclass
class Case:
    hidden: Tensor  # [R, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]
    rows: Rows
    transform: LogitTransform
    teacher: FullTeacher

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None]

    def log_softmaxes(self, leaves: list[Tensor], temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Full log-probs [R, V] of student and teacher in float64, ids of both heads only."""
        head = self.teacher.head
        bias = None if head.bias is None else head.bias.double()
        shared = min(len(self.weight), len(head))
        teacher = _logits(self.teacher.hidden.double(), head.weight.double(), bias, head.transform)
        student = _logits(leaves[0], leaves[1], leaves[2] if self.bias is not None else None, self.transform)
        return tuple((x[:, :shared] / temperature).log_softmax(-1) for x in (student, teacher))  # type: ignore


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: LogitTransform) -> Tensor:
    u = hidden @ weight.T + (0 if bias is None else bias)
    return (
        u * transform.factor if transform.cap is None else (u * transform.factor / transform.cap).tanh() * transform.cap
    )


def make_case(
    seed: int = 0,
    tokens: int = 21,
    vocabulary: int = 97,
    teacher_vocabulary: int = 97,
    bias: bool = True,
    dtype: torch.dtype = torch.float32,
    transform: LogitTransform = PLAIN,
) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    def ids(*shape: int) -> Tensor:
        return torch.randint(0, min(vocabulary, teacher_vocabulary), shape, generator=generator)

    head = Head(normal(teacher_vocabulary, TEACHER_D) / 2, normal(teacher_vocabulary) if bias else None, transform)
    rows = Rows(
        target_ids=ids(tokens),
        sampling_logprobs=-normal(tokens).abs(),
        temperatures=torch.ones(tokens),
        teacher_logprobs=-normal(tokens).abs(),
        positions=torch.arange(tokens) % 5,
        example_index=torch.arange(tokens) // 5,
    )
    return Case(
        hidden=normal(tokens, D).to(dtype),
        weight=(normal(vocabulary, D) / 2).to(dtype),
        bias=normal(vocabulary).to(dtype) if bias else None,
        rows=rows,
        transform=transform,
        teacher=FullTeacher(normal(tokens, TEACHER_D), head),
    )
