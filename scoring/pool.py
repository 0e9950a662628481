"""All scoring workers of a run behind one face: whoever a request names, alone or mixed, is asked.

request, "math"      ─► the replicas of math ─► signal
request, "blend"     ─┬► the replicas of math ─┬─► probabilities weighted and added ─► signal
                      └► the replicas of code ─┘
request, "reference" ─► whichever group holds that checkpoint ─► signal
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scoring.config import ScoringConfig
from scoring.group import Scorer, ScoringGroup
from scoring.mixture import score_mixture
from tutelage.aio import together
from tutelage.cluster import Cluster
from tutelage.errors import WorkerFailure
from tutelage.files import differences, hashes_of, read_sealed, write_sealed
from tutelage.lm.head import LMHead, MixedHead
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.settings import RecoveryConfig, TimeoutConfig
from tutelage.worker import Worker

REFERENCE, BASE = "reference", "base"  # roles beside the teachers' keys: objective.reference.model, initial student
STARVING_STEPS = 10  # in a row without a request
_MANIFEST = "manifest.json"  # beside saved averages, with their hashes

TeacherPrompts = Mapping[str, NDArray[np.int32]]


class TeacherPool:
    """Groups of scoring workers by role; roles may share a group."""

    def __init__(self, groups: Mapping[str, ScoringGroup], mixtures: Mapping[str, Mapping[str, float]]) -> None:
        self.groups, self.mixtures = groups, mixtures
        self._requests = dict.fromkeys(self.teachers, 0)  # since the last `step_metrics`
        self._idle_steps = dict.fromkeys(self.teachers, 0)

    @classmethod
    async def start(
        cls,
        scorers: Mapping[str, Scorer],
        mixtures: Mapping[str, Mapping[str, float]],
        settings: ScoringConfig,
        timeouts: TimeoutConfig,
        cluster: Cluster,
        recovery: RecoveryConfig,
    ) -> "TeacherPool":
        """Start every group once, or take the workers that an earlier run left idle."""
        distinct = {scorer.name: scorer for scorer in scorers.values()}
        starting = [ScoringGroup.start(scorer, settings, timeouts, cluster, recovery) for scorer in distinct.values()]
        started = dict(zip(distinct, await together(*starting), strict=True))
        return cls({role: started[scorer.name] for role, scorer in scorers.items()}, mixtures)

    def __contains__(self, role: str) -> bool:
        return role in self.groups

    @property
    def teachers(self) -> dict[str, ScoringGroup]:
        """The groups of the teachers, by key."""
        return {role: group for role, group in self.groups.items() if role not in (REFERENCE, BASE)}

    @property
    def distinct(self) -> dict[str, ScoringGroup]:
        """Each group once, by the first of its roles."""
        first: dict[str, ScoringGroup] = {}
        for role, group in self.groups.items():
            if group not in first.values():
                first[role] = group
        return first

    @property
    def workers(self) -> list[Worker]:
        return [worker for group in self.distinct.values() for worker in group.workers]

    @property
    def followers(self) -> list[Worker]:
        """The workers whose weights follow the student's."""
        return [worker for group in self.distinct.values() if group.moves for worker in group.workers]

    @property
    def moves(self) -> bool:
        return bool(self.followers)

    async def score(self, request: ScoringRequest, prompts: TeacherPrompts | None = None) -> TeacherSignal:
        """Ask whom the request names.

        Args:
            prompts: for a mixture, what each of its teachers sees of the prompt.

        Raises:
            WorkerFailure: the request was refused, or no replica is left and none may be replaced any more.
        """
        weights = self.mixtures.get(request.teacher)
        if weights is None:
            return await self._score(request)
        seen = prompts or {}
        requests = {key: replace(request, teacher=key, prompt_ids=seen[key]) for key in weights}
        return await score_mixture(request.teacher, weights, requests, self._score)

    async def _score(self, request: ScoringRequest) -> TeacherSignal:
        if request.teacher in self._requests:
            self._requests[request.teacher] += 1
        return await self.groups[request.teacher].score(request)

    async def lm_head(self, role: str) -> LMHead | MixedHead | None:
        """Fetch the LM head of whom a role names; None where a teacher does not show its whole distribution."""
        weights = self.mixtures.get(role)
        if weights is None:
            return await self.groups[role].lm_head()
        heads = [await self.groups[member].lm_head() for member in weights]
        parts = [head for head in heads if head is not None]
        return MixedHead(tuple(parts), tuple(weights.values())) if len(parts) == len(heads) else None

    async def save(self, folder: Path, deadline: float) -> None:
        """Save what a resumed run could not know: the averages of those that keep one."""
        for key, group in self.distinct.items():
            if group.averages:
                folder.mkdir(exist_ok=True)
                await group.workers[0].call("save_weights", str(folder / f"{key}.safetensors"), deadline=deadline)
        if folder.is_dir():
            write_sealed(folder / _MANIFEST, hashes_of(folder, but=_MANIFEST))

    async def restore(self, folder: Path, deadline: float) -> None:
        """Give the averages back to those that keep one.

        Raises:
            WorkerFailure: a file is not as it was saved.
        """
        averaging = {key: group for key, group in self.distinct.items() if group.averages}
        if averaging:
            sealed, problems = read_sealed(folder / _MANIFEST), [f"{_MANIFEST} is missing or damaged"]
            if sealed is not None:
                problems = differences(sealed[0], hashes_of(folder, but=_MANIFEST))
            if problems:
                fix = "delete that checkpoint to go on from the one before"
                raise WorkerFailure(f"{folder} is not what was saved: {', '.join(problems)}; {fix}")
        for key, group in averaging.items():
            await group.call("restore_weights", str(folder / f"{key}.safetensors"), deadline=deadline)

    def set_idle(self) -> None:
        for group in self.distinct.values():
            group.set_idle()

    def step_metrics(self) -> dict[str, float]:
        """Say what the teachers were asked since the last call; of each one where there are several."""
        if not self.teachers:
            return {}
        groups = {id(group): group for group in self.teachers.values()}.values()
        metrics = {
            "teacher/retries": float(sum(group.counts.retries for group in groups)),
            "teacher/restarts": float(sum(group.restarts for group in groups)),
        }
        for key, requests in self._requests.items():
            self._requests[key] = 0
            self._idle_steps[key] = 0 if requests else self._idle_steps[key] + 1
            if len(self._requests) > 1:
                metrics[f"teacher/{key}/requests"] = float(requests)
                metrics[f"teacher/{key}/steps_without_request"] = float(self._idle_steps[key])
        return metrics

    @property
    def starving(self) -> list[str]:
        """Teachers that have just gone without a request for too long; each is named once in a row."""
        return [key for key, steps in self._idle_steps.items() if steps == STARVING_STEPS]
