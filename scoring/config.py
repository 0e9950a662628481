"""Configuration of teachers and scoring workers."""

from dataclasses import dataclass, field
from enum import Enum

from tutelage.settings import DType

TEACHER = "teacher"  # key of the teacher that every run has


def setting(key: str) -> str:
    """The full name of a teacher's settings."""
    return TEACHER if key == TEACHER else f"further_teachers.{key}"


class TeacherBackend(Enum):
    """Who computes a teacher's scores; `scoring.capabilities` says what each can give."""

    transformers = "transformers"  # a forward of our own, packed; everything can be asked for
    vllm = "vllm"  # a vLLM engine of the scoring worker's own
    server = "server"  # an OpenAI-compatible completions endpoint that returns prompt log-probs
    cache = "cache"  # only what is stored in scoring.cache_dir; no model is loaded


class Quantization(Enum):
    """Of a transformers teacher's linear layers, LM head excluded, by bitsandbytes."""

    none = "none"
    int8 = "int8"
    nf4 = "nf4"


class TeacherWeights(Enum):
    """Whose weights a teacher has as the student learns; all but `fixed` are the student's own."""

    fixed = "fixed"  # the checkpoint's, throughout
    current = "current"  # the student's latest published version
    ema = "ema"  # an exponential moving average of the student's published versions


@dataclass
class ServerConfig:
    """An endpoint such as a running `vllm serve`; TeacherConfig.model is the name by which it knows the model."""

    url: str = ""  # up to and with /v1, for instance http://127.0.0.1:8000/v1
    api_key_env: str | None = None  # environment variable that holds the key; none: no key is sent
    max_top_k: int = 20  # what the endpoint gives of its own most likely ids (vLLM: --max-logprobs)
    max_connections: int = 8  # requests under way at once
    requests_per_minute: int | None = None  # none: as fast as the endpoint answers
    attempts: int = 6  # at a request that meets a busy, dead or slow endpoint, with growing pauses in between
    request_timeout: float = 120  # seconds, of one attempt


@dataclass
class TeacherConfig:
    model: str = "smollm2-135m-instruct"
    context: str | None = None  # a system prompt that only the teacher sees; {answer}: the prompt's own answer
    backend: TeacherBackend = TeacherBackend.transformers
    server: ServerConfig = field(default_factory=ServerConfig)
    tokenizer: str | None = None  # checkpoint directory or hub name; none: the model's (server: the student's)
    cross_tokenizer: bool = False  # align a tokenizer that is not the student's; without it such a teacher is refused
    twin_candidates: int = 64  # cross_tokenizer: the student's most likely ids, of which k with an equal are kept
    quantization: Quantization = Quantization.none
    weights: TeacherWeights = TeacherWeights.fixed
    ema_rate: float = 0.99  # weights=ema: what the average keeps of itself at each published version
    domains: list[str] = field(default_factory=list)  # of the prompts that this teacher scores
    mixture: dict[str, float] = field(default_factory=dict)  # of other teachers, by key, with their weights
    trust_remote_code: bool = False


@dataclass
class EngineConfig:
    """Of backend=vllm: an engine in each scoring worker, over all of the worker's GPUs."""

    max_num_seqs: int = 64
    kv_cache_gib: float = 1.0  # CPU engine only
    gpu_memory_utilization: float = 0.85  # GPU engine only
    enforce_eager: bool = True


@dataclass
class ScoringConfig:
    """Teacher forwards; each worker is one Ray actor around one model."""

    workers: int = 1  # replicas of each teacher
    cpus_per_worker: float = 0.5
    gpus_per_worker: float = 0  # a share of one, or several that the model is spread over
    threads: int = 1
    dtype: DType = DType.bfloat16  # of the model; log-probs are computed in float32
    max_tokens_per_forward: int = 512  # packing budget; a longer trajectory runs alone (vllm: in several parts)
    max_model_len: int | None = None  # longest prompt and response that engines and servers must take; none: unchecked
    engine: EngineConfig = field(default_factory=EngineConfig)
    head_chunk_tokens: int = 256  # the LM head sees this many positions at a time
    attention: str = "packed_sdpa"  # or flash_attention_2 on GPUs
    cache_dir: str | None = None  # scores are kept here by the content of their requests, and not computed twice
    max_restarts: int = 3  # of the workers of one teacher, before its failure ends the run
