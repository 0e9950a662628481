"""The learner: one DeepSpeed rank that turns batches into optimiser steps.

    Batch ─► its micro-batches ─► backbone ─► head and objective ─► gradients ─► finite? ─► step ─► report

Produces a `StepReport` a step; waits, inside collectives, for its sibling ranks only. Every rank must be
given the same calls in the same order.

Shape suffixes: R response tokens, V vocabulary, d hidden size.
"""

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from learner.config import LearnerSetup
from learner.deepspeed_setup import initialise, join_group
from learner.head.compare import ExampleSums, by_example, divergences, examine_rows, example_tokens, token_logprobs
from learner.head.fused_loss import FullTeacher, fused_head_loss
from learner.objectives import build_objective
from learner.perturbation import Perturbation
from learner.records import Batch, ExampleDivergence, ExampleTokens, MicroBatch, Rows, StepReport
from learner.student import load_student
from learner.tensors import PackedTensors, to_tensors
from learner.totals import GradientWatch, NonFiniteError, StepTotals
from tutelage.lm.head import Head, LMHead, LogitTransform, MixedHead, TeacherHead

# Values [R, …] by name, of the student's head and its states [R, d].
_Look = Callable[[Head, Tensor], dict[str, Tensor]]


class LearnerEngine:
    """One rank of the learner. RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT must be set."""

    def __init__(self, setup: LearnerSetup, timeout_s: float = 1800.0) -> None:
        """Join the group of ranks and load the student.

        Args:
            timeout_s: of every collective.
        """
        self.config, self.student, self.model_path = setup.learner, setup.student, setup.model_path
        self.ends = setup.ends
        torch.manual_seed(setup.seed)
        self.device = join_group(self.config.threads, timeout_s)
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self._objective = build_objective(setup.objective, setup.seed)
        module = load_student(self.model_path, self.student, self.config, setup.longest)
        self._transform = LogitTransform.of(module.causal_lm.config)
        self._watch = GradientWatch(module)
        self.deepspeed = initialise(module, self.config, setup.total_steps)
        self._teacher_heads: dict[str, TeacherHead] = {}
        self.version = 0  # how many optimiser steps the weights have behind them
        self.last_report: StepReport | None = None
        self._perturbation: Perturbation | None = None

    @property
    def module(self) -> PreTrainedModel:
        """The Hugging Face causal LM; under ZeRO-3 its parameters are partitioned."""
        return self.deepspeed.module.causal_lm

    def close(self) -> None:
        """Take DeepSpeed's hooks off the model; the group of ranks stays."""
        self.deepspeed.destroy()

    def step(self, batch: Batch) -> StepReport:
        """Take one optimiser step on this rank's share of `batch`; the gradient is that of all shares together.

        Where the loss or a gradient is not finite, the next version has the weights and the optimiser's state of this
        one; the learning rate goes on in its schedule. Idempotent: the batch of the step just taken returns that step's
        report again.

        Raises:
            NonFiniteError: on every rank: finite gradients have a norm that is not.
            ValueError: the batch belongs to another version of the weights or another number of ranks.
        """
        if self.last_report is not None and batch.policy_version == self.version - 1:
            return self.last_report
        self._check(batch)
        started, cpu_started = time.perf_counter(), time.process_time()
        totals = self._accumulate(batch)
        skipped = self._non_finite(totals)
        learning_rate = self.deepspeed.lr_scheduler.get_last_lr()[0]
        grad_norm = self._optimise() if not skipped else self._skip()
        loss, metrics = totals.reduce(batch.loss_tokens)
        cpu_seconds = self._sum_over_ranks(time.process_time() - cpu_started)
        self.version += 1
        self.last_report = StepReport(
            policy_version=self.version,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=learning_rate,
            loss_tokens=batch.loss_tokens,
            seconds=time.perf_counter() - started,
            cpu_seconds=cpu_seconds,
            metrics={name: value for name, value in metrics.items() if not skipped or math.isfinite(value)},
            skipped=skipped,
        )
        return self.last_report

    def set_teacher_head(self, teacher: str, head: LMHead | MixedHead) -> None:
        """Keep a teacher's LM head for `evaluate` and for objectives over the whole vocabulary."""
        self._teacher_heads[teacher] = head.on(self.device)

    def evaluate(self, batch: Batch, teacher: str | None = None) -> list[ExampleDivergence]:
        """Compute exact divergences from one teacher (None: the only one) for every example of `batch`, in order.

        The batch must carry that teacher's hidden states; it may have been sampled by any policy. All ranks
        return the records of all examples.

        Raises:
            ValueError: the teacher's head has not been set, or hidden states are missing.
        """
        head, chunk, k = self._teacher_head(teacher), self.config.head_chunk_tokens, self.config.overlap_k
        stops = self.ends.merged

        def job(packed: PackedTensors) -> _Look:
            full = _full_teacher(packed, head)
            return lambda student, states: divergences(student, states, full.head, full.hidden, chunk, k, stops)

        sums = ExampleSums(batch.examples, self.device)
        for rows, values in self._look(batch, job):
            sums.add(values, rows.require("example_index"))
        return sums.reduce()

    def examine(self, batch: Batch, k: int, teacher: str | None = None) -> list[ExampleTokens]:
        """Compare student and teacher (None: the only one) at every loss token, with the top `k` ids of both.

        Returns records of this rank's own examples. The batch must carry the teacher's hidden states.

        Raises:
            ValueError: the teacher's head has not been set, or hidden states are missing.
        """
        head, chunk, stops = self._teacher_head(teacher), self.config.head_chunk_tokens, self.ends.merged

        def job(packed: PackedTensors) -> _Look:
            full, targets = _full_teacher(packed, head), packed.rows.target_ids
            return lambda student, states: examine_rows(
                student, states, full.head, full.hidden, targets, k, chunk, stops
            )

        return [record for rows, values in self._look(batch, job) for record in example_tokens(values, rows)]

    def logprobs(self, batch: Batch) -> dict[int, NDArray[np.float32]]:
        """Score the loss tokens [T] of this rank's own examples with the student, at their sampling temperatures.

        By the examples' places in the batch.
        """
        chunk, stops = self.config.head_chunk_tokens, self.ends.merged

        def job(packed: PackedTensors) -> _Look:
            targets, temperatures = packed.rows.target_ids, packed.rows.temperatures
            return lambda student, states: token_logprobs(student, states, targets, temperatures, chunk, stops)

        looks = self._look(batch, job)
        return {
            index: arrays["logprob"] for rows, values in looks for index, arrays in by_example(values, rows).items()
        }

    def _look(self, batch: Batch, job: Callable[[PackedTensors], _Look]) -> list[tuple[Rows, dict[str, Tensor]]]:
        """Each micro-batch's rows and what its job tells of them, with no gradient and no step."""
        looks = []
        self.deepspeed.eval()
        with torch.no_grad():
            for micro_batch in self._share(batch):
                packed = to_tensors(micro_batch, self.device)
                look = job(packed)
                values = self.deepspeed(packed, lambda x, w, b, look=look: look(Head.of(w, b, self._transform), x))
                looks.append((packed.rows, values))
        self.deepspeed.train()
        return looks

    def perturb(self, seed: int, size: float) -> None:
        """Put noise of `size` times its own spread on every weight until `restore_weights`; see `Perturbation`.

        Raises:
            ValueError: the weights are perturbed already.
        """
        if self._perturbation is not None:
            raise ValueError("perturb: the weights are perturbed already; restore_weights comes first")
        self._perturbation = Perturbation(self.deepspeed.module, self.config.zero_stage == 3, seed, size)

    def restore_weights(self) -> None:
        """Take the noise of `perturb` off again, bit for bit; without any, nothing happens."""
        if self._perturbation is not None:
            self._perturbation.restore()
            self._perturbation = None

    def _teacher_head(self, teacher: str | None) -> TeacherHead:
        known = self._teacher_heads
        if teacher is None and len(known) == 1:
            return next(iter(known.values()))
        if teacher is None or teacher not in known:
            raise ValueError(f"set_teacher_head: no LM head for teacher {teacher!r}; set are {sorted(known)}")
        return known[teacher]

    def _check(self, batch: Batch) -> None:
        if self._perturbation is not None:
            raise ValueError("step: the weights are perturbed; restore_weights comes first")
        if batch.policy_version != self.version:
            raise ValueError(
                f"step: the batch starts from version {batch.policy_version}, the weights are at {self.version}"
            )
        for micro_batch in self._share(batch):
            if micro_batch is not None and not (micro_batch.rows["temperatures"] > 0).all():
                lowest = float(micro_batch.rows["temperatures"].min())
                raise ValueError(f"sampling.temperature={lowest:g}: must be above 0 to learn from the samples")

    def _share(self, batch: Batch) -> tuple[MicroBatch | None, ...]:
        if len(batch.ranks) != self.ranks:
            raise ValueError(f"the batch was packed for {len(batch.ranks)} ranks, the learner has {self.ranks}")
        return batch.ranks[self.rank]

    def _accumulate(self, batch: Batch) -> StepTotals:
        """Run every micro-batch forward and backward."""
        totals = StepTotals(self.device)
        # Where no teacher has told its own most likely ids, none are compared; decided by the whole batch, so that all
        # ranks measure the same.
        told = self._objective.requirements.hidden_states or batch.teacher_top_k >= self.config.overlap_k
        compared_k = self.config.overlap_k if told else 0
        # DeepSpeed averages over ranks; the loss is a sum over all of them, divided by their tokens.
        scale = self.ranks / max(batch.loss_tokens, 1)
        micro_batches = self._share(batch)
        for index, micro_batch in enumerate(micro_batches):
            self.deepspeed.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            packed = to_tensors(micro_batch, self.device)
            job = partial(
                fused_head_loss,
                rows=packed.rows,
                objective=self._objective,
                chunk_tokens=self.config.head_chunk_tokens,
                transform=self._transform,
                teacher=self._teacher_of(micro_batch, packed),
                compared_k=compared_k,
                stops=self.ends.merged,
            )
            loss, per_token = self.deepspeed(packed, job)
            totals.add(per_token, packed.rows.require("positions"))
            self.deepspeed.backward(loss * scale)
        return totals

    def _teacher_of(self, micro_batch: MicroBatch | None, packed: PackedTensors) -> FullTeacher | None:
        """Teacher head and hidden states for full-vocabulary objectives, else None.

        A micro-batch without rows takes any head, so that ranks stay in step.
        """
        if not self._objective.requirements.hidden_states:
            return None
        named = None if micro_batch is None else micro_batch.teacher
        return _full_teacher(packed, self._teacher_head(named or next(iter(self._teacher_heads), None)))

    def _non_finite(self, totals: StepTotals) -> str:
        """What is not finite on this rank or another one; empty: all is."""
        bad = [] if totals.loss_is_finite else ["the loss"]
        bad += [f"the gradient of {name}" for name in self._watch.drain()]
        if not self._sum_over_ranks(float(len(bad))):
            return ""
        return ", ".join(bad[:3]) + (f" and {len(bad) - 3} more" if len(bad) > 3 else "") or "a value on another rank"

    def _skip(self) -> float:
        """All of a step but the optimiser's own, so that every ZeRO stage drops its gradients; the norm is NaN."""
        optimizer = self.deepspeed.basic_optimizer
        step, optimizer.step = optimizer.step, lambda *_args, **_kwargs: None
        try:
            self.deepspeed.step()
        finally:
            optimizer.step = step
        return math.nan

    def check_weights(self) -> None:
        """A collective: every rank must call it.

        Raises:
            NonFiniteError: on every rank: a weight of this one's or another one's share is not finite.
        """
        sums = {
            name: getattr(parameter, "ds_tensor", parameter)
            .detach()
            .sum(dtype=torch.float32)  # ZeRO-3: this rank's part
            for name, parameter in self.deepspeed.module.named_parameters()
        }
        finite = torch.stack(list(sums.values())).isfinite().tolist()  # the device is waited for once
        bad = [name for name, is_finite in zip(sums, finite, strict=True) if not is_finite]
        if self._sum_over_ranks(float(len(bad))):
            raise NonFiniteError(
                f"version {self.version}: the weights of {', '.join(bad[:3]) or 'another rank'} are not finite; lower "
                "learner.learning_rate, and resume from a checkpoint before it"
            )

    def _optimise(self) -> float:
        """Take the optimiser's step; returns the gradient norm before clipping."""
        plain = self.deepspeed.optimizer is self.deepspeed.basic_optimizer  # float32 under ZeRO-0: no wrapper
        norm = None
        if plain:
            grads = [p.grad for p in self.deepspeed.module.parameters() if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(grads)
        self.deepspeed.step()
        norm = float(self.deepspeed.get_global_grad_norm() if norm is None else norm)
        if not math.isfinite(norm):  # finite gradients whose squares overflow
            raise NonFiniteError(f"step {self.version + 1}: the gradient norm is {norm}; discard these weights")
        return norm

    def _sum_over_ranks(self, value: float) -> float:
        total = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return float(total)


def _full_teacher(packed: PackedTensors, head: TeacherHead) -> FullTeacher:
    """The teacher's distributions at the micro-batch's rows.

    Raises:
        ValueError: the batch has rows and no states of the teacher.
    """
    states_Rd = packed.teacher_hidden_states
    if states_Rd is None and len(packed.rows):
        raise ValueError("the batch lacks the teacher's states; set ScoringRequest.hidden_states")
    if states_Rd is None:
        states_Rd = packed.rows.teacher_logprobs.new_empty(0, head.width)
    return FullTeacher(states_Rd, head)
