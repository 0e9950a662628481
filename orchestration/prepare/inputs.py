"""Everything that can be wrong with files, models and prompts, found before anything is started."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from learner.objectives import requirements
from orchestration.config.facts import capabilities_of, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.models import PreparedTeacher, find_models
from orchestration.prepare.prompts import read_prompts
from orchestration.prepare.roles import Roles, decide_roles
from scoring.backends.factory import kind_of
from scoring.config import TEACHER
from scoring.dynamic_context import DynamicContext
from scoring.request_builder import RequestBuilder, make_aligner
from tutelage.records.prompt import RenderedPrompt


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
    """Find and check the models, then read and check the prompts, and decide who scores what.

    Raises:
        ConfigError: with everything that is wrong with the models, or else with the prompts.
    """
    models = find_models(config)
    prompts = read_prompts(config, models)
    asked = {item.prompt.teacher for item in (*prompts.train, *prompts.heldout)}
    return Prepared(
        models.student_path,
        models.teachers,
        models.reference_path,
        models.tokenizer,
        prompts.train,
        prompts.heldout,
        prompts.over_length,
        decide_roles(config, models.teachers, models.student_path, models.reference_path, asked),
        models.adapter_parameters,
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
