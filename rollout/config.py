"""Configuration of prompts, sampling and rollout workers."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any

from tutelage.placement import Resources
from tutelage.settings import SEEDS, TEMPLATE_TIME, DType, Refusal, Settings, setting

GREEDY = "greedy sampling has no sampling distribution"
NO_VERIFIER = "none"  # as data.verifier: nothing is graded


class Stops(Enum):
    """What is made of ends that differ; where student and teacher end their turns alike it changes nothing."""

    as_they_are = "as_they_are"  # an answer ends with the student's own ends, which are scored like any other token
    both = "both"  # an answer ends with either's; scored like any other token
    teacher = "teacher"  # as they are, but the student's end counts as the teacher's in what the teacher says
    semantic = "semantic"  # all ends are one action, whose probability is their sum (`tutelage.stops`)


class Unusable(Enum):
    """What becomes of prompts that cannot be used."""

    drop = "drop"  # counted, reported
    refuse = "refuse"  # the run does not start


@dataclass
class PromptSourceConfig(Settings):
    kind: str = "dataset"  # or reasoning_gym, digit_tasks: a name in `rollout.data.sources.SOURCES`
    path: str = ""  # dataset: hub name, directory or file; "pkg://conf/data/x.jsonl" lies in this package
    subset: str | None = None
    split: str = "train"  # of the dataset; digit_tasks: train, or heldout for problems that train never has
    prompt_column: str = "prompt"
    messages_column: str = "messages"
    answer_column: str = "answer"
    context_column: str = "privileged_context"  # a teacher-only system prompt of this row
    domain_column: str = "domain"
    teacher_column: str = "teacher"  # key of the teacher that scores this row, where several take part
    completion_column: str = "completion"  # the data's own response, where an objective learns from those
    follow_ups_column: str = "follow_ups"  # a list of user texts, or messages: one after each answer but the last
    tools_column: str = "tools"  # a list of JSON schemas of what the student may call, or its JSON
    template_kwargs_column: str = "chat_template_kwargs"  # what the chat templates are told of this row, or its JSON
    limit: int | None = setting(None, at_least=1)  # the first n rows
    task: str = ""  # reasoning_gym: the name of the task family; digit_tasks: column_sums or reversed_digits
    task_options: dict[str, Any] = field(default_factory=dict)  # of that task
    size: int = setting(256, at_least=1)  # procedural tasks: how many to generate
    seed: int = setting(0, at_least=0, at_most=SEEDS)  # procedural tasks: of the generator; a share: of the choice


@dataclass
class HeldoutConfig(PromptSourceConfig):
    """Prompts of their own, or a share of the training prompts that is not trained on."""

    share: float | None = setting(None, above=0, below=1)  # of data.train; `seed` chooses which, equal ones together


@dataclass
class DataConfig(Settings):
    train: PromptSourceConfig = field(default_factory=PromptSourceConfig)
    heldout: HeldoutConfig = field(default_factory=HeldoutConfig)
    system_prompt: str | None = None  # of both; the teacher-only context is added to it for the teacher
    template_time: str = TEMPLATE_TIME  # what a clock in a chat template shows: always the same, as tokens are then
    shuffle: bool = True
    over_length: Unusable = Unusable.drop
    blank_prompts: Unusable = Unusable.refuse  # without a text that the student could answer
    verifier: str = NO_VERIFIER  # or exact, math, final_answer, reasoning_gym: a name in `rollout.verifiers.VERIFIERS`

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse a time that no clock could show."""
        yield from super().refusals(prefix)
        try:
            datetime.fromisoformat(self.template_time)
        except ValueError:
            fix = f"is no time; write it as {TEMPLATE_TIME} or {TEMPLATE_TIME[:10]}"
            yield Refusal(f"{prefix}template_time", self.template_time, fix)

    @property
    def is_graded(self) -> bool:
        """Whether responses get rewards."""
        return self.verifier != NO_VERIFIER


@dataclass
class SamplingConfig(Settings):
    temperature: float = setting(1.0, above=0, meaning=GREEDY)
    top_p: float = setting(1.0, above=0, at_most=1)
    top_k: int = setting(-1, at_least=-1, meaning="-1: all ids")
    max_tokens: int = setting(48, at_least=1)  # response tokens, EOS included
    samples_per_prompt: int = setting(1, at_least=1)
    stops: Stops = Stops.semantic  # where student and teacher end their turns with different tokens


@dataclass
class RolloutConfig(Settings):
    """vLLM workers; each is one Ray actor around one engine."""

    workers: int = setting(1, at_least=1)
    # more than `workers`: so many, once nodes have room for them, while the run goes on
    max_workers: int | None = setting(None, at_least=1)
    tensor_parallel_size: int = setting(1, at_least=1)
    cpus_per_worker: float = setting(1, at_least=0)
    gpus_per_worker: float = setting(0, at_least=0)  # bundles of tensor_parallel_size GPUs
    threads: int = setting(1, at_least=1)  # CPU engine: OpenMP threads
    dtype: DType = DType.bfloat16
    max_model_len: int = setting(1024, at_least=2)
    max_num_seqs: int = setting(64, at_least=1)
    kv_cache_gib: float = setting(1.0, above=0)  # CPU engine only
    gpu_memory_utilization: float = setting(0.85, above=0, at_most=1)  # GPU engine only
    enforce_eager: bool = True

    @property
    def needs(self) -> Resources:
        """What one worker takes."""
        return Resources(self.cpus_per_worker, self.gpus_per_worker, self.threads)
