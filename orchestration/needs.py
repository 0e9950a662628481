"""What an objective needs of a run beside the student, its engine and its teacher."""

from learner.objectives import requirements
from learner.objectives.config import OtherStates
from orchestration.config import RunConfig, Stage
from scoring.capabilities import capabilities

INITIAL_STUDENT = "student"  # as objective.reference.model


def uses_teacher(config: RunConfig) -> bool:
    """Whether a teacher marks or writes any of the sequences that are learned from; in reinforcement none does."""
    if config.stage is Stage.reinforce:
        return False
    return requirements(config.objective).teacher or _learns_from_teacher(config)


def _learns_from_teacher(config: RunConfig) -> bool:
    states = config.objective.states
    return states.student_share < 1 and states.others is OtherStates.teacher


def learns_from_data(config: RunConfig) -> bool:
    """Whether some sequences are the data's completions."""
    states = config.objective.states
    return states.student_share < 1 and states.others is OtherStates.dataset


def needs_teacher_rollouts(config: RunConfig) -> bool:
    """Whether engines have to sample from the teacher all through the run."""
    return config.stage is not Stage.cold_start and _learns_from_teacher(config)


def needs_reference_scorers(config: RunConfig) -> bool:
    """Whether a model that is not the teacher has to score as well; the teacher's workers can serve two prompts."""
    model = config.objective.reference.model
    name = config.student.model if model == INITIAL_STUDENT else model
    return name is not None and not (uses_teacher(config) and name == config.teacher.model)


def marks_new_responses(config: RunConfig) -> bool:
    """Whether the teacher can be asked about responses that nobody foresaw, as an evaluation's are."""
    return capabilities(config.teacher, config.scoring.gpus_per_worker).new_responses
