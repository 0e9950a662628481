"""Configuration of teachers and scoring workers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from tutelage.placement import Resources
from tutelage.settings import Attention, DType, Refusal, Settings, setting

TEACHER = "teacher"  # key of the teacher that every run has


def teacher_setting(key: str) -> str:
    """The full name of a teacher's settings."""
    return TEACHER if key == TEACHER else f"further_teachers.{key}"


class Quantization(Enum):
    """How a transformers teacher's linear layers are stored, LM head excluded, by bitsandbytes."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class TeacherWeights(Enum):
    """Whose weights a teacher has as the student learns; all but `fixed` are the student's own."""

    fixed = "fixed"  # the checkpoint's, throughout
    current = "current"  # the student's latest published version
    ema = "ema"  # an exponential moving average of the student's published versions


@dataclass
class ServerConfig(Settings):
    """An endpoint such as a running `vllm serve`; TeacherConfig.model is the name by which it knows the model."""

    url: str = ""  # up to and with /v1, for instance http://127.0.0.1:8000/v1
    api_key_env: str | None = None  # environment variable that holds the key; none: no key is sent
    max_top_k: int = setting(
        20, at_least=0
    )  # what the endpoint gives of its own most likely ids (vLLM: --max-logprobs)
    max_connections: int = setting(8, at_least=1)  # requests under way at once
    requests_per_minute: int | None = setting(None, at_least=1)  # none: as fast as the endpoint answers
    attempts: int = setting(
        6, at_least=1
    )  # at a request that meets a busy, dead or slow endpoint, with growing pauses in between
    request_timeout: float = setting(120, above=0)  # seconds, of one attempt
    max_answer_mib: int = setting(256, at_least=1)  # of one answer, compressed or not; a larger one is not read


@dataclass
class TeacherConfig(Settings):
    model: str = "smollm2-135m-instruct"
    context: str | None = None  # a system prompt that only the teacher sees; {answer}: the prompt's own answer
    backend: str = "transformers"  # or vllm, server, cache: who computes the scores (scoring.backends.factory)
    server: ServerConfig = field(default_factory=ServerConfig)
    tokenizer: str | None = None  # checkpoint directory or hub name; none: the model's (server: the student's)
    cross_tokenizer: bool = False  # align a tokenizer that is not the student's; without it such a teacher is refused
    # cross_tokenizer: the student's most likely ids, of which k with an equal are kept
    twin_candidates: int = setting(64, at_least=1, meaning="64 is usual")
    quantization: Quantization = Quantization.none
    weights: TeacherWeights = TeacherWeights.fixed
    # weights=ema: what the average keeps of itself at each published version
    ema_rate: float = setting(0.99, above=0, below=1, meaning="0.99 is common")
    domains: list[str] = field(default_factory=list)  # of the prompts that this teacher scores
    mixture: dict[str, float] = field(default_factory=dict)  # of other teachers, by key, with their weights
    trust_remote_code: bool = False
    # what its chat template is told beside the conversation: {enable_thinking: false}
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class EngineConfig(Settings):
    """The settings of backend=vllm: an engine in each scoring worker, over all of the worker's GPUs."""

    max_num_seqs: int = setting(64, at_least=1)
    kv_cache_gib: float = setting(1.0, above=0)  # CPU engine only
    gpu_memory_utilization: float = setting(0.85, above=0, at_most=1)  # GPU engine only
    enforce_eager: bool = True


@dataclass
class ScoringConfig(Settings):
    """Teacher forwards; each worker is one Ray actor around one model."""

    workers: int = setting(1, at_least=1)  # replicas of each teacher
    # more than `workers`: so many, once nodes have room for them, while the run goes on
    max_workers: int | None = setting(None, at_least=1)
    cpus_per_worker: float = setting(0.5, at_least=0)
    gpus_per_worker: float = setting(0, at_least=0)  # a share of one, or several that the model is spread over
    threads: int = setting(1, at_least=1)
    dtype: DType = DType.bfloat16  # of the model; log-probs are computed in float32
    # packing budget; a longer trajectory runs alone (vllm: in several parts)
    max_tokens_per_forward: int = setting(512, at_least=1)
    # longest prompt and response that engines and servers must take; none: unchecked
    max_model_len: int | None = setting(None, at_least=2)
    engine: EngineConfig = field(default_factory=EngineConfig)
    head_chunk_tokens: int = setting(256, at_least=1)  # the LM head sees this many positions at a time
    attention: Attention = Attention.packed_sdpa
    cache_dir: str | None = None  # scores are kept here by the content of their requests, and not computed twice

    @property
    def needs(self) -> Resources:
        """What one worker takes; it is asked for many scores at a time."""
        return Resources(self.cpus_per_worker, self.gpus_per_worker, self.threads, concurrency=1000)

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse a share of more than one GPU, and an attention that the workers cannot run."""
        yield from super().refusals(prefix)
        yield from self.attention.refusals(f"{prefix}attention", f"{prefix}gpus_per_worker", self.gpus_per_worker)
        gpus = self.gpus_per_worker
        if gpus > 1 and not float(gpus).is_integer():
            fix = "a share of one GPU, or whole GPUs over which the teacher is spread; round it"
            yield Refusal(f"{prefix}gpus_per_worker", gpus, fix)
