"""The first pass over a run's files: every model and tokenizer that takes part is found and checked."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from learner.lora import trainable_parameters
from learner.objectives.config import TOPK_SUPPORTS, ObjectiveConfig
from orchestration.config.facts import INITIAL_STUDENT, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.checkpoints import read_config, read_tokenizer, resolve_model, resolve_tokenizer
from orchestration.prepare.ends import ModelEnds, decide_ends
from orchestration.prepare.tokenizers import added_token_refusals, compare_tokenizers, uncommon_ids
from orchestration.prepare.weights import checkpoint_refusals
from scoring.backends.factory import kind_of
from scoring.config import TeacherConfig, teacher_setting
from scoring.request_builder import make_aligner
from tutelage.lm.packable import try_packing
from tutelage.lm.packed import unpackable_layers
from tutelage.settings import Attention, ConfigError, Refusal, Refusals
from tutelage.stops import AS_THEY_ARE, TurnEnds, generation_ends

STUDENT_MODEL = "student.model"
REFERENCE_MODEL = "objective.reference.model"
# vLLM's CPUAttentionBackend.get_supported_head_sizes(), which takes an import of seconds; a test compares the two.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_FLASH_HEAD_SIZE = 256  # the largest of flash attention
_MEDIA = ("image", "boi", "eoi", "audio", "boa", "eoa", "video")  # tokens of a text model's larger siblings
_CAUSAL_LMS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_LM_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration")  # of architectures that come with their own code


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher that answers for itself; a mixture has none of this."""

    path: str  # its checkpoint's directory; of a server's model, that of its tokenizer
    tokenizer: PreTrainedTokenizerBase
    uncommon: frozenset[int] = frozenset()  # ids of added tokens that only its or only the student's tokenizer has


@dataclass(frozen=True)
class Models:
    """The models of a run, as they lie on this machine."""

    student_path: str
    tokenizer: PreTrainedTokenizerBase  # the student's
    reference_path: str | None  # of the model that rewards are extrapolated from
    adapter_parameters: int  # numbers in the student's adapters; 0: all of its weights are trained
    teachers: dict[str, PreparedTeacher] = field(default_factory=dict)  # by key
    ends: TurnEnds = AS_THEY_ARE


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
        refusals.extend(_config_refusals(config, model, path, key))
        refusals.extend(_row_refusals(model, readers.get(path, tokenizer), path, key))
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
            if _loads_weights(config, key):
                refusals.extend(checkpoint_refusals(model, path, key, trusted))
            configs[path] = key, model
        if path not in configs:
            for unread in [name for name, there in paths.items() if there == path]:
                del paths[unread]
    return configs


def _teacher_named_by(config: RunConfig, key: str) -> TeacherConfig | None:
    """The teacher whose model or tokenizer a setting names."""
    names = {teacher_setting(name): teacher for name, teacher in teachers_of(config).items()}
    return names.get(key.rpartition(".")[0])


def _trust(config: RunConfig, key: str) -> tuple[str, bool]:
    """The setting that says whether code that comes with a model is run, and its value."""
    if key == STUDENT_MODEL:
        return "student.trust_remote_code", config.student.trust_remote_code
    teacher = _teacher_named_by(config, key)
    if teacher is None:
        return "teacher.trust_remote_code", config.teacher.trust_remote_code
    return f"{key.rpartition('.')[0]}.trust_remote_code", teacher.trust_remote_code


def _loads_weights(config: RunConfig, key: str) -> bool:
    teacher = _teacher_named_by(config, key)
    return teacher is None or kind_of(teacher).loads_model(teacher)


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
    tokenizer_path = paths.get(tokenizer_key, path)
    if tokenizer_path != models.student_path:
        tokenizer = read_tokenizer(
            tokenizer_path, model_key, f"{teacher_setting(key)}.trust_remote_code", teacher.trust_remote_code
        )
        if teacher.cross_tokenizer:
            make_aligner(models.tokenizer, tokenizer, model_key)  # refuses what it cannot align
        else:
            uncommon = uncommon_ids(tokenizer, tokenizer_path, model_key, models.tokenizer)
            if not uncommon:
                comparable.add(tokenizer_path)
    prepared = PreparedTeacher(path, tokenizer, uncommon)
    _, model = configs.get(path, (key, None))  # none of a server's
    rows = math.inf if model is None else getattr(model.get_text_config(), "vocab_size", math.inf)
    refusals = list(added_token_refusals(config, uncommon, models.tokenizer, model_key, path, rows)) if uncommon else []
    if refusals:
        raise ConfigError(*refusals)
    models.teachers[key] = prepared


