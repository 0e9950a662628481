"""Everything that can be wrong with files, models and prompts, found before anything is started."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from learner.config import StudentConfig
from learner.lora import trainable_parameters
from learner.objectives.rule import TOPK_SUPPORTS
from orchestration.config import ConfigError, RunConfig, Stage
from orchestration.contexts import ContextTemplate, static_values
from orchestration.models import resolve_model, resolve_tokenizer
from orchestration.needs import INITIAL_STUDENT, learns_from_data
from orchestration.routing import route, teachers_of
from orchestration.teacher_rules import TEACHER, setting
from rollout.config import OverLength, PromptSourceConfig, VerifierKind
from rollout.prompts import Message, Prompt
from rollout.rendering import (
    render_completion,
    render_follow_ups,
    render_prompt,
    render_teacher_prompt,
    student_messages,
    teacher_messages,
)
from rollout.sources import load_prompts
from rollout.trajectory import FollowUp
from scoring.config import TeacherBackend, TeacherConfig
from scoring.packed_model import refuse_unpackable_layers
from scoring.views import make_aligner

_CAUSAL_LMS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_LM_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration")  # of architectures that come with their own code


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the student and as its teacher see it."""

    prompt: Prompt
    student_ids: NDArray[np.int32]  # [P]
    teacher_ids: NDArray[np.int32]  # [P'], privileged context included; of a mixture's longest view
    completion_ids: NDArray[np.int32] | None = None  # [T], the data's own response, where it is learned from
    views: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)  # of a mixture's teachers, by key, [P'] each
    follow_ups: tuple[FollowUp, ...] = ()  # what is put to the student after each answer but the last
    teacher_follow_ups: tuple[NDArray[np.int32], ...] = ()  # the same as the teacher reads them
    told: bool | None = None  # the teacher sees more; None: as the ids say, which are of one tokenizer

    @property
    def has_context(self) -> bool:
        """Whether the teacher sees more than the student."""
        if self.told is not None:
            return self.told
        seen = self.views.values() if self.views else (self.teacher_ids,)
        return any(not np.array_equal(self.student_ids, ids) for ids in seen)


