"""Everything that can be wrong with files, models and prompts, found before anything is started."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from learner.objectives import requirements
from orchestration.config.facts import capabilities_of, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.checkpoints import resolve_model
from orchestration.prepare.models import (
    PreparedTeacher,
    adapter_parameters,
    alignment_teachers,
    check_tokenizer,
    length_limit,
    model_paths,
    prepare_teachers,
    resolve_reference,
)
from orchestration.prepare.prompts import (
    check_gate,
    check_teachers_differ,
    fits_model,
    render_for_models,
    with_completions,
)
from orchestration.prepare.roles import Roles, decide_roles
from rollout.data.sources import load_prompts
from scoring.backends.factory import kind_of
from scoring.config import TEACHER
from scoring.dynamic_context import DynamicContext
from scoring.request_builder import RequestBuilder, make_aligner
from scoring.routing import route
from tutelage.records.prompt import RenderedPrompt
from tutelage.settings import ConfigError, Refusal


@dataclass(frozen=True)
class Prepared:
    student_path: str
    teachers: Mapping[str, PreparedTeacher]  # by key; none: no teacher takes part
    reference_path: str | None  # of the model that rewards are extrapolated from
    tokenizer: PreTrainedTokenizerBase
    train: tuple[RenderedPrompt, ...]
    heldout: tuple[RenderedPrompt, ...]
    over_length: int  # prompts dropped because they do not fit the model's length
    roles: Roles  # who scores what
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
    teachers = prepare_teachers(config, student_path, tokenizer)
    reference_path = resolve_reference(config, student_path)
    known = {student_path, *(teacher.path for teacher in teachers.values())}
    if reference_path is not None and reference_path not in known:
        check_tokenizer(reference_path, "objective.reference.model", config, tokenizer)
    further = dict.fromkeys(alignment_teachers(config) if config.alignment.enabled else (), "alignment.teachers")
    if config.probe.earlier_teacher is not None:
        further[resolve_model(config.probe.earlier_teacher, "probe.earlier_teacher")] = "probe.earlier_teacher"
    for path, key in further.items():
        check_tokenizer(path, key, config, tokenizer)
    train = route(
        load_prompts(config.data.train, "data.train"),
        teachers_of(config),
        "data.train",
        config.data.train.teacher_column,
    )
    heldout = load_prompts(config.data.heldout, "data.heldout")[: config.evaluation.prompts]
    heldout = route(heldout, teachers_of(config), "data.heldout", config.data.heldout.teacher_column)
    check_teachers_differ(config, teachers, student_path, [*train, *heldout])
    limit = length_limit(config, *model_paths(config, student_path, teachers, reference_path), *further)
    rendered = [render_for_models(prompt, config, tokenizer, teachers) for prompt in (*train, *heldout)]
    rendered[: len(train)] = with_completions(rendered[: len(train)], config, tokenizer)
    fits = [fits_model(item, config, limit) for item in rendered]
    kept_train = tuple(item for item, ok in zip(rendered[: len(train)], fits[: len(train)], strict=True) if ok)
    kept_heldout = tuple(item for item, ok in zip(rendered[len(train) :], fits[len(train) :], strict=True) if ok)
    for name, kept in (("train", kept_train), ("heldout", kept_heldout)):
        if not kept:
            fix = f"no prompt of data.{name} fits with its response; raise it"
            raise ConfigError(Refusal("rollout.max_model_len", limit, fix))
    check_gate(config, kept_train)
    dropped, adapters = fits.count(False), adapter_parameters(config.student, student_path)
    asked = {item.prompt.teacher for item in (*kept_train, *kept_heldout)}
    roles = decide_roles(config, teachers, student_path, reference_path, asked)
    return Prepared(
        student_path, teachers, reference_path, tokenizer, kept_train, kept_heldout, dropped, roles, adapters
    )


def make_dynamic_context(config: RunConfig, prepared: Prepared) -> DynamicContext:
    """What fills the teachers' contexts once a response is there."""
    return DynamicContext(
        teachers_of(config),
        {key: teacher.tokenizer for key, teacher in prepared.teachers.items()},
        prepared.tokenizer,
        config.sampling.samples_per_prompt,
        config.rollout.max_model_len,
        config.data.system_prompt,
    )


def make_request_builder(config: RunConfig, prepared: Prepared) -> RequestBuilder:
    """What asks the teachers of a run about trajectories that are learned from."""
    teachers = teachers_of(config)
    aligners = {
        key: make_aligner(prepared.tokenizer, prepared.teachers[key].tokenizer)
        for key, teacher in teachers.items()
        if teacher.cross_tokenizer
    }
    without_entropy = [key for key in teachers if not capabilities_of(config, key).entropy]
    needs, longest = requirements(config.objective), config.rollout.max_model_len
    return RequestBuilder(needs, config.learner.overlap_k, aligners, without_entropy, longest)


def check_endpoints(config: RunConfig, prepared: Prepared) -> None:
    """Ask each group's backend what can only be asked of a running service.

    Raises:
        ValueError: one does not answer, does not let us in, or cannot give what the config says.
    """

    async def check() -> None:
        for scorer in prepared.roles.groups:
            await kind_of(scorer.teacher).check(scorer.path, scorer.teacher, config.scoring)

    asyncio.run(check())
