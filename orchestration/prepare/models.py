"""The first pass over a run's files: every model and tokenizer that takes part is found and checked."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from learner.lora import trainable_parameters
from orchestration.config.facts import INITIAL_STUDENT, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.architectures import (
    STUDENT_MODEL,
    config_refusals,
    row_refusals,
    rows_of,
    teacher_named_by,
)
from orchestration.prepare.checkpoints import read_config, read_tokenizer, resolve_model, resolve_tokenizer
from orchestration.prepare.ends import ModelEnds, decide_ends
from orchestration.prepare.tokenizers import added_token_refusals, compare_tokenizers, uncommon_tokens
from orchestration.prepare.weights import checkpoint_refusals
from scoring.backends.factory import kind_of
from scoring.config import TeacherConfig, teacher_setting
from scoring.request_builder import make_aligner
from tutelage.settings import ConfigError, Refusal, Refusals
from tutelage.stops import AS_THEY_ARE, TurnEnds

REFERENCE_MODEL = "objective.reference.model"


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher that answers for itself; a mixture has none of this."""

    path: str  # its checkpoint's directory; of a server's model, that of its tokenizer
    tokenizer: PreTrainedTokenizerBase
    uncommon: frozenset[int] = frozenset()  # ids that only it or only the student has: added tokens, padding rows
    rows: float = math.inf  # of its embedding; a server's are not known


@dataclass(frozen=True)
class Models:
    """The models of a run, as they lie on this machine."""

    student_path: str
    tokenizer: PreTrainedTokenizerBase  # the student's
    reference_path: str | None  # of the model that rewards are extrapolated from
    adapter_parameters: int  # numbers in the student's adapters; 0: all of its weights are trained
    teachers: dict[str, PreparedTeacher] = field(default_factory=dict)  # by key
    ends: TurnEnds = AS_THEY_ARE
    rows: float = math.inf  # of the student's embedding


def find_models(config: RunConfig) -> Models:
    """Find every model that the settings name, and check that they fit each other and the run.

    Raises:
        ConfigError: with everything that cannot work.
    """
    refusals = Refusals()
    paths: dict[str, str] = {}  # by the setting that names them
    for key, (name, resolve) in _named_models(config).items():
        with refusals.collecting():
            paths[key] = resolve(name, key)
    configs = _check_checkpoints(config, paths, refusals)
    if STUDENT_MODEL not in paths:
        refusals.raise_all()
    student_path = paths[STUDENT_MODEL]
    with refusals.collecting():
        tokenizer = read_tokenizer(student_path, STUDENT_MODEL, *_trust(config, STUDENT_MODEL))
    if any(refusal.key == STUDENT_MODEL for refusal in refusals):
        refusals.raise_all()
    reference = config.objective.reference.model
    models = Models(
        student_path,
        tokenizer,
        student_path if reference == INITIAL_STUDENT else paths.get(REFERENCE_MODEL),
        adapter_parameters=_count_adapters(config, student_path, refusals),
        rows=rows_of(configs[student_path][1]),
    )
    comparable = {student_path}  # models with the student's tokenizer
    for key, teacher in teachers_of(config).items():
        if not teacher.mixture:
            with refusals.collecting():
                _add_teacher(config, models, key, teacher, paths, comparable, configs)
    others: dict[str, ModelEnds] = {}
    for key in (REFERENCE_MODEL, *_further_models(config)):
        if key in paths and paths[key] not in comparable:
            with refusals.collecting():
                other = read_tokenizer(paths[key], key, *_trust(config, key))
                compare_tokenizers(other, paths[key], key, tokenizer)
                others[key] = ModelEnds.of(other, paths[key])
    readers = {prepared.path: prepared.tokenizer for prepared in models.teachers.values()} | {student_path: tokenizer}
    for path, (key, model) in configs.items():
        refusals.extend(config_refusals(config, model, path, key))
        refusals.extend(row_refusals(model, readers.get(path, tokenizer), path, key))
    for key in (REFERENCE_MODEL, "probe.earlier_teacher"):
        if key in paths and rows_of(configs[paths[key]][1]) < models.rows < math.inf:
            fix = (
                f"its embedding has fewer rows than the {models.rows:g} of student.model; choose another, or resize it"
            )
            refusals.extend([Refusal(key, paths[key], fix)])
    refusals.raise_all()
    same_ids = {
        key: ModelEnds.of(teacher.tokenizer, teacher.path)
        for key, teacher in models.teachers.items()
        if not teachers_of(config)[key].cross_tokenizer
    }
    ends = decide_ends(config, ModelEnds.of(tokenizer, student_path), same_ids, others)
    refusals.extend(_uncommon_end_refusals(config, models, ends))
    refusals.raise_all()
    return replace(models, ends=ends)


def _uncommon_end_refusals(config: RunConfig, models: Models, ends: TurnEnds) -> Iterator[Refusal]:
    """Refuse to treat an id that only one of two tokenizers has as an end of both."""
    named = {*ends.stop_ids, *(end for swap in ends.swaps.values() for end in (swap.student, swap.teacher))}
    for key, teacher in models.teachers.items():
        lacking = sorted(teacher.uncommon & named)
        if lacking:
            fix = (
                f"with {teacher_setting(key)} an answer may end with id {lacking[0]}, an added token that only one of "
                "the two tokenizers has; add it to the other one's tokenizer, or set "
                f"{teacher_setting(key)}.cross_tokenizer=true"
            )
            yield Refusal("sampling.stops", config.sampling.stops, fix)


