"""Configuration of the DeepSpeed learner."""

from dataclasses import dataclass, field
from enum import Enum

from tutelage.settings import DType, WeightTransfer


class Schedule(Enum):
    constant = "constant_with_warmup"
    linear = "linear"
    cosine = "cosine"


@dataclass
class LoraConfig:
    """Low-rank adapters: the student's weights stay as they are, and what is added to them is trained."""

    rank: int = 0  # of what is added to a weight; 0: no adapters, all weights are trained
    alpha: int = 32  # what is added is multiplied by alpha / rank
    dropout: float = 0.0  # of an adapter's input while it learns; rollouts and log-probs come without it
    targets: list[str] = field(default_factory=list)  # linear layers, as [q_proj,v_proj]; empty: all but the LM head


@dataclass
class StudentConfig:
    model: str = "smollm2-135m-instruct"
    trust_remote_code: bool = False
    lora: LoraConfig = field(default_factory=LoraConfig)


@dataclass
class LearnerConfig:
    ranks: int = 1
    cpus_per_rank: float = 0.5  # Ray's share; what it computes on is `threads`
    gpus_per_rank: float = 0
    threads: int = 1
    dtype: DType = DType.bfloat16
    zero_stage: int = 2
    learning_rate: float = 1e-5
    schedule: Schedule = Schedule.constant
    warmup_steps: int = 0
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    max_grad_norm: float = 1.0
    micro_batch_tokens: int = 1024  # packing budget; a longer trajectory runs alone
    head_chunk_tokens: int = 128  # the LM head sees this many positions at a time
    overlap_k: int = 16  # most likely ids of student and teacher that steps and evaluations compare; 0: none
    gradient_checkpointing: bool = False
    attention: str = "packed_sdpa"  # or flash_attention_2 on GPUs
    weight_transfer: WeightTransfer = WeightTransfer.shared_memory
    weight_bucket_mib: int = 32  # weights leave in buckets of this size: one is written while another is loaded


@dataclass
class CheckpointConfig:
    every: int = 10  # steps; 0: only at the end
    keep: int = 2