@dataclass(frozen=True)
class PreparedTeacher:
    """A teacher that answers for itself; a mixture has none of this."""

    path: str  # its checkpoint's directory; of a server's model, that of its tokenizer
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    student_path: str
    teachers: Mapping[str, PreparedTeacher]  # by key; none: no teacher takes part
    reference_path: str | None  # of the model that rewards are extrapolated from
    tokenizer: PreTrainedTokenizerBase
    train: tuple[RenderedPrompt, ...]
    heldout: tuple[RenderedPrompt, ...]
    over_length: int  # prompts dropped because they do not fit the model's length
    adapter_parameters: int = 0  # numbers in the student's adapters; 0: all of its weights are trained

    @property
    def teacher_path(self) -> str | None:
        """Of the teacher that every run has; None where no teacher takes part."""
        return self.teachers[TEACHER].path if TEACHER in self.teachers else None

    @property
    def teacher_is_initial_student(self) -> bool:
        return self.student_path == self.teacher_path

    @property
    def prompts_digest(self) -> str:
        """SHA-256 of all prompts as student and teacher see them, in order."""
        digest = hashlib.sha256()
        for item in (*self.train, *self.heldout):
            for ids in (item.student_ids, item.teacher_ids, *item.views.values()):
                digest.update(np.int64(len(ids)).tobytes() + ids.tobytes())
        return digest.hexdigest()

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that the tokenizer reserves, EOS among them."""
        added = self.tokenizer.added_tokens_decoder.items()
        return frozenset({*self.tokenizer.all_special_ids, *(token for token, entry in added if entry.special)})


def prepare(config: RunConfig) -> Prepared:
    """Resolve models, load and render prompts, and check what only files can tell.

    Raises:
        ConfigError or ValueError: naming the key, the value and the fix.
    """
    student_path = resolve_model(config.student.model, "student.model")
    tokenizer = AutoTokenizer.from_pretrained(student_path, trust_remote_code=config.student.trust_remote_code)
    teachers = _prepare_teachers(config, student_path, tokenizer)
    reference_path = _resolve_reference(config, student_path)
    known = {student_path, *(teacher.path for teacher in teachers.values())}
    if reference_path is not None and reference_path not in known:
        _check_tokenizer(reference_path, "objective.reference.model", config, tokenizer)
    further = dict.fromkeys(alignment_teachers(config) if config.alignment.enabled else (), "alignment.teachers")
    if config.probe.earlier_teacher is not None:
        further[resolve_model(config.probe.earlier_teacher, "probe.earlier_teacher")] = "probe.earlier_teacher"
    for path, key in further.items():
        _check_tokenizer(path, key, config, tokenizer)
    train = route(_load(config.data.train, "data.train"), config, "data.train")
    heldout = _load(config.data.heldout, "data.heldout")[: config.evaluation.prompts]
    heldout = route(heldout, config, "data.heldout")
    _check_teachers_differ(config, teachers, student_path, [*train, *heldout])
    limit = _length_limit(config, *_model_paths(config, student_path, teachers, reference_path), *further)
    rendered = [_render(prompt, config, tokenizer, teachers) for prompt in (*train, *heldout)]
    rendered[: len(train)] = _with_completions(rendered[: len(train)], config, tokenizer)
    fits = [_fits(item, config, limit) for item in rendered]
    kept_train = tuple(item for item, ok in zip(rendered[: len(train)], fits[: len(train)], strict=True) if ok)
    kept_heldout = tuple(item for item, ok in zip(rendered[len(train) :], fits[len(train) :], strict=True) if ok)
    for name, kept in (("train", kept_train), ("heldout", kept_heldout)):
        if not kept:
            raise ConfigError(
                f"data.{name}: no prompt fits in {limit} tokens with its response; raise rollout.max_model_len"
            )
    _check_gate(config, kept_train)
    dropped, adapters = fits.count(False), _adapter_parameters(config.student, student_path)
    return Prepared(student_path, teachers, reference_path, tokenizer, kept_train, kept_heldout, dropped, adapters)


def _adapter_parameters(student: StudentConfig, path: str) -> int:
    """How many numbers its adapters have, once it is known that they fit."""
    return trainable_parameters(path, student.lora, student.trust_remote_code) if student.lora.rank else 0


def _prepare_teachers(
    config: RunConfig, student_path: str, student: PreTrainedTokenizerBase
) -> dict[str, PreparedTeacher]:
    """Checkpoint and tokenizer of every teacher that is no mixture."""
    found: dict[str, PreparedTeacher] = {}
    for key, teacher in teachers_of(config).items():
        if teacher.mixture:
            continue
        path, key_of_path = _teacher_path(teacher, setting(key), student_path)
        tokenizer_path = path
        if teacher.tokenizer is not None:
            tokenizer_path = resolve_tokenizer(teacher.tokenizer, f"{setting(key)}.tokenizer")
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


def is_remote(teacher: TeacherConfig) -> bool:
    """Whether a server has the model, or had it when it filled the cache: here there is its tokenizer at most."""
    served = teacher.backend is TeacherBackend.cache and bool(teacher.server.url)
    return served or teacher.backend is TeacherBackend.server


def _teacher_path(teacher: TeacherConfig, key: str, student_path: str) -> tuple[str, str]:
    """The directory of a teacher's checkpoint, or of a server's tokenizer, and the setting that names it."""
    if not is_remote(teacher):
        return resolve_model(teacher.model, f"{key}.model"), f"{key}.model"
    if teacher.tokenizer is None:
        return student_path, "student.model"
    return resolve_tokenizer(teacher.tokenizer, f"{key}.tokenizer"), f"{key}.tokenizer"


def _model_paths(
    config: RunConfig, student_path: str, teachers: Mapping[str, PreparedTeacher], reference_path: str | None
) -> set[str]:
    """Of all models that are run here."""
    settings = teachers_of(config)
    local = [teacher.path for key, teacher in teachers.items() if not is_remote(settings[key])]
    return {student_path, *local, *filter(None, [reference_path])}


def _resolve_reference(config: RunConfig, student_path: str) -> str | None:
    model = config.objective.reference.model
    if model is None or model == INITIAL_STUDENT:
        return student_path if model else None
    return resolve_model(model, "objective.reference.model")


def alignment_teachers(config: RunConfig) -> list[str]:
    """The checkpoints of the further teachers that the alignment looks at."""
    return [resolve_model(teacher.model, "alignment.teachers") for teacher in config.alignment.teachers]


def _load(source: PromptSourceConfig, key: str) -> list[Prompt]:
    return load_prompts(source, key)


def _render(
    prompt: Prompt,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    teachers: Mapping[str, PreparedTeacher],
) -> RenderedPrompt:
    system_prompt = config.data.system_prompt
    student_ids, messages = render_prompt(tokenizer, prompt, system_prompt), student_messages(prompt, system_prompt)
    between = render_follow_ups(tokenizer, prompt, messages, prompt.follow_ups)
    follow_ups = tuple(FollowUp(m.role, m.content, ids) for m, ids in zip(prompt.follow_ups, between, strict=True))
    if not teachers:
        return RenderedPrompt(prompt, student_ids, student_ids, follow_ups=follow_ups)
    members = teachers_of(config)[prompt.teacher].mixture or {prompt.teacher: 1.0}
    views = {key: _teacher_view(prompt, key, config, teachers[key].tokenizer) for key in members}
    longest = max(views.values(), key=len)
    item = RenderedPrompt(prompt, student_ids, longest, follow_ups=follow_ups, teacher_follow_ups=between)
    if len(views) > 1:
        return replace(item, views=views)
    return _with_reading(item, config, messages, teachers[next(iter(members))].tokenizer)


def _with_reading(
    item: RenderedPrompt, config: RunConfig, messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase
) -> RenderedPrompt:
    """The further turns by the teacher's own template, and whether it is told more where ids cannot tell."""
    prompt, teacher = item.prompt, teachers_of(config)[item.prompt.teacher]
    context = _context(prompt, prompt.teacher, teacher)
    theirs = teacher_messages(prompt, context, config.data.system_prompt)
    between = render_follow_ups(tokenizer, prompt, theirs, prompt.follow_ups)
    return replace(item, teacher_follow_ups=between, told=theirs != messages if teacher.cross_tokenizer else None)


