"""Everything that can be wrong with files, models and prompts, found before anything is started."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from learner.objectives.rule import TOPK_SUPPORTS
from orchestration.config import ConfigError, RunConfig, Stage
from orchestration.models import resolve_model
from orchestration.needs import INITIAL_STUDENT, learns_from_data, uses_teacher
from orchestration.views import reading_tokenizer, student_follow_ups
from rollout.config import OverLength, PromptSourceConfig, VerifierKind
from rollout.prompts import Prompt
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
from scoring.packed_model import refuse_unpackable_layers

ANSWER = "{answer}"  # in teacher.context
_CAUSAL_LMS = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
_LM_SUFFIXES = ("ForCausalLM", "ForConditionalGeneration")  # of architectures that come with their own code


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as the student and as its teacher see it."""

    prompt: Prompt
    student_ids: NDArray[np.int32]  # [P]
    teacher_ids: NDArray[np.int32]  # [P'], privileged context included
    completion_ids: NDArray[np.int32] | None = None  # [T], the data's own response, where it is learned from
    follow_ups: tuple[FollowUp, ...] = ()  # what is put to the student after each answer but the last
    teacher_follow_ups: tuple[NDArray[np.int32], ...] = ()  # the same as the teacher reads them
    told: bool | None = None  # the teacher sees more; None: as the ids say, which are of one tokenizer

    @property
    def has_context(self) -> bool:
        """Whether the teacher sees more than the student."""
        return not np.array_equal(self.student_ids, self.teacher_ids) if self.told is None else self.told


@dataclass(frozen=True)
class Prepared:
    student_path: str
    teacher_path: str | None  # None: no teacher takes part
    reference_path: str | None  # of the model that rewards are extrapolated from
    tokenizer: PreTrainedTokenizerBase
    train: tuple[RenderedPrompt, ...]
    heldout: tuple[RenderedPrompt, ...]
    over_length: int  # prompts dropped because they do not fit the model's length
    teacher_tokenizer: PreTrainedTokenizerBase | None = None  # by which the teacher reads; None: the student's

    @property
    def teacher_is_initial_student(self) -> bool:
        return self.student_path == self.teacher_path

    @property
    def prompts_digest(self) -> str:
        """SHA-256 of all prompts as student and teacher see them, in order."""
        digest = hashlib.sha256()
        for item in (*self.train, *self.heldout):
            for ids in (item.student_ids, item.teacher_ids):
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
    teacher_path = resolve_model(config.teacher.model, "teacher.model") if uses_teacher(config) else None
    tokenizer = AutoTokenizer.from_pretrained(student_path, trust_remote_code=config.student.trust_remote_code)
    reference_path = _resolve_reference(config, student_path)
    readers = tokenizer if teacher_path is None else reading_tokenizer(config.teacher, teacher_path, tokenizer)
    if teacher_path not in (None, student_path) and not config.teacher.cross_tokenizer:
        _check_tokenizer(teacher_path, "teacher.model", config, tokenizer)
    if reference_path not in (None, student_path, teacher_path):
        _check_tokenizer(reference_path, "objective.reference.model", config, tokenizer)
    further = dict.fromkeys(alignment_teachers(config) if config.alignment.enabled else (), "alignment.teachers")
    if config.probe.earlier_teacher is not None:
        further[resolve_model(config.probe.earlier_teacher, "probe.earlier_teacher")] = "probe.earlier_teacher"
    for path, key in further.items():
        _check_tokenizer(path, key, config, tokenizer)
    train = _load(config.data.train, "data.train")
    heldout = _load(config.data.heldout, "data.heldout")[: config.evaluation.prompts]
    if student_path == teacher_path:
        _check_teacher_differs(config, [*train, *heldout])
    limit = _length_limit(config, *{student_path, *filter(None, (teacher_path, reference_path)), *further})
    rendered = [_render(prompt, config, tokenizer, readers) for prompt in (*train, *heldout)]
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
    paths = student_path, teacher_path, reference_path
    return Prepared(*paths, tokenizer, kept_train, kept_heldout, fits.count(False), readers)


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
    prompt: Prompt, config: RunConfig, tokenizer: PreTrainedTokenizerBase, readers: PreTrainedTokenizerBase
) -> RenderedPrompt:
    system_prompt = config.data.system_prompt
    student_ids, messages = render_prompt(tokenizer, prompt, system_prompt), student_messages(prompt, system_prompt)
    follow_ups = student_follow_ups(tokenizer, prompt, messages)
    if not uses_teacher(config):
        return RenderedPrompt(prompt, student_ids, student_ids, follow_ups=follow_ups)
    context = _context(prompt, config)
    theirs = teacher_messages(prompt, context, system_prompt)
    return RenderedPrompt(
        prompt,
        student_ids,
        render_teacher_prompt(readers, prompt, context, system_prompt),
        follow_ups=follow_ups,
        teacher_follow_ups=render_follow_ups(readers, prompt, theirs, prompt.follow_ups),
        told=theirs != messages if config.teacher.cross_tokenizer else None,
    )


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


def _context(prompt: Prompt, config: RunConfig) -> str | None:
    """The teacher's context for this prompt; `{answer}` in it stands for the prompt's own answer."""
    context = config.teacher.context
    if context is None or ANSWER not in context:
        return context
    if prompt.answer is None:
        raise ConfigError(
            f"teacher.context: it has {ANSWER} and prompt {prompt.id!r} has no answer; add an answer column"
        )
    return context.replace(ANSWER, prompt.answer)


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


def _check_teacher_differs(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    if config.teacher.context or any(prompt.privileged_context for prompt in prompts):
        return
    selects = config.cold_start.only_correct and config.data.verifier is not VerifierKind.none
    if config.stage is Stage.cold_start and selects:
        return  # its own correct answers are something to learn from
    raise ConfigError(
        f"teacher.model={config.teacher.model}: the same weights as student.model and no teacher-only context, so "
        "there is nothing to learn; set teacher.context, give the prompts a privileged_context column, or choose "
        "another teacher"
    )


def with_ids(items: Sequence[RenderedPrompt]) -> dict[str, RenderedPrompt]:
    return {item.prompt.id: item for item in items}


def teacher_view(item: RenderedPrompt) -> RenderedPrompt:
    """The same prompt rendered for the teacher on both sides: for the teacher's own answers."""
    return replace(item, student_ids=item.teacher_ids)
