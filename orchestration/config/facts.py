"""What follows from a configuration."""

from dataclasses import replace

from learner.objectives import requirements
from learner.objectives.config import OtherSource
from learner.objectives.rules.case import RunFacts
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from scoring.backends.factory import kind_of
from scoring.capabilities import Capabilities, mixed
from scoring.config import TEACHER, TeacherConfig
from tutelage.records.signal import SignalNeeds
from tutelage.settings import WeightTransfer


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
        has_verifier=config.data.is_graded,
        cross_tokenizer=STAGES[config.stage].has_teacher
        and any(teacher.cross_tokenizer for teacher in named_teachers(config).values()),
    )


INITIAL_STUDENT = "student"  # as objective.reference.model


def learns_from_teacher(config: RunConfig) -> bool:
    """Whether some sequences are the teacher's own."""
    sequences = config.objective.sequences
    return sequences.on_policy_fraction < 1 and sequences.other_source is OtherSource.teacher


def learns_from_data(config: RunConfig) -> bool:
    """Whether some sequences are the data's completions."""
    sequences = config.objective.sequences
    return sequences.on_policy_fraction < 1 and sequences.other_source is OtherSource.dataset


def needs_teacher_rollouts(config: RunConfig) -> bool:
    """Whether engines have to sample from the teacher all through the run."""
    kind = STAGES[config.stage]
    return kind.has_teacher and not kind.collects and learns_from_teacher(config)


def weight_transfer(config: RunConfig) -> WeightTransfer:
    """How weights travel, where the configuration leaves it open; to a cluster of one node others may come."""
    rollout, learner = config.rollout, config.learner
    if learner.weight_transfer is not WeightTransfer.auto:
        return learner.weight_transfer
    if rollout.gpus_per_worker == 0:
        is_one_node = config.cluster.address == "local"
        return WeightTransfer.shared_memory if is_one_node else WeightTransfer.object_store
    is_pair = rollout.workers == learner.ranks == rollout.tensor_parallel_size == 1
    shares_a_gpu = is_pair and 0 < learner.gpus_per_rank <= 1 - rollout.gpus_per_worker
    return WeightTransfer.ipc if shares_a_gpu else WeightTransfer.nccl


def teachers_of(config: RunConfig) -> dict[str, TeacherConfig]:
    """By key, mixtures included; empty where none scores or writes any of the sequences that are learned from."""
    if STAGES[config.stage].has_teacher and (requirements(config.objective).teacher or learns_from_teacher(config)):
        return named_teachers(config)
    return {}


def named_teachers(config: RunConfig) -> dict[str, TeacherConfig]:
    """By key, whether a teacher takes part or not."""
    return {TEACHER: config.teacher, **config.further_teachers}


def capabilities_of(config: RunConfig, key: str) -> Capabilities:
    """What a teacher of the run can give, mixtures included."""
    teachers, gpus = teachers_of(config), config.scoring.gpus_per_worker
    asked = [teachers[member] for member in teachers[key].mixture or (key,)]
    given = [kind_of(teacher).capabilities(teacher, gpus) for teacher in asked]
    return mixed(given) if teachers[key].mixture else given[0]


def shows_whole(config: RunConfig, key: str) -> bool:
    """Whether the student's new responses can be compared with this teacher over the whole vocabulary."""
    given = capabilities_of(config, key)
    return given.hidden_states and given.new_responses and not teachers_of(config)[key].cross_tokenizer


def signal_needs(config: RunConfig) -> SignalNeeds:
    """What the teachers of a run are to tell of each token: what the objective needs, and what is watched beside it."""
    watched = config.learner.overlap_k if STAGES[config.stage].learns_from_scores else 0
    return replace(requirements(config.objective), watched_top_k=watched)
