"""Everything that a run needs of files, found and checked before anything is started: models, then prompts."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from orchestration.config.schema import RunConfig
from orchestration.prepare.models import PreparedTeacher, find_models
from orchestration.prepare.prompts import read_prompts
from orchestration.prepare.roles import Roles, decide_roles
from scoring.config import TEACHER
from tutelage.records.prompt import RenderedPrompt
from tutelage.stops import AS_THEY_ARE, TurnEnds


@dataclass(frozen=True)
class Prepared:
    """The models and prompts of a run, and who scores what."""

    student_path: str
    teachers: Mapping[str, PreparedTeacher]  # by key; none: no teacher takes part
    reference_path: str | None  # of the model that rewards are extrapolated from
    tokenizer: PreTrainedTokenizerBase
    train: tuple[RenderedPrompt, ...]
    heldout: tuple[RenderedPrompt, ...]
    over_length: int  # prompts dropped because they do not fit the model's length
    roles: Roles  # who scores what
    adapter_parameters: int = 0  # numbers in the student's adapters; 0: all of its weights are trained
    blank: int = 0  # prompts dropped because they have no text
    ends: TurnEnds = AS_THEY_ARE

    @property
    def teacher_path(self) -> str | None:
        """The checkpoint of the teacher that every run has; None where no teacher takes part."""
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
        prompts.blank,
        models.ends,
    )
