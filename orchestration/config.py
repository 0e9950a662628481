"""The run's configuration: what Hydra composes, and every rule that spans two parts of it."""

import os
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from diagnostics.alarms import faults
from diagnostics.config import AlarmsConfig, AlignmentConfig, PreflightConfig, ProbeConfig
from learner.config import CheckpointConfig, LearnerConfig, LoraConfig, StudentConfig, WeightTransfer
from learner.objectives import requirements
from learner.objectives.config import ObjectiveConfig
from learner.objectives.rule import RunFacts
from learner.objectives.rules import refusals
from orchestration.teacher_rules import teacher_faults
from rollout.config import DataConfig, PromptSourceConfig, RolloutConfig, SamplingConfig, SourceKind, VerifierKind
from rollout.digit_tasks import DIGIT_TASKS, tasks_in
from scoring.config import ScoringConfig, TeacherConfig

MAX_PROBED = 200  # prompts: a probe is a matter of minutes
_TASK_FIXES = {
    SourceKind.reasoning_gym: "name a reasoning-gym task family, for instance basic_arithmetic",
    SourceKind.digit_tasks: f"name one of {', '.join(DIGIT_TASKS)}",
}


class Stage(Enum):
    """What a run does with the student."""

    distil = "distil"  # on-policy distillation: learn from the teacher's marks
    cold_start = "cold_start"  # supervised fine-tuning on sequences of the teacher or of the data
    reinforce = "reinforce"  # learn from a verifier's rewards


class Resume(Enum):
    auto = "auto"  # continue the newest unfinished run of this experiment, if there is one
    never = "never"


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class PipelineConfig:
    steps: int = 25  # optimiser steps
    batch_size: int = 16  # trajectories a step
    max_staleness: int = 1  # bound on learner version minus version of a trajectory's oldest token; 0: on-policy
    max_replaced_groups: int = 0  # stage=reinforce: a step may drop so many groups whose rewards are all equal


@dataclass
class ColdStartConfig:
    """Which sequences a cold start leaves out beside truncated ones; each is counted under its first reason.

    `objective.states.others` says whose they are; the teacher writes sampling.samples_per_prompt for each prompt.
    """

    only_correct: bool = True  # below the verifier's full score: left out; without a verifier all are correct
    keep_duplicates: bool = False  # equal responses to equal prompts
    repetition_tokens: int = 8  # length of the n-grams by which repetition is measured
    max_repetition: float = 0.5  # share of a response's n-grams that stand in it before; 1: anything goes


class BaseDivergence(Enum):
    """Whether evaluations say how far the student has gone from its initial weights, which is what it may forget."""

    auto = "auto"  # where some workers hold the initial weights anyway
    always = "always"  # a worker of its own if need be
    never = "never"


@dataclass
class EvaluationConfig:
    every: int = 0  # steps; 0: only before and after
    prompts: int = 32  # the first n held-out prompts
    temperature: float = 1.0
    max_tokens: int = 48
    seed: int = 1234
    base_kl: BaseDivergence = BaseDivergence.auto


@dataclass
class TrackingConfig:
    wandb: WandbMode = WandbMode.offline
    project: str = "tutelage"
    entity: str | None = None
    samples_every: int = 10  # steps between sample tables; 0: none
    samples: int = 4  # trajectories in a sample table


@dataclass
class ClusterConfig:
    address: str = "local"  # "local": a Ray of this run's own; "auto" or host:port: one that runs already
    cpus: int | None = None  # logical CPUs of a local cluster; none: what the workers ask for
    object_store_gib: float = 1.0  # of a local cluster


@dataclass
class TimeoutConfig:
    """Deadlines in seconds: nothing waits longer."""

    start: float = 600  # of one worker: models loaded, engine up
    rollout: float = 600  # from one finished rollout to the next
    scoring: float = 600  # of one scoring request, its time in the queue included
    learning: float = 1800  # of one optimiser step or evaluation pass
    weight_sync: float = 300
    checkpoint: float = 1800


