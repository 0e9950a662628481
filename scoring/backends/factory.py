"""What every backend of a teacher does, and which one a teacher has.

transformers   packed forwards in the worker's own process      scoring/batching.py, scoring/teacher.py
vllm           a vLLM engine of the worker's own                scoring/vllm_engine.py
server         a completions endpoint over HTTP                 scoring/server.py
cache          what is stored on disk, and nothing else         scoring/cache.py
"""

from typing import TYPE_CHECKING

from scoring.backends.base import Backend
from scoring.config import ScoringConfig, TeacherBackend, TeacherConfig

if TYPE_CHECKING:
    from scoring.backends.follower import Follower


def make_backend(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    """The backend of a teacher whose checkpoint, if it has one, is in directory `path`.

    Engines are imported here: the driver knows this module too, and needs none of them.
    """
    if teacher.backend is TeacherBackend.cache:
        return _cache_only(path, teacher, scoring)
    backend = _computing_backend(path, teacher, scoring)
    return backend if scoring.cache_dir is None else _cached(backend, path, teacher, scoring)


def _computing_backend(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    if teacher.backend is TeacherBackend.transformers:
        from scoring.backends.transformers import BatchingTeacher

        return BatchingTeacher(path, teacher, scoring)
    if teacher.backend is TeacherBackend.vllm:
        from scoring.backends.vllm import VLLMTeacher

        return VLLMTeacher(path, teacher, scoring)
    assert teacher.backend is TeacherBackend.server  # `cache`, the only other one, computes nothing
    from scoring.backends.server.backend import ServerTeacher

    return ServerTeacher(path, teacher, scoring)


def follow(backend: Backend, teacher: TeacherConfig) -> "Follower":
    """What lets a backend's weights follow the student's.

    Raises:
        ValueError: its weights are not in this process.
    """
    from scoring.backends.follower import Follower
    from scoring.backends.transformers import BatchingTeacher

    if not isinstance(backend, BatchingTeacher):
        raise ValueError(f"teacher.weights={teacher.weights.value}: only transformers teachers follow the student")
    return Follower(backend, teacher)


def _cached(backend: Backend, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    from scoring.backends.cached import CachedBackend
    from scoring.backends.identity import identity
    from scoring.backends.store import SignalStore

    assert scoring.cache_dir is not None
    return CachedBackend(backend, SignalStore(scoring.cache_dir, identity(path, teacher, scoring)), teacher)


def _cache_only(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    from scoring.backends.cached import CacheOnlyBackend
    from scoring.backends.identity import possible_identities
    from scoring.backends.store import SignalStore

    if scoring.cache_dir is None:
        raise ValueError("scoring.cache_dir=null: teacher.backend=cache has only what is kept there; name a directory")
    identities = possible_identities(path, teacher, scoring)
    return CacheOnlyBackend([SignalStore(scoring.cache_dir, name) for name in identities], path, teacher)
