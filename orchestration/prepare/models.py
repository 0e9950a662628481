"""Models and tokenizers of a run, found and checked before anything is started."""

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from learner.config import StudentConfig
from learner.lora import trainable_parameters
from learner.objectives.rules.case import TOPK_SUPPORTS
from orchestration.config.facts import INITIAL_STUDENT, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.checkpoints import resolve_model, resolve_tokenizer
from scoring.backends.factory import kind_of
from scoring.config import TeacherConfig, teacher_setting
from scoring.request_builder import make_aligner
from tutelage.lm.packed import refuse_unpackable_layers
from tutelage.settings import ConfigError, Refusal

_CAUSAL_LMS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_LM_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration")  # of architectures that come with their own code


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher that answers for itself; a mixture has none of this."""

    path: str  # its checkpoint's directory; of a server's model, that of its tokenizer
    tokenizer: PreTrainedTokenizerBase


def adapter_parameters(student: StudentConfig, path: str) -> int:
    """How many numbers its adapters have, once it is known that they fit."""
    return trainable_parameters(path, student.lora, student.trust_remote_code) if student.lora.rank else 0


def prepare_teachers(
    config: RunConfig, student_path: str, student: PreTrainedTokenizerBase
) -> dict[str, PreparedTeacher]:
    """Checkpoint and tokenizer of every teacher that is no mixture."""
    found: dict[str, PreparedTeacher] = {}
    for key, teacher in teachers_of(config).items():
        if teacher.mixture:
            continue
        path, key_of_path = _teacher_path(teacher, teacher_setting(key), student_path)
        tokenizer_path = path
        if teacher.tokenizer is not None:
            tokenizer_path = resolve_tokenizer(teacher.tokenizer, f"{teacher_setting(key)}.tokenizer")
        if tokenizer_path == student_path:
            found[key] = PreparedTeacher(path, student)
            continue
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_path, trust_remote_code=teacher.trust_remote_code)
        if teacher.cross_tokenizer:
            make_aligner(student, tokenizer, key_of_path)  # refuses what it cannot align
        else:
            _compare_tokenizers(tokenizer, tokenizer_path, key_of_path, student)
        found[key] = PreparedTeacher(path, tokenizer)
    return found


def _teacher_path(teacher: TeacherConfig, key: str, student_path: str) -> tuple[str, str]:
    """The directory of a teacher's checkpoint, or of a server's tokenizer, and the setting that names it."""
    if not kind_of(teacher).is_remote(teacher):
        return resolve_model(teacher.model, f"{key}.model"), f"{key}.model"
    if teacher.tokenizer is None:
        return student_path, "student.model"
    return resolve_tokenizer(teacher.tokenizer, f"{key}.tokenizer"), f"{key}.tokenizer"


def model_paths(
    config: RunConfig, student_path: str, teachers: Mapping[str, PreparedTeacher], reference_path: str | None
) -> set[str]:
    """Of all models that are run here."""
    settings = teachers_of(config)
    local = [teacher.path for key, teacher in teachers.items() if not kind_of(settings[key]).is_remote(settings[key])]
    return {student_path, *local, *filter(None, [reference_path])}


def resolve_reference(config: RunConfig, student_path: str) -> str | None:
    model = config.objective.reference.model
    if model is None or model == INITIAL_STUDENT:
        return student_path if model else None
    return resolve_model(model, "objective.reference.model")


def alignment_teachers(config: RunConfig) -> list[str]:
    """The checkpoints of the further teachers that the alignment looks at."""
    return [resolve_model(teacher.model, "alignment.teachers") for teacher in config.alignment.teachers]


def length_limit(config: RunConfig, *model_paths: str) -> int:
    """`rollout.max_model_len`, once the models are known to be of a kind that can be run, and long enough."""
    limit = config.rollout.max_model_len
    for path in model_paths:
        model = AutoConfig.from_pretrained(path)
        _check_head(model, path)
        _check_supports(config, model, path)
        refuse_unpackable_layers(model)
        positions = getattr(model, "max_position_embeddings", limit)
        if positions < limit:
            fix = f"{path} has only {positions} positions; set it to {positions} or less"
            raise ConfigError(Refusal("rollout.max_model_len", limit, fix))
    return limit


def _check_head(model: PreTrainedConfig, path: str) -> None:
    """Without its own LM head a checkpoint has no distribution; transformers would make up a random one."""
    kinds = model.architectures or []
    if kinds and not set(kinds) & _CAUSAL_LMS and not any(kind.endswith(_LM_SUFFIXES) for kind in kinds):
        fix = (
            f"the checkpoint is a {kinds[0]}, which has no LM head, so it cannot give log-probs of any support, the "
            "full vocabulary included; choose a causal language model"
        )
        raise ConfigError(Refusal("model", path, fix))


def _check_supports(config: RunConfig, model: PreTrainedConfig, path: str) -> None:
    objective, vocabulary = config.objective, model.get_text_config().vocab_size
    further = {f"objective.further_terms.{name}.k": term for name, term in objective.further_terms.items()}
    for key, term in {"objective.k": objective, **further}.items():
        if term.support in TOPK_SUPPORTS and term.k > vocabulary:
            fix = f"{path} has only {vocabulary} tokens; lower it, or set support=full"
            raise ConfigError(Refusal(key, term.k, fix))
    overlap_k = config.learner.overlap_k
    if overlap_k > vocabulary:
        fix = f"{path} has only {vocabulary} tokens; lower it, or set 0 to leave the overlap out"
        raise ConfigError(Refusal("learner.overlap_k", overlap_k, fix))


def check_tokenizer(path: str, key: str, config: RunConfig, student: PreTrainedTokenizerBase) -> None:
    """Refuse a model that scores the student's tokens with another tokenizer."""
    other = AutoTokenizer.from_pretrained(path, trust_remote_code=config.teacher.trust_remote_code)
    _compare_tokenizers(other, path, key, student)


def _compare_tokenizers(other: PreTrainedTokenizerBase, path: str, key: str, student: PreTrainedTokenizerBase) -> None:
    ours, theirs = student.get_vocab(), other.get_vocab()
    if ours != theirs:
        different = [token for token in sorted(set(ours) | set(theirs)) if ours.get(token) != theirs.get(token)]
        fix = (
            f"its tokenizer differs from the student's in {len(different)} tokens (first: {different[0]!r}, "
            f"{ours.get(different[0])} here and {theirs.get(different[0])} there); token log-probs are comparable only "
            "with one vocabulary: choose a model of the same family, or, for a teacher, set "
            "teacher.cross_tokenizer=true to align the two byte by byte"
        )
        raise ConfigError(Refusal(key, path, fix))
    if student.eos_token_id != other.eos_token_id:
        fix = (
            f"its tokenizer ends a text with id {other.eos_token_id} and the student's with {student.eos_token_id}; "
            "set the same eos_token in both tokenizer_config.json"
        )
        raise ConfigError(Refusal(key, path, fix))