def _config_refusals(config: RunConfig, model: PreTrainedConfig, path: str, key: str) -> Iterator[Refusal]:
    """What a model's config says that does not go with the run's."""
    limit = config.rollout.max_model_len
    kinds = model.architectures or []
    if kinds and not set(kinds) & _CAUSAL_LMS and not any(kind.endswith(_LM_SUFFIXES) for kind in kinds):
        # Without its own LM head a checkpoint has no distribution; transformers would make up a random one.
        fix = (
            f"the checkpoint is a {kinds[0]}, which has no LM head, so it cannot give log-probs of any support, the "
            "full vocabulary included; choose a causal language model"
        )
        yield Refusal(key, path, fix)
    elif model.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not getattr(model, "auto_map", None):
        fix = (
            f"is a {kinds[0] if kinds else model.model_type}, which transformers does not load as a model of text "
            "alone (it reads images or sound, or has an encoder); choose a causal language model, for instance the "
            "text model of its family"
        )
        yield Refusal(key, path, fix)
    if getattr(model.get_text_config(), "vocab_size", None) is None:
        return  # no language model, and refused as such
    yield from _support_refusals(config.objective, config.learner.overlap_k, model, path)
    yield from _packing_refusals(config, model, path, key)
    yield from _head_size_refusals(config, model, path, key)
    positions = getattr(model, "max_position_embeddings", limit)
    if positions < limit:
        fix = f"{path} has only {positions} positions; set it to {positions} or less"
        yield Refusal("rollout.max_model_len", limit, fix)


def _row_refusals(
    model: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, path: str, key: str
) -> Iterator[Refusal]:
    """Refuse a model that has no embedding for an id that its tokenizer makes, or that its answers should end with."""
    rows = getattr(model.get_text_config(), "vocab_size", math.inf)
    places = {getattr(tokenizer, f"{kind}_token", None) for kind in _MEDIA}  # of pictures: texts have none
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows and token not in places}
    if beyond:
        first = min(beyond, key=beyond.__getitem__)
        fix = (
            f"its embedding has {rows} rows, and its tokenizer makes {len(beyond)} ids beyond them (first "
            f"{first!r}, {beyond[first]}); resize the model (model.resize_token_embeddings) and save it again, or "
            "bring the tokenizer that belongs to it"
        )
        yield Refusal(key, path, fix)
    try:
        ends = sorted(i for i in generation_ends(path) if not 0 <= i < rows)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        yield Refusal(key, path, f"its generation_config.json cannot be read ({' '.join(str(error).split())[:200]})")
        return
    if ends:
        fix = f"its generation_config.json ends answers with {ends}, and its embedding has {rows} rows; correct it"
        yield Refusal(key, path, fix)


def _packing_refusals(config: RunConfig, model: PreTrainedConfig, path: str, key: str) -> Iterator[Refusal]:
    """Refuse models that packed sequences would make another model of."""
    teacher = _teacher_named_by(config, key)
    if teacher is not None and not kind_of(teacher).packs:
        return
    advice = "choose a model whose architecture can be packed (docs/architectures.md)"
    if teacher is not None:
        advice += f", or set {key.rpartition('.')[0]}.backend=vllm"
    unpackable = unpackable_layers(model)
    if unpackable:
        yield Refusal(key, path, f"has layers that cannot be packed ({', '.join(unpackable)}); {advice}")
        return
    setting = "learner.attention" if key == STUDENT_MODEL else "scoring.attention"
    attention = config.learner.attention if key == STUDENT_MODEL else config.scoring.attention
    problem = try_packing(model, config.rollout.max_model_len).refused if attention is Attention.packed_sdpa else ""
    if problem:
        if "softcap" in problem:
            advice += f", or set {setting}=flash_attention_2 on GPUs"
        yield Refusal(key, path, f"a {model.model_type} model cannot run on packed sequences ({problem}); {advice}")


def _head_size_refusals(config: RunConfig, model: PreTrainedConfig, path: str, key: str) -> Iterator[Refusal]:
    """Refuse heads of a size that no kernel of whoever runs the model has."""
    text, teacher = model.get_text_config(), _teacher_named_by(config, key)
    heads = getattr(text, "num_attention_heads", None)
    if not heads or getattr(text, "kv_lora_rank", None):  # latent attention has sizes and kernels of its own
        return
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    in_engine = key == STUDENT_MODEL or (teacher is not None and not kind_of(teacher).packs)
    gpus = config.rollout.gpus_per_worker if key == STUDENT_MODEL else config.scoring.gpus_per_worker
    if in_engine and not gpus and size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        yield Refusal(key, path, f"its heads have size {size}, and a vLLM engine on a CPU has {sizes}; use GPUs, or "
                      "another model")  # fmt: skip
    room = config.learner if key == STUDENT_MODEL else config.scoring
    if room.attention is not Attention.packed_sdpa and (size > _FLASH_HEAD_SIZE or size % 8):
        setting = "learner.attention" if key == STUDENT_MODEL else "scoring.attention"
        fix = f"takes heads of up to {_FLASH_HEAD_SIZE}, a multiple of 8, and {path} has {size}; set packed_sdpa"
        yield Refusal(setting, room.attention, fix)


def _support_refusals(
    objective: ObjectiveConfig, overlap_k: int, model: PreTrainedConfig, path: str
) -> Iterator[Refusal]:
    """Refuse to compare more tokens than a model has."""
    vocabulary = model.get_text_config().vocab_size
    further = {f"objective.further_terms.{name}.k": term for name, term in objective.further_terms.items()}
    for key, term in {"objective.k": objective, **further}.items():
        if term.support in TOPK_SUPPORTS and term.k > vocabulary:
            yield Refusal(key, term.k, f"{path} has only {vocabulary} tokens; lower it, or set support=full")
    if overlap_k > vocabulary:
        fix = f"{path} has only {vocabulary} tokens; lower it, or set 0 to leave the overlap out"
        yield Refusal("learner.overlap_k", overlap_k, fix)