@dataclass
class RecipeStage:
    """One stage of a recipe: what is set for it alone, over the run's own configuration."""

    name: str  # of its folder and of its artifact
    overrides: list[str] = field(default_factory=list)  # as on the command line: objective=gkd, pipeline.steps=20


@dataclass
class RecipeConfig:
    stages: list[RecipeStage] = field(default_factory=list)  # in order; none: the run is a single stage


@dataclass
class RunConfig:
    stage: Stage = Stage.distil
    experiment: str = "quickstart"  # names the folder of the outputs
    seed: int = 0
    output_root: str = "outputs"
    run_dir: str | None = None  # none: <output_root>/<experiment>/<time>
    resume: Resume = Resume.never
    dry_run: bool = False  # resolve, validate, print the plan, start nothing
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    further_teachers: dict[str, TeacherConfig] = field(default_factory=dict)  # by key
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)


class ConfigError(ValueError):
    """A setting that cannot work; the message names the key, the value and the fix."""


def register_schema() -> None:
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def _refuse_assignment(self: Any, name: str, value: Any = None) -> None:
    raise AttributeError(f"the configuration is frozen after composition: {name} cannot change")


def _freeze(node: Any) -> None:
    """Make a composed config read-only, all the way down.

    OmegaConf refuses command-line overrides of frozen dataclasses, so they are plain until here.
    """
    for item in fields(node):
        value = getattr(node, item.name)
        parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else (value,)
        for part in parts:
            if is_dataclass(part):
                _freeze(part)
    cls = type(node)
    node.__class__ = type(cls.__name__, (cls,), {"__setattr__": _refuse_assignment, "__delattr__": _refuse_assignment})


def build(composed: DictConfig, preset: str | None = None) -> RunConfig:
    """Turn Hydra's composition into a checked, read-only RunConfig.

    Args:
        preset: the choice of the group `objective`, if it is to be checked.

    Raises:
        ConfigError: when two settings do not go together.
    """
    config = cast(RunConfig, OmegaConf.to_object(composed))
    if preset is not None:
        _check_preset(config, preset)
    check(config)
    _freeze(config)
    return config