def _teacher_view(prompt: Prompt, key: str, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int32]:
    """[P']: what a teacher sees of a prompt before there is any response to it."""
    context = _context(prompt, key, teachers_of(config)[key])
    return render_teacher_prompt(tokenizer, prompt, context, config.data.system_prompt)


def _with_completions(
    items: Sequence[RenderedPrompt], config: RunConfig, tokenizer: PreTrainedTokenizerBase
) -> list[RenderedPrompt]:
    """The training prompts with the data's own responses, if some are learned from."""
    if not learns_from_data(config):
        return list(items)
    return [replace(item, completion_ids=render_completion(tokenizer, _completion(item, config))) for item in items]


def _completion(item: RenderedPrompt, config: RunConfig) -> str:
    if item.prompt.completion is None:
        raise ConfigError(
            f"objective.states.others=dataset: training prompt {item.prompt.id!r} has no completion; set "
            f"data.train.completion_column={config.data.train.completion_column} to the column of the responses, end "
            "the messages with the assistant's, or set objective.states.others=teacher"
        )
    return item.prompt.completion


def _context(prompt: Prompt, key: str, teacher: TeacherConfig) -> str | None:
    """The teacher's context for this prompt; None where it waits for a response."""
    if teacher.context is None:
        return None
    template = ContextTemplate(teacher.context)
    missing = template.missing(prompt)
    if missing is not None:
        raise ConfigError(
            f"{setting(key)}.context: it has {{{missing}}} and prompt {prompt.id!r} has no {missing}; add a column "
            f"{missing!r}, or leave the field out"
        )
    return None if template.waits_for else template.filled(static_values(prompt))


def _length_limit(config: RunConfig, *model_paths: str) -> int:
    """`rollout.max_model_len`, once the models are known to be of a kind that can be run, and long enough."""
    limit = config.rollout.max_model_len
    for path in model_paths:
        model = AutoConfig.from_pretrained(path)
        _check_head(model, path)
        _check_supports(config, model, path)
        refuse_unpackable_layers(model)
        positions = getattr(model, "max_position_embeddings", limit)
        if positions < limit:
            raise ConfigError(
                f"rollout.max_model_len={limit}: {path} has only {positions} positions; set it to {positions} or less"
            )
    return limit


def _check_head(model: PreTrainedConfig, path: str) -> None:
    """Without its own LM head a checkpoint has no distribution; transformers would make up a random one."""
    kinds = model.architectures or []
    if kinds and not set(kinds) & _CAUSAL_LMS and not any(kind.endswith(_LM_SUFFIXES) for kind in kinds):
        raise ConfigError(
            f"{path}: the checkpoint is a {kinds[0]}, which has no LM head, so it cannot give log-probs of any "
            "support, the full vocabulary included; choose a causal language model"
        )


def _check_supports(config: RunConfig, model: PreTrainedConfig, path: str) -> None:
    objective, vocabulary = config.objective, model.get_text_config().vocab_size
    further = {f"objective.further_terms.{name}.k": term for name, term in objective.further_terms.items()}
    for key, term in {"objective.k": objective, **further}.items():
        if term.support in TOPK_SUPPORTS and term.k > vocabulary:
            raise ConfigError(f"{key}={term.k}: {path} has only {vocabulary} tokens; lower it, or set support=full")
    overlap_k = config.learner.overlap_k
    if overlap_k > vocabulary:
        fix = "lower it, or set 0 to leave the overlap out"
        raise ConfigError(f"learner.overlap_k={overlap_k}: {path} has only {vocabulary} tokens; {fix}")


