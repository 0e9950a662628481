"""What the configuration and the tokenizer of a checkpoint say that does not go with the run's settings."""

import math
from collections.abc import Iterator

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from learner.objectives.config import TOPK_SUPPORTS, ObjectiveConfig
from orchestration.config.facts import teachers_of
from orchestration.config.schema import RunConfig
from scoring.backends.factory import kind_of
from scoring.config import Quantization, TeacherConfig, teacher_setting
from tutelage.lm.packable import try_packing
from tutelage.lm.packed import unpackable_layers
from tutelage.settings import Attention, Refusal
from tutelage.stops import generation_ends

STUDENT_MODEL = "student.model"
# vLLM's CPUAttentionBackend.get_supported_head_sizes(), which takes an import of seconds; a test compares the two.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
_FLASH_HEAD_SIZE = 256  # the largest of flash attention
_MEDIA = ("image", "boi", "eoi", "audio", "boa", "eoa", "video")  # tokens of a text model's larger siblings
_CAUSAL_LMS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_LM_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration")  # of architectures that come with their own code


def teacher_named_by(config: RunConfig, key: str) -> TeacherConfig | None:
    """The teacher whose model or tokenizer a setting names."""
    names = {teacher_setting(name): teacher for name, teacher in teachers_of(config).items()}
    return names.get(key.rpartition(".")[0])


def config_refusals(config: RunConfig, model: PreTrainedConfig, path: str, key: str) -> Iterator[Refusal]:
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
    teacher = teacher_named_by(config, key)
    if teacher and teacher.quantization is not Quantization.none and getattr(model, "quantization_config", None):
        fix = f"the weights of {path} are quantised already; set none"
        yield Refusal(f"{key.rpartition('.')[0]}.quantization", teacher.quantization, fix)
    if getattr(model.get_text_config(), "vocab_size", None) is None:
        return  # no language model, and refused as such
    yield from _support_refusals(config.objective, config.learner.overlap_k, model, path)
    yield from _packing_refusals(config, model, path, key)
    yield from _head_size_refusals(config, model, path, key)
    positions = getattr(model, "max_position_embeddings", limit)
    if positions < limit:
        fix = f"{path} has only {positions} positions; set it to {positions} or less"
        yield Refusal("rollout.max_model_len", limit, fix)


def rows_of(model: PreTrainedConfig) -> float:
    """Rows of a model's embedding; infinite where its config does not say."""
    return float(getattr(model.get_text_config(), "vocab_size", math.inf))


def row_refusals(model: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, path: str, key: str) -> Iterator[Refusal]:
    """Refuse a model that has no embedding for an id that its tokenizer makes, or that its answers should end with."""
    rows = rows_of(model)
    places = {getattr(tokenizer, f"{kind}_token", None) for kind in _MEDIA}  # of pictures: texts have none
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows and token not in places}
    if beyond:
        first = min(beyond, key=beyond.__getitem__)
        fix = (
            f"its embedding has {rows:g} rows, and its tokenizer makes {len(beyond)} ids beyond them (first "
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
        fix = f"its generation_config.json ends answers with {ends}, and its embedding has {rows:g} rows; correct it"
        yield Refusal(key, path, fix)


def _packing_refusals(config: RunConfig, model: PreTrainedConfig, path: str, key: str) -> Iterator[Refusal]:
    """Refuse models that packed sequences would make another model of."""
    teacher = teacher_named_by(config, key)
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
    text, teacher = model.get_text_config(), teacher_named_by(config, key)
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
