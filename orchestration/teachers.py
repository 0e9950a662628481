"""All teachers of a run behind one face: whoever a request names, alone or mixed, is asked.

request, "math"  ─► the replicas of math ─► signal
request, "blend" ─┬► the replicas of math ─┬─► probabilities weighted and added ─► signal
                  └► the replicas of code ─┘
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestration.cluster import Cluster, Worker
from orchestration.config import RunConfig
from orchestration.preparation import Prepared
from orchestration.routing import teachers_of
from orchestration.scoring_group import ScoringGroup
from orchestration.teacher_rules import TEACHER
from scoring.lm_head import LMHead, MixedHead
from scoring.mixture import score_mixture
from scoring.signal import ScoringRequest, TeacherSignal

STARVING_STEPS = 10  # in a row without a request

Views = Mapping[str, NDArray[np.int32]]


def asked_for(config: RunConfig, prepared: Prepared) -> list[str]:
    """The keys of the teachers, mixtures included, that mark a prompt of the run."""
    routed = {item.prompt.teacher for item in (*prepared.train, *prepared.heldout)}
    return [key for key in teachers_of(config) if key in routed]


def needed_groups(config: RunConfig, prepared: Prepared) -> list[str]:
    """The keys of the teachers that need workers."""
    teachers = teachers_of(config)
    members = [member for key in asked_for(config, prepared) for member in teachers[key].mixture or (key,)]
    return list(dict.fromkeys(members))


def group_name(key: str) -> str:
    """Of a teacher's workers."""
    return "scoring" if key == TEACHER else f"scoring-{key}"


class TeacherPool:
    def __init__(self, groups: Mapping[str, ScoringGroup], mixtures: Mapping[str, Mapping[str, float]]) -> None:
        self.groups, self.mixtures = groups, mixtures
        self._before = dict.fromkeys(groups, 0)  # requests until the step before
        self._idle_steps = dict.fromkeys(groups, 0)

    @classmethod
    async def start(cls, config: RunConfig, prepared: Prepared, cluster: Cluster) -> "TeacherPool":
        teachers, keys = teachers_of(config), needed_groups(config, prepared)
        starting = (
            ScoringGroup.start(config, prepared.teachers[key].path, cluster, group_name(key), teachers[key])
            for key in keys
        )
        groups = dict(zip(keys, await asyncio.gather(*starting), strict=True))
        mixtures = {key: teachers[key].mixture for key in asked_for(config, prepared) if teachers[key].mixture}
        return cls(groups, mixtures)

    @property
    def keys(self) -> list[str]:
        """Of all that can be asked."""
        return [*self.groups, *self.mixtures]

    @property
    def followers(self) -> list[Worker]:
        """The workers whose weights follow the student's."""
        return [worker for group in self.groups.values() if group.moves for worker in group.workers]

    @property
    def moves(self) -> bool:
        return bool(self.followers)

    async def score(self, request: ScoringRequest, views: Views) -> TeacherSignal:
        """
        Args:
            views: for a mixture, what each of its teachers sees of the prompt.
        """
        weights = self.mixtures.get(request.teacher)
        if weights is None:
            return await self.groups[request.teacher].score(request)
        requests = {key: replace(request, teacher=key, prompt_ids=views[key]) for key in weights}
        return await score_mixture(request.teacher, weights, requests, lambda one: self.groups[one.teacher].score(one))

    async def lm_head(self, key: str) -> LMHead | MixedHead | None:
        """None where a teacher does not show its whole distribution."""
        weights = self.mixtures.get(key)
        if weights is None:
            return await self.groups[key].lm_head()
        heads = [await self.groups[member].lm_head() for member in weights]
        parts = [head for head in heads if head is not None]
        return MixedHead(tuple(parts), tuple(weights.values())) if len(parts) == len(heads) else None

    async def save(self, folder: Path, deadline: float) -> None:
        """What a resumed run could not know: the averages of those that keep one."""
        for key, group in self.groups.items():
            if group.averages:
                folder.mkdir(exist_ok=True)
                await group.workers[0].call("save_weights", str(folder / f"{key}.safetensors"), deadline=deadline)

    async def restore(self, folder: Path, deadline: float) -> None:
        for key, group in self.groups.items():
            if group.averages:
                await group.call("restore_weights", str(folder / f"{key}.safetensors"), deadline=deadline)

    def step_metrics(self) -> dict[str, float]:
        """What the teachers were asked since the last call; of each one where there are several."""
        tallies = {key: group.tally for key, group in self.groups.items()}
        found = {
            "teacher/retries": float(sum(tally.retries for tally in tallies.values())),
            "teacher/restarts": float(sum(tally.restarts for tally in tallies.values())),
        }
        for key, tally in tallies.items():
            requests = tally.requests - self._before[key]
            self._before[key] = tally.requests
            self._idle_steps[key] = 0 if requests else self._idle_steps[key] + 1
            if len(tallies) > 1:
                found[f"teacher/{key}/requests"] = float(requests)
                found[f"teacher/{key}/steps_without_request"] = float(self._idle_steps[key])
        return found

    @property
    def starving(self) -> list[str]:
        """Teachers that have just gone without a request for too long; each is named once in a row."""
        return [key for key, steps in self._idle_steps.items() if steps == STARVING_STEPS]