def _check_gate(config: RunConfig, prompts: Sequence[RenderedPrompt]) -> None:
    contexts = [teacher.context for teacher in teachers_of(config).values() if teacher.context is not None]
    if any(ContextTemplate(context).waits_for for context in contexts):
        return  # it comes with the responses
    if config.objective.gate.only_with_context and not any(item.has_context for item in prompts):
        raise ConfigError(
            "objective.gate.only_with_context=true: no prompt has a context that only the teacher sees, so nothing "
            "would be learned; set teacher.context, give the prompts a privileged_context column, or set false"
        )


def _fits(item: RenderedPrompt, config: RunConfig, limit: int) -> bool:
    longest = max(_tokens(item, config, of_teacher) for of_teacher in (False, True))
    if longest > limit and config.data.over_length is OverLength.refuse:
        raise ConfigError(
            f"prompt {item.prompt.id!r} needs {longest} tokens with its response and rollout.max_model_len={limit}; "
            "raise it, or set data.over_length=drop to leave such prompts out"
        )
    return longest <= limit


def _tokens(item: RenderedPrompt, config: RunConfig, of_teacher: bool) -> int:
    """Most that a prompt and all that may follow it take; a first answer is also evaluated."""
    prompt = len(item.teacher_ids if of_teacher else item.student_ids)
    others = item.teacher_follow_ups if of_teacher else [follow_up.ids for follow_up in item.follow_ups]
    conversation = (1 + len(others)) * config.sampling.max_tokens + sum(len(ids) for ids in others)
    return prompt + max(conversation, config.evaluation.max_tokens)


def _check_tokenizer(path: str, key: str, config: RunConfig, student: PreTrainedTokenizerBase) -> None:
    """Refuse a model that scores the student's tokens with another tokenizer."""
    other = AutoTokenizer.from_pretrained(path, trust_remote_code=config.teacher.trust_remote_code)
    _compare_tokenizers(other, path, key, student)


def _compare_tokenizers(other: PreTrainedTokenizerBase, path: str, key: str, student: PreTrainedTokenizerBase) -> None:
    ours, theirs = student.get_vocab(), other.get_vocab()
    if ours != theirs:
        different = [token for token in sorted(set(ours) | set(theirs)) if ours.get(token) != theirs.get(token)]
        raise ConfigError(
            f"{key}={path}: its tokenizer differs from the student's in {len(different)} tokens "
            f"(first: {different[0]!r}, {ours.get(different[0])} here and {theirs.get(different[0])} there); "
            "token log-probs are comparable only with one vocabulary: choose a model of the same family, or, for a "
            "teacher, set teacher.cross_tokenizer=true to align the two byte by byte"
        )
    if student.eos_token_id != other.eos_token_id:
        raise ConfigError(
            f"{key}={path}: its tokenizer ends a text with id {other.eos_token_id} and the "
            f"student's with {student.eos_token_id}; set the same eos_token in both tokenizer_config.json"
        )


def _check_teachers_differ(
    config: RunConfig, teachers: Mapping[str, PreparedTeacher], student_path: str, prompts: Sequence[Prompt]
) -> None:
    """Refuse a teacher that has the student's own weights and sees no more than it.

    That holds for an average of them as well: where both begin alike nothing ever moves them apart.
    """
    for key, teacher in teachers.items():
        settings = teachers_of(config)[key]
        alone = not is_remote(settings) and teacher.path == student_path
        if alone:
            _check_sees_more(config, key, settings, [prompt for prompt in prompts if prompt.teacher == key])


def _check_sees_more(config: RunConfig, key: str, teacher: TeacherConfig, prompts: Sequence[Prompt]) -> None:
    if not prompts or teacher.context or any(prompt.privileged_context for prompt in prompts):
        return
    selects = config.cold_start.only_correct and config.data.verifier is not VerifierKind.none
    if config.stage is Stage.cold_start and selects:
        return  # its own correct answers are something to learn from
    raise ConfigError(
        f"{setting(key)}.model={teacher.model}: the same weights as student.model and no teacher-only context, so "
        f"there is nothing to learn; set {setting(key)}.context, give the prompts a privileged_context column, or "
        "choose another teacher"
    )


def with_ids(items: Sequence[RenderedPrompt]) -> dict[str, RenderedPrompt]:
    return {item.prompt.id: item for item in items}


def teacher_view(item: RenderedPrompt) -> RenderedPrompt:
    """The same prompt rendered for the teacher on both sides: for the teacher's own answers."""
    return replace(item, student_ids=item.teacher_ids)
