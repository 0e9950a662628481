"""The run's configuration: what Hydra composes, and every rule that spans two parts of it."""

from dataclasses import dataclass, field
from enum import Enum

from diagnostics.config import AlarmsConfig, AlignmentConfig, PreflightConfig, ProbeConfig
from learner.config import CheckpointConfig, LearnerConfig, StudentConfig
from learner.objectives.config import ObjectiveConfig
from rollout.config import DataConfig, RolloutConfig, SamplingConfig
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.settings import ClusterConfig, TimeoutConfig


class Stage(Enum):
    """What a run does with the student."""

    distil = "distil"  # on-policy distillation: learn from the teacher's scores
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

    `objective.sequences.other_source` says whose they are; the teacher writes sampling.samples_per_prompt
    for each prompt.
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
