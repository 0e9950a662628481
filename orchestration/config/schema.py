"""The run's configuration: what Hydra composes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from diagnostics.config import AlarmsConfig, AlignmentConfig, PreflightConfig, ProbeConfig
from learner.config import CheckpointConfig, LearnerConfig, StudentConfig
from learner.objectives.config import ObjectiveConfig
from rollout.config import GREEDY, DataConfig, RolloutConfig, SamplingConfig
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.settings import SEEDS, ClusterConfig, RecoveryConfig, Refusal, Settings, TimeoutConfig, setting


class Resume(Enum):
    auto = "auto"  # continue the newest unfinished run of this name, if there is one
    never = "never"


class WandbMode(Enum):
    offline = "offline"
    online = "online"
    disabled = "disabled"


@dataclass
class PipelineConfig(Settings):
    steps: int = setting(25, at_least=1)  # optimiser steps
    batch_size: int = setting(16, at_least=1, resume=False)  # trajectories a step
    # bound on learner version minus version of a trajectory's oldest token
    max_staleness: int = setting(1, at_least=0, meaning="0: strictly on-policy")
    # stage=reinforce: a step may drop so many groups whose rewards are all equal
    max_replaced_groups: int = setting(0, at_least=0, meaning="0: train on every group")


@dataclass
class ColdStartConfig(Settings):
    """Which sequences a cold start leaves out beside truncated ones; each is counted under its first reason.

    `objective.sequences.other_source` says whose they are; the teacher writes sampling.samples_per_prompt
    for each prompt.
    """

    only_correct: bool = True  # below the verifier's full score: left out; without a verifier all are correct
    keep_duplicates: bool = False  # equal responses to equal prompts
    repetition_tokens: int = setting(8, at_least=1)  # length of the n-grams by which repetition is measured
    # share of a response's n-grams that stand in it before
    max_repetition: float = setting(0.5, at_least=0, at_most=1, meaning="a share; 1: repetition is not looked at")


class BaseDivergence(Enum):
    """Whether evaluations say how far the student has gone from its initial weights, which is what it may forget."""

    auto = "auto"  # where some workers hold the initial weights anyway
    always = "always"  # a worker of its own if need be
    never = "never"


@dataclass
class EvaluationConfig(Settings):
    every: int = setting(0, at_least=0)  # steps; 0: only before and after
    prompts: int = setting(32, at_least=1, resume=False)  # the first n held-out prompts
    temperature: float = setting(1.0, above=0, meaning=GREEDY, resume=False)
    max_tokens: int = setting(48, at_least=1, resume=False)
    seed: int = setting(1234, at_least=0, at_most=SEEDS, resume=False)
    base_kl: BaseDivergence = BaseDivergence.auto
    # the teachers answer them as well, once, before the run: one with weights of its own on an engine started for it
    teacher: bool = True


@dataclass
class TrackingConfig(Settings):
    wandb: WandbMode = WandbMode.offline
    project: str = "tutelage"
    entity: str | None = None
    samples_every: int = setting(10, at_least=0)  # steps between sample tables; 0: none
    samples: int = setting(4, at_least=0)  # trajectories in a sample table

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse to send figures without the key that the service asks for."""
        yield from super().refusals(prefix)
        if self.wandb is WandbMode.online and not os.environ.get("WANDB_API_KEY"):
            fix = "no key found; set WANDB_API_KEY in the environment, or use offline"
            yield Refusal(f"{prefix}wandb", self.wandb, fix)


@dataclass
class RecipeStage(Settings):
    """One stage of a recipe: what is set for it alone, over the run's own configuration."""

    name: str  # of its folder and of its artifact
    overrides: list[str] = field(default_factory=list)  # as on the command line: objective=gkd, pipeline.steps=20


@dataclass
class RecipeConfig(Settings):
    stages: list[RecipeStage] = field(default_factory=list)  # in order; none: the run is a single stage


@dataclass
class RunConfig(Settings):
    stage: str = setting("distil", resume=False)  # what is done with the student: of `orchestration.config.stages`
    name: str = "quickstart"  # of the run: names the folder of the outputs
    seed: int = setting(0, at_least=0, at_most=SEEDS, resume=False)
    output_root: str = "outputs"
    run_dir: str | None = None  # none: <output_root>/<name>/<time>
    resume: Resume = Resume.never
    dry_run: bool = False  # resolve, validate, print the plan, start nothing
    student: StudentConfig = setting(StudentConfig, resume=False)
    teacher: TeacherConfig = setting(TeacherConfig, resume=False)
    further_teachers: dict[str, TeacherConfig] = setting(dict, resume=False)  # by key
    data: DataConfig = setting(DataConfig, resume=False)
    sampling: SamplingConfig = setting(SamplingConfig, resume=False)
    objective: ObjectiveConfig = setting(ObjectiveConfig, resume=False)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    learner: LearnerConfig = setting(LearnerConfig, finished=False)
    pipeline: PipelineConfig = setting(PipelineConfig, finished=False)
    cold_start: ColdStartConfig = setting(ColdStartConfig, resume=False)
    evaluation: EvaluationConfig = setting(EvaluationConfig, finished=False)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    timeouts: TimeoutConfig = field(default_factory=TimeoutConfig)
    recovery: RecoveryConfig = field(default_factory=RecoveryConfig)
    recipe: RecipeConfig = setting(RecipeConfig, finished=False)
    preflight: PreflightConfig = field(default_factory=PreflightConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    alignment: AlignmentConfig = field(default_factory=AlignmentConfig)
    alarms: AlarmsConfig = field(default_factory=AlarmsConfig)

    def refusals(self, prefix: str = "") -> Iterator[Refusal]:
        """Refuse a name that is no folder below `output_root`."""
        yield from super().refusals(prefix)
        if not self.name.strip("/.") or self.name.startswith("/") or ".." in self.name.split("/"):
            fix = "names a folder below output_root; give a name, or several with / in between"
            yield Refusal(f"{prefix}name", self.name, fix)
