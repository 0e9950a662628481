"""Configuration of the DeepSpeed learner."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from tutelage.placement import Resources
from tutelage.settings import Attention, DType, Refusal, Settings, WeightTransfer, setting
from tutelage.stops import AS_THEY_ARE, TurnEnds

if TYPE_CHECKING:
    from learner.objectives.config import ObjectiveConfig


class Schedule(Enum):
    constant = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"


@dataclass
class LoraConfig(Settings):
    """Low-rank adapters: the student's weights stay as they are, and what is added to them is trained."""

    rank: int = setting(
        0, at_least=0, meaning="0: no adapters, all weights are trained"
    )  # of what is added to a weight
    alpha: int = setting(32, above=0)  # what is added is multiplied by alpha / rank
    # share of an adapter's inputs that it misses while it learns; rollouts and log-probs come without it
    dropout: float = setting(0.0, at_least=0, below=1)
    targets: list[str] = field(default_factory=list)  # linear layers, as [q_proj,v_proj]; empty: all but the LM head

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse settings of adapters where there are none."""
        yield from super().refusals(prefix)
        fix = f"there are no adapters with {prefix}rank=0; set a rank, for instance 16, or leave it out"
        for name, value in (("dropout", self.dropout), ("targets", self.targets)):
            if self.rank == 0 and value:
                yield Refusal(prefix + name, value, fix)


@dataclass
class StudentConfig(Settings):
    model: str = "smollm2-135m-instruct"
    trust_remote_code: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)
    # what its chat template is told beside the conversation: {enable_thinking: false}
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class LearnerConfig(Settings):
    ranks: int = setting(1, at_least=1, resume=False)
    cpus_per_rank: float = setting(0.5, at_least=0)  # Ray's share; what it computes on is `threads`
    gpus_per_rank: float = setting(0, at_least=0)
    threads: int = setting(1, at_least=1)
    dtype: DType = setting(DType.bfloat16, resume=False)
    zero_stage: int = setting(2, at_least=0, at_most=3, resume=False)
    # A checkpoint holds what the optimiser and its schedule were made with, so a resumed run cannot change them.
    learning_rate: float = setting(1e-5, above=0, resume=False)
    schedule: Schedule = setting(Schedule.constant, resume=False)
    # w: step s of them, from 0, has (s + 1) / (w + 1) of the rate
    warmup_steps: int = setting(0, at_least=0, resume=False)
    weight_decay: float = setting(0.0, at_least=0, resume=False)
    betas: list[float] = setting(lambda: [0.9, 0.95], at_least=0, below=1, length=2, resume=False)
    max_grad_norm: float = setting(1.0, at_least=0)
    micro_batch_tokens: int = setting(1024, at_least=1)  # packing budget; a longer trajectory runs alone
    head_chunk_tokens: int = setting(128, at_least=1)  # the LM head sees this many positions at a time
    # most likely ids of student and teacher that steps and evaluations compare
    overlap_k: int = setting(16, at_least=0, meaning="0: the overlap is not measured")
    gradient_checkpointing: bool = False
    attention: Attention = Attention.packed_sdpa
    weight_transfer: WeightTransfer = WeightTransfer.auto
    weight_bucket_mib: int = setting(
        32, at_least=1
    )  # weights leave in buckets of this size: one is written while another is loaded

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse an attention that the ranks cannot run."""
        yield from super().refusals(prefix)
        yield from self.attention.refusals(f"{prefix}attention", f"{prefix}gpus_per_rank", self.gpus_per_rank)

    @property
    def needs(self) -> Resources:
        """What one rank takes."""
        return Resources(self.cpus_per_rank, self.gpus_per_rank, self.threads)

    @property
    def examined_k(self) -> int:
        """The k of both models' most likely ids where tokens are examined, also in a run that measures no overlap."""
        return self.overlap_k or LearnerConfig().overlap_k


@dataclass
class CheckpointConfig(Settings):
    every: int = setting(10, at_least=0)  # steps; 0: only at the end
    keep: int = setting(2, at_least=1)


@dataclass(frozen=True)
class LearnerSetup:
    """What the ranks of a learner are set up with."""

    model_path: str  # the student's checkpoint, a local directory in safetensors
    student: StudentConfig
    learner: LearnerConfig
    objective: "ObjectiveConfig"
    total_steps: int  # of the optimiser, for its schedule
    seed: int = 0  # of torch's generators in every rank
    longest: int | None = None  # tokens of a sequence (rollout.max_model_len); None: all that the model has
    ends: TurnEnds = AS_THEY_ARE
