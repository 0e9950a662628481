"""Which backends there are, and which one a teacher has.

transformers   packed forwards in the worker's own process      transformers.py, model.py
vllm           a vLLM engine of the worker's own                vllm.py
server         a completions endpoint over HTTP                 server/
cache          what is stored on disk, and nothing else         cached.py

The driver knows this module too, so engines are imported where a backend is made.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from scoring.backends.base import Backend, BackendKind, BackendUse
from scoring.capabilities import Capabilities
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.registry import Registry
from tutelage.settings import Refusal


class TransformersKind(BackendKind):
    """A forward of our own, packed; everything can be asked for."""

    quantizes = True
    packs = True
    follows_student = True

    def make(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
        from scoring.backends.transformers import BatchingTeacher

        return BatchingTeacher(path, teacher, scoring)

    def capabilities(self, teacher: TeacherConfig, gpus: float) -> Capabilities:
        return Capabilities(merged_stops=True)


class VLLMKind(BackendKind):
    """A vLLM engine of the scoring worker's own, which scores given ids on GPUs only."""

    def make(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
        from scoring.backends.vllm import VLLMTeacher

        return VLLMTeacher(path, teacher, scoring)

    def capabilities(self, teacher: TeacherConfig, gpus: float) -> Capabilities:
        return Capabilities(given_ids=gpus > 0, entropy=False, hidden_states=False)


class ServerKind(BackendKind):
    """An OpenAI-compatible completions endpoint that returns prompt log-probs."""

    def make(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
        from scoring.backends.server.backend import ServerTeacher

        return ServerTeacher(path, teacher, scoring)

    def capabilities(self, teacher: TeacherConfig, gpus: float) -> Capabilities:
        limit = max(teacher.server.max_top_k, 0)
        return Capabilities(given_ids=False, max_top_k=limit, entropy=False, hidden_states=False)

    def is_remote(self, teacher: TeacherConfig) -> bool:
        return True

    def identity(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Sequence[str]:
        """The address and the name of the model, behind which other weights may come to stand."""
        return teacher.server.url, teacher.model

    def unfit_settings(self, key: str, teacher: TeacherConfig, use: BackendUse) -> Iterator[Refusal]:
        from scoring.backends.server.client import address_refusals

        yield from super().unfit_settings(key, teacher, use)
        yield from address_refusals(f"{key}.server.url", teacher.server.url)

    async def check(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        backend = self.make(path, teacher, scoring)
        try:
            await backend.start()
        finally:
            await backend.close()


class CacheKind(BackendKind):
    """Only what is kept in scoring.cache_dir; no model is loaded."""

    computes = False
    quantizes = True  # by whoever filled the cache

    def make(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
        from scoring.backends.cached import CacheOnlyBackend
        from scoring.backends.store import SignalStore

        if scoring.cache_dir is None:
            raise ValueError(
                "scoring.cache_dir=null: teacher.backend=cache has only what is kept there; name a directory"
            )
        identities = [identity(path, teacher, scoring, filler) for filler in self.fillers(teacher)]
        return CacheOnlyBackend([SignalStore(scoring.cache_dir, name) for name in identities], path, teacher)

    def fillers(self, teacher: TeacherConfig) -> list[str]:
        """Names of the backends whose kept scores may be given out, the likeliest first."""
        remote = self.is_remote(teacher)
        return [name for name in BACKENDS if BACKENDS[name].computes and BACKENDS[name].is_remote(teacher) == remote]

    def capabilities(self, teacher: TeacherConfig, gpus: float) -> Capabilities:
        """What the likeliest of those that filled the cache can, for the responses that it was asked about."""
        return replace(BACKENDS[self.fillers(teacher)[0]].capabilities(teacher, gpus), new_responses=False)

    def is_remote(self, teacher: TeacherConfig) -> bool:
        return bool(teacher.server.url)

    def unfit_settings(self, key: str, teacher: TeacherConfig, use: BackendUse) -> Iterator[Refusal]:
        yield from super().unfit_settings(key, teacher, replace(use, writes=False))
        if use.scoring.cache_dir is None:
            fix = (
                "has only what is kept in scoring.cache_dir, which is null; name the directory that python -m "
                "orchestration.precompute has filled"
            )
            yield Refusal(f"{key}.backend", teacher.backend, fix)
        if use.new_responses or use.writes:
            fix = (
                "cannot score what the student samples in this run; set objective.sequences.on_policy_fraction=0 and "
                "objective.sequences.other_source=dataset, or a backend that computes"
            )
            yield Refusal(f"{key}.backend", teacher.backend, fix)


BACKENDS: Registry[BackendKind] = Registry("teacher.backend")
BACKENDS.add("transformers", TransformersKind())
BACKENDS.add("vllm", VLLMKind())
BACKENDS.add("server", ServerKind())
BACKENDS.add("cache", CacheKind())


def kind_of(teacher: TeacherConfig) -> BackendKind:
    """The backend that a teacher's settings choose; `BACKENDS.refusal` has nothing against its name."""
    return BACKENDS[teacher.backend]


def make_backend(path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
    """Make a teacher's backend in the scoring worker, with scoring.cache_dir around it if scores are kept.

    Args:
        path: directory of the checkpoint; where the model is remote, of its tokenizer.
    """
    kind = BACKENDS[teacher.backend]
    backend = kind.make(path, teacher, scoring)
    if scoring.cache_dir is None or not kind.computes:
        return backend
    from scoring.backends.cached import CachedBackend
    from scoring.backends.store import SignalStore

    return CachedBackend(backend, SignalStore(scoring.cache_dir, identity(path, teacher, scoring)), teacher)


def identity(path: str, teacher: TeacherConfig, scoring: ScoringConfig, backend: str | None = None) -> str:
    """Tell apart all that a teacher's scores depend on: 32 hexadecimal digits.

    Args:
        backend: who computes them; None: the teacher's own backend.
    """
    from scoring.backends.store import digest_of

    name = backend or teacher.backend
    return digest_of(name, *BACKENDS[name].identity(path, teacher, scoring))