def _check_checkpoints(
    config: RunConfig, paths: dict[str, str], refusals: Refusals
) -> dict[str, tuple[str, PreTrainedConfig]]:
    """Read the config of each checkpoint once, by path with the first setting that names it, and check its weights.

    What cannot be read is refused and taken out of `paths`.
    """
    named = {path: key for key, path in reversed(paths.items()) if not key.endswith(".tokenizer")}
    configs: dict[str, tuple[str, PreTrainedConfig]] = {}
    for path, key in reversed(named.items()):
        with refusals.collecting():
            trust_key, trusted = _trust(config, key)
            model = read_config(path, key, trust_key, trusted)
            teacher = teacher_named_by(config, key)
            if teacher is None or kind_of(teacher).loads_model(teacher):
                refusals.extend(checkpoint_refusals(model, path, key, trusted))
            configs[path] = key, model
        if path not in configs:
            for unread in [name for name, there in paths.items() if there == path]:
                del paths[unread]
    return configs


def _trust(config: RunConfig, key: str) -> tuple[str, bool]:
    """The setting that says whether code that comes with a model is run, and its value."""
    if key == STUDENT_MODEL:
        return "student.trust_remote_code", config.student.trust_remote_code
    teacher = teacher_named_by(config, key)
    if teacher is None:
        return "teacher.trust_remote_code", config.teacher.trust_remote_code
    return f"{key.rpartition('.')[0]}.trust_remote_code", teacher.trust_remote_code


def _named_models(config: RunConfig) -> dict[str, tuple[str, Callable[[str, str], str]]]:
    """Names of models and tokenizers, by their settings, and what finds them."""
    named: dict[str, tuple[str, Callable[[str, str], str]]] = {STUDENT_MODEL: (config.student.model, resolve_model)}
    for key, teacher in teachers_of(config).items():
        if not teacher.mixture and not kind_of(teacher).is_remote(teacher):
            named[f"{teacher_setting(key)}.model"] = teacher.model, resolve_model
        if not teacher.mixture and teacher.tokenizer is not None:
            named[f"{teacher_setting(key)}.tokenizer"] = teacher.tokenizer, resolve_tokenizer
    if config.objective.reference.model not in (None, INITIAL_STUDENT):
        named[REFERENCE_MODEL] = config.objective.reference.model, resolve_model
    return named | {key: (name, resolve_model) for key, name in _further_models(config).items()}


def _further_models(config: RunConfig) -> dict[str, str]:
    """Names of the models that only a diagnosis looks at, by their settings."""
    names = {}
    if config.alignment.enabled:
        names = {f"alignment.teachers[{i}].model": teacher.model for i, teacher in enumerate(config.alignment.teachers)}
    earlier = config.probe.earlier_teacher
    return names if earlier is None else names | {"probe.earlier_teacher": earlier}


def _count_adapters(config: RunConfig, student_path: str, refusals: Refusals) -> int:
    with refusals.collecting():
        if config.student.lora.rank:
            return trainable_parameters(student_path, config.student.lora, config.student.trust_remote_code)
    return 0


def _add_teacher(
    config: RunConfig,
    models: Models,
    key: str,
    teacher: TeacherConfig,
    paths: dict[str, str],
    comparable: set[str],
    configs: Mapping[str, tuple[str, PreTrainedConfig]],
) -> None:
    """Add a teacher that can score the student's tokens, as they are or aligned.

    Args:
        comparable: paths of models with the student's tokenizer, to which the teacher's is added.
        configs: of the checkpoints, by path.

    Raises:
        ConfigError: it cannot.
    """
    model_key, tokenizer_key = f"{teacher_setting(key)}.model", f"{teacher_setting(key)}.tokenizer"
    if kind_of(teacher).is_remote(teacher):
        model_key = STUDENT_MODEL if teacher.tokenizer is None else tokenizer_key
    if model_key not in paths or (teacher.tokenizer is not None and tokenizer_key not in paths):
        return  # refused already
    path, tokenizer, uncommon = paths[model_key], models.tokenizer, frozenset[int]()
    rows = rows_of(configs[path][1]) if path in configs else math.inf
    tokenizer_path = paths.get(tokenizer_key, path)
    if tokenizer_path != models.student_path:
        tokenizer = read_tokenizer(
            tokenizer_path, model_key, f"{teacher_setting(key)}.trust_remote_code", teacher.trust_remote_code
        )
        if teacher.cross_tokenizer:
            make_aligner(models.tokenizer, tokenizer, model_key)  # refuses what it cannot align
        else:
            uncommon = uncommon_tokens(tokenizer, tokenizer_path, model_key, models.tokenizer)
            if not uncommon:
                comparable.add(tokenizer_path)
    if uncommon and (refusals := list(added_token_refusals(config, uncommon, models.tokenizer, model_key, path, rows))):
        raise ConfigError(*refusals)
    if rows < models.rows < math.inf and not teacher.cross_tokenizer:
        uncommon |= frozenset(range(int(rows), int(models.rows)))  # padding, which the student may sample all the same
    models.teachers[key] = PreparedTeacher(path, tokenizer, uncommon, rows)
