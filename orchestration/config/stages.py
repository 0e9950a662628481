"""What a run can do with the student: what each stage needs of a run, known before anything of it is imported.

A stage is one file with its class, a `TrainingStage`, and one registration: here, or in a module of another package
that an entry point of the group `tutelage.extensions` names.

    STAGES.add("my_stage", StageKind("my_package.my_stage:MyStage", "tuned", "my method", needs_scores))
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from learner.objectives import requirements
from orchestration.config.schema import RunConfig
from tutelage.registry import Registry
from tutelage.settings import Refusal


@dataclass(frozen=True)
class StageKind:
    """What the rules, the plan and the workers have to know of a stage."""

    implementation: str  # "package.module:Class", imported once a run needs it
    done: str  # to the student, for people: "distilled"
    method: str  # by which: "on-policy distillation"
    refusals: Callable[[RunConfig], Iterator[Refusal]]  # what of a configuration does not fit it
    has_teacher: bool = True  # a teacher may score or write what is learned from
    learns_from_scores: bool = True  # of a teacher
    collects: bool = False  # learns from others' sequences, chosen before the workers start; else slots roll out
    drops_groups: bool = False  # some groups of samples are not worth a step: pipeline.max_replaced_groups


STAGES: Registry[StageKind] = Registry("stage")


def needs_scores(config: RunConfig) -> Iterator[Refusal]:
    """Refuse an objective that learns nothing from a teacher's scores."""
    if not requirements(config.objective).teacher:
        yield Refusal(
            "stage",
            f"{config.stage} with objective={config.objective.name}",
            "nothing of it is learned from a teacher's scores; set stage=cold_start for a supervised objective, "
            "stage=reinforce for one of rewards alone, or choose another objective",
        )


def _needs_sequences(config: RunConfig) -> Iterator[Refusal]:
    objective = config.objective
    if requirements(objective).teacher or objective.sequences.on_policy_fraction != 0:
        yield Refusal(
            "stage",
            f"{config.stage} with objective={objective.name}",
            "sequences that another wrote are learned as they are, and this objective needs the teacher's scores or "
            "the student's own samples; set objective=supervised, or stage=distil",
        )


def _needs_rewards(config: RunConfig) -> Iterator[Refusal]:
    """Rewards are learned from, and what else is compared is compared with the reference."""
    objective, needs = config.objective, requirements(config.objective)
    reference = objective.reference
    if not needs.task_advantages:
        yield Refusal(
            "objective.task_reward.mix",
            objective.task_reward.mix,
            f"stage={config.stage} learns from rewards; choose objective=grpo, or stage=distil",
        )
    if needs.teacher and reference.model is None:
        yield Refusal(
            "objective.reference.model",
            None,
            f"the objective compares the student with another model, and stage={config.stage} has no teacher: set it "
            "to student (its initial weights) or a checkpoint, or learn from rewards alone with "
            "objective.task_reward.share=0",
        )
    if not needs.teacher and reference.model is not None:
        fix = "nothing is compared with it; set objective.task_reward.share=0.01, or null"
        yield Refusal("objective.reference.model", reference.model, fix)
    if reference.extrapolation != 1:
        fix = f"goes from a reference beyond a teacher, and stage={config.stage} has no teacher; set 1"
        yield Refusal("objective.reference.extrapolation", reference.extrapolation, fix)
    if objective.gate.only_with_context:
        fix = f"stage={config.stage} has no teacher that could see more than the student; set false"
        yield Refusal("objective.gate.only_with_context", True, fix)


STAGES.add(
    "distil",
    StageKind("orchestration.stages.distil:Distillation", "distilled", "on-policy distillation", needs_scores),
)
STAGES.add(
    "cold_start",
    StageKind(
        "orchestration.stages.cold_start:ColdStart",
        "fine-tuned",
        "supervised fine-tuning",
        _needs_sequences,
        learns_from_scores=False,
        collects=True,
    ),
)
STAGES.add(
    "reinforce",
    StageKind(
        "orchestration.stages.reinforce:Reinforcement",
        "reinforced",
        "reinforcement learning",
        _needs_rewards,
        has_teacher=False,
        learns_from_scores=False,
        drops_groups=True,
    ),
)
