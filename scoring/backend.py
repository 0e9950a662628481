"""What every backend of a teacher does, and which one a teacher has.

transformers   packed forwards in the worker's own process      scoring/batching.py, scoring/teacher.py
vllm           a vLLM engine of the worker's own                scoring/vllm_engine.py
server         a completions endpoint over HTTP                 scoring/server.py
cache          what is stored on disk, and nothing else         scoring/cache.py
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from scoring.config import ScoringConfig, TeacherBackend, TeacherConfig
from scoring.lm_head import LMHead
from scoring.signal import ScoringRequest, TeacherSignal

if TYPE_CHECKING:
    from scoring.follower import Follower


class Backend(Protocol):
    async def start(self) -> int:
        """Make ready, or refuse; returns the vocabulary size.

        Raises:
            ValueError: the teacher cannot do what the config says; naming the key, the value and the fix.
        """

    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Exactly what is asked for.

        Raises:
            ValueError: the request cannot be scored.
        """

    async def plain_logprobs(self, requests: Sequence[ScoringRequest]) -> list[NDArray[np.float32]] | None:
        """What `score` should say of the marked tokens, by other means; None: there are no other means."""

    async def lm_head(self) -> LMHead | None:
        """With a signal's hidden states the whole distribution; None where there are none."""

    async def close(self) -> None: ...


def make_backend(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    """The backend of a teacher whose checkpoint, if it has one, is in directory `path`.

    Engines are imported here: the driver knows this module too, and needs none of them.
    """
    if teacher.backend is TeacherBackend.cache:
        return _kept_marks(path, teacher, scoring)
    backend = _computing_backend(path, teacher, scoring)
    return backend if scoring.cache_dir is None else _cached(backend, path, teacher, scoring)


def _computing_backend(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    if teacher.backend is TeacherBackend.transformers:
        from scoring.batching import BatchingTeacher

        return BatchingTeacher(path, teacher, scoring)
    if teacher.backend is TeacherBackend.vllm:
        from scoring.vllm_engine import VLLMTeacher

        return VLLMTeacher(path, teacher, scoring)
    assert teacher.backend is TeacherBackend.server  # `cache`, the only other one, computes nothing
    from scoring.server import ServerTeacher

    return ServerTeacher(path, teacher, scoring)


def follow(backend: Backend, teacher: TeacherConfig) -> "Follower":
    """What lets a backend's weights follow the student's.

    Raises:
        ValueError: its weights are not in this process.
    """
    from scoring.batching import BatchingTeacher
    from scoring.follower import Follower

    if not isinstance(backend, BatchingTeacher):
        raise ValueError(f"teacher.weights={teacher.weights.value}: only transformers teachers follow the student")
    return Follower(backend, teacher)


def _cached(backend: Backend, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    from scoring.cache import CachedBackend
    from scoring.identity import identity
    from scoring.store import SignalStore

    assert scoring.cache_dir is not None
    return CachedBackend(backend, SignalStore(scoring.cache_dir, identity(path, teacher, scoring)), teacher)


def _kept_marks(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    from scoring.cache import KeptMarks
    from scoring.identity import possible_identities
    from scoring.store import SignalStore

    if scoring.cache_dir is None:
        raise ValueError("scoring.cache_dir=null: teacher.backend=cache has only what is kept there; name a directory")
    identities = possible_identities(path, teacher, scoring)
    return KeptMarks([SignalStore(scoring.cache_dir, name) for name in identities], path, teacher)
