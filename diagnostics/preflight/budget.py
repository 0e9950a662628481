"""What a run needs and how long it takes, from sizes and from what a few short sequences took."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diagnostics.check import Check, Status

PROCESS_GIB = 0.8  # of a worker's process before it holds any model: libraries and buffers
_GIB = 2**30
_FULL = 0.85  # share of the memory from which on a warning is due
_BACKWARD = 3.0  # a training step over a forward pass, in time
_LOGIT_BUFFERS = 4  # chunks of logits that the learner's head holds at a time, roughly


@dataclass(frozen=True)
class ModelSize:
    """How many numbers a model holds."""

    parameters: int
    head: int  # numbers in its LM head: vocabulary x hidden size
    vocabulary: int
    cache: int  # numbers in its keys and values of one token, all layers


@dataclass(frozen=True)
class WorkerMemory:
    """Host memory that the workers of one kind need."""

    name: str
    count: int
    gib: Mapping[str, float]  # of one of them, by what it is for
    on_gpu: bool

    @property
    def total(self) -> float:
        return self.count * (PROCESS_GIB + (0.0 if self.on_gpu else sum(self.gib.values())))

    def __str__(self) -> str:
        parts = ", ".join(f"{what} {size:.2g}" for what, size in self.gib.items() if size >= 0.005) or "little"
        where = " on its GPU" if self.on_gpu else ""
        return f"{self.count} {self.name} of {PROCESS_GIB:g} + {parts} GiB{where}"


def engine_memory(model: ModelSize, dtype_bytes: int, cache_gib: float) -> dict[str, float]:
    """GiB of one rollout engine, by what they are for."""
    return {"weights": model.parameters * dtype_bytes / _GIB, "keys and values": cache_gib}


def scorer_memory(model: ModelSize, dtype_bytes: int, chunk_tokens: int) -> dict[str, float]:
    """GiB of one scoring worker, by what they are for."""
    return {
        "weights": model.parameters * dtype_bytes / _GIB,
        "float32 head": model.head * 4 / _GIB if dtype_bytes < 4 else 0.0,
        "logits": 2 * chunk_tokens * model.vocabulary * 4 / _GIB,
    }


def learner_memory(
    model: ModelSize, dtype_bytes: int, zero_stage: int, ranks: int, chunk_tokens: int, adapters: int = 0
) -> dict[str, float]:
    """GiB of one learner rank, by what they are for.

    ZeRO shares out the optimiser's state from stage 1 on, gradients from 2 on, weights at 3.

    Args:
        adapters: numbers that are trained in place of the weights; 0: the weights are.
    """
    numbers, trained = (model.parameters + adapters) / _GIB, (adapters or model.parameters) / _GIB
    share = [1 / ranks if zero_stage >= stage else 1.0 for stage in (1, 2, 3)]
    master = 4 if dtype_bytes < 4 else 0
    return {
        "weights": numbers * dtype_bytes * share[2],
        "gradients": trained * 4 * share[1],
        "optimiser": trained * (8 + master) * share[0],
        "logits": _LOGIT_BUFFERS * chunk_tokens * model.vocabulary * 4 / _GIB,
    }


def check_memory(workers: Sequence[WorkerMemory], available_gib: float | None) -> Check:
    """Hold the host memory of all workers against what the machine has (None: workers on several machines)."""
    total = sum(worker.total for worker in workers)
    seen = f"about {total:.1f} GiB: " + "; ".join(map(str, workers))
    if available_gib is None:
        return Check("memory", Status.passed, f"{seen}; how the machines share it is not known")
    seen = f"of {available_gib:.1f} GiB {seen}"
    fix = (
        "lower rollout.kv_cache_gib, learner.head_chunk_tokens or the number of workers, use bfloat16, or a higher "
        "learner.zero_stage with more ranks on more machines"
    )
    if total > available_gib:
        return Check("memory", Status.failed, seen, fix)
    if total > _FULL * available_gib:
        return Check("memory", Status.warned, seen, fix)
    return Check("memory", Status.passed, seen)


@dataclass(frozen=True)
class StepPlan:
    """The arithmetic of one optimiser step."""

    batch_size: int  # sequences
    max_staleness: int
    max_tokens: int  # of a response
    prompt_tokens: float  # mean
    longest: int  # prompt and response
    steps: int
    engines: int
    max_num_seqs: int
    cache_tokens: int | None  # that an engine's keys and values hold; None: not known before it starts
    scorers: int
    ranks: int
    micro_batch_tokens: int
    is_on_policy: bool  # engines sample in every step

    @property
    def in_flight(self) -> int:
        """Sequences that an engine may be asked for at a time."""
        return math.ceil(self.batch_size * (self.max_staleness + 1) / self.engines)

    @property
    def concurrency(self) -> int:
        """Sequences that an engine can work on at a time."""
        fits = self.max_num_seqs if self.cache_tokens is None else self.cache_tokens // self.longest
        return min(self.max_num_seqs, fits)


def check_arithmetic(plan: StepPlan) -> Check:
    """Whether the workers have enough to do, and room for it."""
    name = "workers and batch"
    seen = (
        f"{plan.batch_size} sequences a step for {plan.ranks} learner rank(s); at most {plan.in_flight} at a time for "
        f"each of {plan.engines} engine(s), which can hold {plan.concurrency}; the longest has {plan.longest} of "
        f"{plan.micro_batch_tokens} micro-batch tokens"
    )
    if plan.concurrency < 1:
        fix = f"raise rollout.kv_cache_gib: keys and values of one sequence of {plan.longest} tokens do not fit"
        return Check(name, Status.failed, seen, fix)
    if plan.batch_size < plan.ranks:
        return Check(name, Status.warned, seen, f"lower learner.ranks to {plan.batch_size}: the others would idle")
    if plan.batch_size < plan.scorers:
        return Check(name, Status.warned, seen, f"lower scoring.workers to {plan.batch_size}: the others would idle")
    if 2 * plan.concurrency < plan.in_flight and plan.is_on_policy:
        fix = "raise rollout.kv_cache_gib, rollout.max_num_seqs or rollout.workers: sequences queue for an engine"
        return Check(name, Status.warned, seen, fix)
    return Check(name, Status.passed, seen)


@dataclass(frozen=True)
class Measured:
    """What a few short sequences took, in seconds."""

    rollout_seconds: float
    sequences: int  # that each engine sampled side by side
    sampled_tokens: int  # of the longest of them
    learner_seconds: float  # a forward pass of `learner_tokens` on all ranks
    learner_tokens: int
    scoring_seconds: float | None  # None: nobody scores
    scoring_tokens: int
    sync_seconds: float


def predict_seconds(plan: StepPlan, measured: Measured) -> dict[str, tuple[float, float]]:
    """Predict seconds of each stage of a step, at least and at most, if every response has its full length.

    An engine takes as long for one token of many sequences as of few if it waits for memory, and longer in
    proportion if it computes; the truth lies in between. The other stages go with their tokens.
    """
    each = math.ceil(plan.batch_size / plan.engines)
    token_seconds = measured.rollout_seconds / max(measured.sampled_tokens, 1)
    rounds = math.ceil(each / max(plan.concurrency, 1))
    shortest = token_seconds * plan.max_tokens * rounds
    tokens = plan.batch_size * (plan.prompt_tokens + plan.max_tokens)
    learning = _BACKWARD * measured.learner_seconds * tokens / max(measured.learner_tokens, 1)
    stages = {"learning": (learning, learning), "weight_sync": (measured.sync_seconds,) * 2}
    if plan.is_on_policy:
        stages = {"rollout": (shortest, max(shortest, shortest * each / (rounds * measured.sequences))), **stages}
    if measured.scoring_seconds is not None:
        scoring = measured.scoring_seconds * tokens / max(measured.scoring_tokens, 1)
        stages["scoring"] = (scoring, scoring)
    return stages


def check_time(plan: StepPlan, measured: Measured) -> Check:
    """The predicted seconds of a step: one stage after the other when strictly on-policy, else side by side."""
    stages = predict_seconds(plan, measured)
    parts = ", ".join(f"{name} {_range(*bounds)}" for name, bounds in stages.items())
    together = sum if plan.max_staleness == 0 else max
    low, high = (together([bounds[i] for bounds in stages.values()]) for i in (0, 1))
    seen = (
        f"a step with answers of {plan.max_tokens} tokens takes about {parts} s: {_range(low, high)} s in all, "
        f"{_range(low * plan.steps / 60, high * plan.steps / 60)} min for {plan.steps} steps"
    )
    return Check("predicted time", Status.passed, seen)


def _range(low: float, high: float) -> str:
    ends = [f"{end:.2g}" if end < 100 else f"{end:.0f}" for end in (low, high)]
    return ends[0] if ends[0] == ends[1] else "–".join(ends)
