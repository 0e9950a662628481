"""Configuration of teachers and scoring workers."""

from dataclasses import dataclass

from rollout.config import DType


@dataclass
class TeacherConfig:
    model: str = "smollm2-135m-instruct"
    context: str | None = None  # a system prompt that only the teacher sees; {answer}: the prompt's own answer
    trust_remote_code: bool = False


@dataclass
class ScoringConfig:
    """Teacher forwards; each worker is one Ray actor around one model."""

    workers: int = 1
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0
    threads: int = 1
    dtype: DType = DType.bfloat16  # of the model; log-probs are computed in float32
    max_tokens_per_forward: int = 512  # packing budget; a longer trajectory runs alone
    head_chunk_tokens: int = 256  # the LM head sees this many positions at a time
    attention: str = "packed_sdpa"  # or flash_attention_2 on GPUs
