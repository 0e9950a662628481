"""What a run makes of the ends of its models, where student and teacher end their turns with different tokens."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from orchestration.config.facts import capabilities_of, learns_from_teacher, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from rollout.config import Stops
from scoring.config import teacher_setting
from tutelage.chat import end_of_answer
from tutelage.settings import ConfigError, Refusal
from tutelage.stops import AS_THEY_ARE, StopClass, Swap, TurnEnds, generation_ends

_KEY = "sampling.stops"


@dataclass(frozen=True)
class ModelEnds:
    """How one model ends its turns."""

    ids: frozenset[int]  # each of which ends a response of its engine
    own: int | None  # the one that it writes; None: it has none

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, path: str) -> "ModelEnds":
        """Read them from a checkpoint's tokenizer, template and generation config."""
        ids = frozenset(id for id in {tokenizer.eos_token_id, *generation_ends(path)} - {None} if id < len(tokenizer))
        written = end_of_answer(tokenizer)
        if written not in ids:
            written = tokenizer.eos_token_id if tokenizer.eos_token_id in ids else min(ids, default=None)
        return cls(ids, written)


def decide_ends(
    config: RunConfig, student: ModelEnds, teachers: Mapping[str, ModelEnds], others: Mapping[str, ModelEnds]
) -> TurnEnds:
    """Decide what ends a turn of the run; where all models end theirs alike, nothing is changed.

    Args:
        teachers: that have the student's ids, by key, without mixtures.
        others: further models that are compared with the student, by the setting that names them.

    Raises:
        ConfigError: `sampling.stops` asks for what the run's models cannot do.
    """
    models = {**{teacher_setting(key): ends for key, ends in teachers.items()}, **others}
    different = {key: ends for key, ends in models.items() if ends.ids and ends.ids != student.ids}
    stops = config.sampling.stops
    if not student.ids or not different or stops is Stops.as_they_are:
        return AS_THEY_ARE
    ids = student.ids.union(*(ends.ids for ends in models.values()))
    if stops is Stops.both:
        return TurnEnds(stop_ids=tuple(sorted(ids)))
    rule = _semantic_refusals if stops is Stops.semantic else _swap_refusals
    refusals = list(rule(config, student, teachers, others))
    if refusals:
        raise ConfigError(*refusals)
    if stops is Stops.teacher:
        return TurnEnds(swaps=dict(_swaps(config, student, teachers)))
    kept = next(iter(different.values())).own
    assert kept is not None  # who has ends has one of its own
    return TurnEnds(tuple(sorted(ids)), StopClass(kept, tuple(sorted(ids - {kept}))))


def _semantic_refusals(
    config: RunConfig, _student: ModelEnds, teachers: Mapping[str, ModelEnds], _others: Mapping[str, ModelEnds]
) -> Iterator[Refusal]:
    """Refuse teachers that cannot give the probability of all ends together."""
    for key, teacher in teachers_of(config).items():
        if teacher.cross_tokenizer:
            fix = f"{teacher_setting(key)} has a tokenizer of its own, whose ends are aligned; set as_they_are"
            yield Refusal(_KEY, Stops.semantic, fix)
        elif (key in teachers or teacher.mixture) and not capabilities_of(config, key).merged_stops:
            fix = (
                f"student and teacher end their turns with different tokens, and {teacher_setting(key)}.backend="
                f"{teacher.backend} gives the log-probs of single tokens only; set teacher to score the student's end "
                "as the teacher's own, or backend=transformers"
            )
            yield Refusal(_KEY, Stops.semantic, fix)


def _swap_refusals(
    config: RunConfig, student: ModelEnds, teachers: Mapping[str, ModelEnds], others: Mapping[str, ModelEnds]
) -> Iterator[Refusal]:
    """Refuse what a teacher's end in the place of the student's cannot be said of."""
    if learns_from_teacher(config) or STAGES[config.stage].collects:
        fix = "sequences of the teacher's own are learned from, and they end with its own tokens; set semantic"
        yield Refusal(_KEY, Stops.teacher, fix)
    for key, ends in others.items():
        if ends.own not in (student.own, None):
            yield Refusal(_KEY, Stops.teacher, f"{key} ends its turns with another token as well; set semantic")
    for key, teacher in teachers_of(config).items():
        if len({teachers[member].own for member in teacher.mixture if member in teachers}) > 1:
            fix = f"the teachers of {teacher_setting(key)}.mixture end their turns with different tokens; set semantic"
            yield Refusal(_KEY, Stops.teacher, fix)


def _swaps(config: RunConfig, student: ModelEnds, teachers: Mapping[str, ModelEnds]) -> Iterator[tuple[str, Swap]]:
    """The student's end and the teacher's, for each teacher and mixture that has another one."""
    for key, teacher in teachers_of(config).items():
        ends = teachers.get(next(iter(teacher.mixture), key))
        if ends is not None and student.own is not None and ends.own not in (student.own, None):
            yield key, Swap(student.own, ends.own)
