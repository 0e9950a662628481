"""What a run's teachers are asked with, and whether those that are services answer."""

import asyncio

import numpy as np
from numpy.typing import NDArray

from orchestration.config.facts import capabilities_of, signal_needs, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.prompts import make_chats
from scoring.backends.factory import kind_of
from scoring.dynamic_context import DynamicContext
from scoring.request_builder import RequestBuilder, make_aligner


def make_dynamic_context(config: RunConfig, prepared: Prepared) -> DynamicContext:
    """What fills the teachers' contexts once a response is there."""
    _, chats = make_chats(config, prepared.tokenizer, prepared.teachers)
    return DynamicContext(
        teachers_of(config),
        chats,
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
    uncommon = uncommon_ids(config, prepared)
    longest = config.rollout.max_model_len
    return RequestBuilder(signal_needs(config), aligners, without_entropy, longest, prepared.ends, uncommon)


def uncommon_ids(config: RunConfig, prepared: Prepared) -> dict[str, NDArray[np.int32]]:
    """Ids that only one of two tokenizers has, by the keys of the teachers, mixtures included, where there are some."""
    by_key = {}
    for key, teacher in teachers_of(config).items():
        members = [prepared.teachers[member].uncommon for member in teacher.mixture or (key,)]
        if any(members):
            by_key[key] = np.array(sorted(set().union(*members)), dtype=np.int32)
    return by_key


def check_endpoints(config: RunConfig, prepared: Prepared) -> None:
    """Ask each group's backend what can only be asked of a running service.

    Raises:
        ValueError: one does not answer, does not let us in, or cannot give what the config says.
    """

    async def check() -> None:
        for scorer in prepared.roles.groups:
            await kind_of(scorer.teacher).check(scorer.path, scorer.teacher, config.scoring)

    asyncio.run(check())