def _require(condition: bool, key: str, value: object, fix: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {fix}")


def check(config: RunConfig) -> None:
    """Every rule on the values alone; what needs files or models is checked in `preparation`."""
    _check_ranges(config)
    _check_learner(config.learner)
    _check_lora(config.student.lora)
    _check_objective(config)
    _check_rewards(config)
    _check_stage(config)
    _check_teachers(config)
    _check_engines(config)
    _check_data(config)
    _check_probe(config.probe)
    _check_alignment(config)
    _check_alarms(config.alarms)


def _check_ranges(config: RunConfig) -> None:
    at_least_one = {
        "pipeline.steps": config.pipeline.steps,
        "pipeline.batch_size": config.pipeline.batch_size,
        "sampling.max_tokens": config.sampling.max_tokens,
        "sampling.samples_per_prompt": config.sampling.samples_per_prompt,
        "rollout.workers": config.rollout.workers,
        "scoring.workers": config.scoring.workers,
        "learner.ranks": config.learner.ranks,
        "evaluation.prompts": config.evaluation.prompts,
        "evaluation.max_tokens": config.evaluation.max_tokens,
        "checkpoint.keep": config.checkpoint.keep,
        "cold_start.repetition_tokens": config.cold_start.repetition_tokens,
    }
    for key, value in at_least_one.items():
        _require(value >= 1, key, value, "must be at least 1")
    _require(
        config.pipeline.max_staleness >= 0,
        "pipeline.max_staleness",
        config.pipeline.max_staleness,
        "must be 0 (strictly on-policy) or more",
    )
    restarts = config.scoring.max_restarts
    _require(
        restarts >= 0, "scoring.max_restarts", restarts, "must be 0 (a teacher's lost worker ends the run) or more"
    )
    for key, temperature in (
        ("sampling", config.sampling.temperature),
        ("evaluation", config.evaluation.temperature),
    ):
        _require(
            temperature > 0,
            f"{key}.temperature",
            temperature,
            "must be above 0; greedy sampling has no sampling distribution",
        )
    _require(
        0 <= config.cold_start.max_repetition <= 1,
        "cold_start.max_repetition",
        config.cold_start.max_repetition,
        "is a share; must lie between 0 and 1 (1: repetition is not looked at)",
    )
    longest = max(config.sampling.max_tokens, config.evaluation.max_tokens)
    _require(
        longest < config.rollout.max_model_len,
        "rollout.max_model_len",
        config.rollout.max_model_len,
        f"leaves no room for a prompt before {longest} response tokens; raise it",
    )


def _check_learner(learner: LearnerConfig) -> None:
    _require(
        learner.overlap_k >= 0,
        "learner.overlap_k",
        learner.overlap_k,
        "counts most likely ids; must be 0 (the overlap is not measured) or more",
    )
    _require(
        learner.zero_stage in (0, 1, 2, 3),
        "learner.zero_stage",
        learner.zero_stage,
        "must be 0, 1, 2 or 3",
    )
    _require(
        learner.learning_rate > 0,
        "learner.learning_rate",
        learner.learning_rate,
        "must be above 0",
    )


def _check_lora(lora: LoraConfig) -> None:
    _require(lora.rank >= 0, "student.lora.rank", lora.rank, "must be 0 (all weights are trained) or more")
    _require(lora.alpha > 0, "student.lora.alpha", lora.alpha, "multiplies what adapters add; must be above 0")
    _require(
        0 <= lora.dropout < 1,
        "student.lora.dropout",
        lora.dropout,
        "is a share of an adapter's inputs; must be at least 0 and below 1",
    )
    for name, value in (("dropout", lora.dropout), ("targets", lora.targets)):
        fix = "there are no adapters with student.lora.rank=0; set a rank, for instance 16, or leave it out"
        _require(lora.rank > 0 or not value, f"student.lora.{name}", value, fix)


def _check_preset(config: RunConfig, chosen: str) -> None:
    """A name that is set beside the choice of a preset would label one objective and train another."""
    name = config.objective.name
    fix = f"names the chosen preset, which is {chosen}; to choose another one write objective={name}"
    _require(name == chosen, "objective.name", name, fix)


def run_facts(config: RunConfig) -> RunFacts:
    """What the objective's rules have to know of the run."""
    sampling, pipeline = config.sampling, config.pipeline
    return RunFacts(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_staleness=pipeline.max_staleness,
        samples_per_prompt=sampling.samples_per_prompt,
        batch_size=pipeline.batch_size,
        has_verifier=config.data.verifier is not VerifierKind.none,
        cross_tokenizer=config.stage is not Stage.reinforce
        and any(teacher.cross_tokenizer for teacher in (config.teacher, *config.further_teachers.values())),
    )


def _check_objective(config: RunConfig) -> None:
    wrong = refusals(config.objective, run_facts(config))
    if wrong:
        raise ConfigError("\n".join(wrong))


def _check_rewards(config: RunConfig) -> None:
    replaced = config.pipeline.max_replaced_groups
    _require(replaced >= 0, "pipeline.max_replaced_groups", replaced, "must be 0 (train on every group) or more")
    if config.stage is Stage.reinforce:
        _check_reinforcement(config)
    else:
        fix = "only where rewards alone are learned from are some groups worthless; set stage=reinforce, or 0"
        _require(replaced == 0, "pipeline.max_replaced_groups", replaced, fix)


def _check_reinforcement(config: RunConfig) -> None:
    """Rewards are learned from, and what else is compared is compared with the reference."""
    objective, needs = config.objective, requirements(config.objective)
    reference = objective.reference
    _require(
        needs.task_advantages,
        "objective.task_reward.mix",
        objective.task_reward.mix.value,
        "stage=reinforce learns from rewards; choose objective=grpo, or stage=distil",
    )
    _require(
        not needs.teacher or reference.model is not None,
        "objective.reference.model",
        "null",
        "the objective compares the student with another model, and stage=reinforce has no teacher: set it to student "
        "(its initial weights) or a checkpoint, or learn from rewards alone with objective.task_reward.share=0",
    )
    _require(
        needs.teacher or reference.model is None,
        "objective.reference.model",
        reference.model,
        "nothing is compared with it; set objective.task_reward.share=0.01, or null",
    )
    _require(
        reference.extrapolation == 1,
        "objective.reference.extrapolation",
        reference.extrapolation,
        "goes from a reference beyond a teacher, and stage=reinforce has no teacher; set 1",
    )
    _require(
        not objective.gate.only_with_context,
        "objective.gate.only_with_context",
        "true",
        "stage=reinforce has no teacher that could see more than the student; set false",
    )


def _check_stage(config: RunConfig) -> None:
    """Whether the objective learns from what the stage has."""
    needs_teacher, chosen = requirements(config.objective).teacher, f"objective={config.objective.name}"
    if config.stage is Stage.cold_start:
        _require(
            not needs_teacher and config.objective.states.student_share == 0,
            "stage",
            f"cold_start with {chosen}",
            "sequences that another wrote are learned as they are, and this objective needs the teacher's marks or "
            "the student's own samples; set objective=supervised, or stage=distil",
        )
    if config.stage is Stage.distil:
        _require(
            needs_teacher,
            "stage",
            f"distil with {chosen}",
            "nothing of it is learned from a teacher's marks; set stage=cold_start for a supervised objective, "
            "stage=reinforce for one of rewards alone, or choose another objective",
        )


def _check_teachers(config: RunConfig) -> None:
    if config.stage is Stage.reinforce:
        named = ", ".join(config.further_teachers)
        _require(not named, "further_teachers", named, "no teacher takes part in stage=reinforce; leave it empty")
        return
    wrong = teacher_faults(config)
    if wrong:
        raise ConfigError("\n".join(wrong))


def _check_engines(config: RunConfig) -> None:
    transfer, gpus = config.learner.weight_transfer, config.rollout.gpus_per_worker
    if transfer is WeightTransfer.shared_memory:
        _require(
            gpus == 0,
            "learner.weight_transfer",
            transfer.value,
            "serves CPU engines on the learner's node; with rollout.gpus_per_worker > 0 use nccl or ipc",
        )
    else:
        _require(
            gpus > 0,
            "learner.weight_transfer",
            transfer.value,
            "needs GPU engines; with rollout.gpus_per_worker=0 use shared_memory",
        )
    _require(
        config.rollout.tensor_parallel_size == 1 or gpus > 0,
        "rollout.tensor_parallel_size",
        config.rollout.tensor_parallel_size,
        "needs rollout.gpus_per_worker > 0; on CPU use 1",
    )


def _check_data(config: RunConfig) -> None:
    for name, source in (("train", config.data.train), ("heldout", config.data.heldout)):
        if source.kind is SourceKind.dataset:
            _require(
                bool(source.path),
                f"data.{name}.path",
                repr(source.path),
                "name a Hugging Face dataset, a directory, or a JSONL or Parquet file",
            )
        else:
            _require(bool(source.task), f"data.{name}.task", repr(source.task), _TASK_FIXES[source.kind])
        if config.data.verifier is VerifierKind.reasoning_gym:
            _require(
                source.kind is SourceKind.reasoning_gym,
                "data.verifier",
                "reasoning_gym",
                f"grades reasoning-gym tasks only, and data.{name}.kind={source.kind.value}; use exact, math, "
                "final_answer or none",
            )
    _check_task_seeds(config.data.train, config.data.heldout)
    _check_task_splits(config.data.train, config.data.heldout)
    if config.tracking.wandb is WandbMode.online and not os.environ.get("WANDB_API_KEY"):
        raise ConfigError("tracking.wandb=online: no key found; set WANDB_API_KEY in the environment, or use offline")


def _check_task_seeds(train: PromptSourceConfig, heldout: PromptSourceConfig) -> None:
    """Refuse held-out tasks that are training tasks: reasoning-gym makes task i from seed + i."""
    alike = train.kind is heldout.kind is SourceKind.reasoning_gym and train.task == heldout.task
    if not alike or train.task_options != heldout.task_options:
        return
    apart = train.seed + train.size <= heldout.seed or heldout.seed + heldout.size <= train.seed
    _require(
        apart,
        "data.heldout.seed",
        heldout.seed,
        f"reasoning-gym makes task i from seed + i, so held-out tasks would be training tasks; use "
        f"{train.seed + train.size} or more",
    )


def _check_task_splits(train: PromptSourceConfig, heldout: PromptSourceConfig) -> None:
    """Refuse held-out problems of digits that may be training problems."""
    alike = train.kind is heldout.kind is SourceKind.digit_tasks and bool(tasks_in(train) & tasks_in(heldout))
    _require(
        not alike or train.split != heldout.split,
        "data.heldout.split",
        heldout.split,
        "is that of data.train, so held-out problems may be training problems; use data.train.split=train and "
        "data.heldout.split=heldout",
    )


def _check_probe(probe: ProbeConfig) -> None:
    _require(1 <= probe.prompts <= MAX_PROBED, "probe.prompts", probe.prompts, f"must lie between 1 and {MAX_PROBED}")
    for name in ("samples_per_prompt", "max_tokens"):
        _require(getattr(probe, name) >= 1, f"probe.{name}", getattr(probe, name), "must be at least 1")
    for name in ("shown", "representation"):
        _require(getattr(probe, name) >= 0, f"probe.{name}", getattr(probe, name), "must be 0 (none) or more")
    _require(
        bool(probe.depths) and all(0 < depth < 1 for depth in probe.depths),
        "probe.depths",
        probe.depths,
        "are shares of a student's answer; give one or more between 0 and 1, for instance [0.125,0.25,0.5,0.75]",
    )


def _check_alignment(config: RunConfig) -> None:
    settings = config.alignment
    for name in ("questions", "rollouts_per_question", "rollouts_per_stratum", "nodes_per_window", "candidates"):
        _require(getattr(settings, name) >= 1, f"alignment.{name}", getattr(settings, name), "must be at least 1")
    _require(
        2 <= settings.min_completions <= settings.completions,
        "alignment.min_completions",
        settings.min_completions,
        f"must lie between 2, so that there are halves to compare, and alignment.completions={settings.completions}",
    )
    _require(settings.alpha > 0, "alignment.alpha", settings.alpha, "must be above 0; 0.5 is the Jeffreys prior")
    ratio = settings.min_signal_to_noise
    _require(ratio >= 0, "alignment.min_signal_to_noise", ratio, "counts standard errors; must be 0 or more")
    _require(settings.max_tokens >= 1, "alignment.max_tokens", settings.max_tokens, "must be at least 1")
    _require(
        not settings.enabled or config.data.verifier is not VerifierKind.none,
        "data.verifier",
        config.data.verifier.value,
        "the gradient alignment asks after which tokens the student succeeds; choose exact, math, final_answer or "
        "reasoning_gym, or set alignment.enabled=false",
    )
    _require(
        not settings.enabled or config.stage is Stage.distil,
        "alignment.enabled",
        "true",
        f"compares a teacher's gradient with the ideal one, and stage={config.stage.value} has none; set stage=distil",
    )


def _check_alarms(alarms: AlarmsConfig) -> None:
    for name, rule in alarms.rules.items():
        for fault in faults(rule):
            _require(False, f"alarms.rules.{name}.{fault.setting}", fault.value, fault.fix)
