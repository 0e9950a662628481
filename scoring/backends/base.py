"""The two faces of a teacher's backend: what the driver asks of it beforehand, and what a scoring worker asks of it.

BackendKind   one object for each name of `teacher.backend`; knows the settings, starts nothing
Backend       one object in each scoring worker, made by the kind; knows the teacher
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from scoring.capabilities import Capabilities, shortfalls
from scoring.config import Quantization, ScoringConfig, TeacherConfig, TeacherWeights
from tutelage.lm.head import LMHead
from tutelage.records.signal import ScoringRequest, SignalNeeds, TeacherSignal
from tutelage.settings import Refusal

if TYPE_CHECKING:
    from scoring.backends.follower import Follower

_FITTING = (
    "choose an objective on the teacher's own most likely ids (objective=teacher_topk_forward_kl) or on the sampled "
    "token (objective=sampled_reverse_kl)"
)


@dataclass(frozen=True)
class Counts:
    """What a backend has counted since its start; those of several workers are added up."""

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class CacheStats(Counts):
    """How often what was asked for was there; of one worker, or of several added up."""

    hits: int = 0
    misses: int = 0
    unreadable: int = 0  # files that were damaged or not ours; each is a miss as well
    unwritten: int = 0  # scores that could not be kept


@dataclass(frozen=True)
class ServerStats(Counts):
    """What an endpoint was asked since the start, checks at launch included."""

    attempts: int = 0
    retries: int = 0  # attempts that followed one that failed
    garbled: int = 0  # answers that were none


class Backend(ABC):
    """A teacher as its scoring worker asks it; what a backend does not say otherwise, it does not have."""

    @abstractmethod
    async def start(self) -> int:
        """Make ready, or refuse; returns the vocabulary size.

        Raises:
            ValueError: the teacher cannot do what the config says; naming the key, the value and the fix.
        """

    @abstractmethod
    async def score(self, request: ScoringRequest) -> TeacherSignal:
        """Answer exactly what is asked for.

        Raises:
            ValueError: the request cannot be scored.
        """

    async def close(self) -> None:
        """Give back what is open."""
        return

    async def reference_logprobs_for_check(
        self, requests: Sequence[ScoringRequest]
    ) -> list[NDArray[np.float32]] | None:
        """Compute by other means what `score` should say of the scored tokens; None: there are no other means."""
        return None

    async def lm_head(self) -> LMHead | None:
        """The head that makes whole distributions of a signal's hidden states; None where there are none."""
        return None

    def cache_stats(self) -> CacheStats | None:
        """How often scores were there already; None: none are kept."""
        return None

    def server_stats(self) -> ServerStats | None:
        """How often an endpoint had to be asked; None: there is no endpoint."""
        return None

    def follower(self, teacher: TeacherConfig) -> "Follower":
        """Let the weights follow the student's, as `teacher.weights` says.

        Raises:
            ValueError: the weights are not in this process.
        """
        raise ValueError(f"teacher.weights={teacher.weights.value}: this backend takes no new weights; set fixed")


@dataclass(frozen=True)
class BackendUse:
    """What a run wants of a teacher's backend."""

    needs: SignalNeeds  # of the objective and the learner's monitors
    scoring: ScoringConfig
    writes: bool = False  # the teacher also writes sequences
    new_responses: bool = False  # what the student samples is scored


class BackendKind(ABC):
    """A way to get a teacher's scores, as the driver knows it: what it can, what does not fit it, how it is made.

    The defaults are those of a backend that loads a checkpoint into the scoring worker. No engine is imported before
    `make`, which is called in the worker.
    """

    computes = True  # False: it only reads what others have computed
    quantizes = False  # knows what to do with teacher.quantization
    packs = False  # runs the model on packed sequences, in the worker's own process
    follows_student = False  # knows what to do with teacher.weights; its `Backend.follower` then gives a follower

    @abstractmethod
    def make(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Backend:
        """Make the backend, in the scoring worker.

        Args:
            path: directory of the checkpoint; where the model is remote, of its tokenizer.
        """

    def capabilities(self, teacher: TeacherConfig, gpus: float) -> Capabilities:
        """List what a teacher can return besides the sampled token's log-prob.

        Args:
            gpus: of a scoring worker.
        """
        return Capabilities()

    def is_remote(self, teacher: TeacherConfig) -> bool:
        """Whether the model runs elsewhere, so that there is its tokenizer here at most."""
        return False

    def loads_model(self, teacher: TeacherConfig) -> bool:
        """Whether the workers load the checkpoint; an engine can then be started for the teacher's own answers too."""
        return self.computes and not self.is_remote(teacher)

    def holds_checkpoint(self, teacher: TeacherConfig) -> bool:
        """Whether the workers have the checkpoint's own weights throughout, whole."""
        whole = teacher.quantization is Quantization.none and teacher.weights is TeacherWeights.fixed
        return self.loads_model(teacher) and whole

    def identity(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> Sequence[str]:
        """Name all that the scores depend on, beside the backend itself: kept scores are found again by it."""
        from scoring.backends.store import checkpoint_digest  # reads whole checkpoints, in the worker
        from tutelage.lm.rope import chosen_by_length

        frequencies = [f"rope {scoring.max_model_len}"] if chosen_by_length(path) else []
        return scoring.dtype.value, teacher.quantization.value, checkpoint_digest(path), *frequencies

    def refusals(self, key: str, teacher: TeacherConfig, use: BackendUse) -> Iterator[Refusal]:
        """Everything of a teacher's settings, and of a run's wishes, that does not fit.

        Args:
            key: full name of the teacher's settings, for instance further_teachers.maths.
        """
        yield from self.unfit_settings(key, teacher, use)
        yield from self.unmet_needs(key, teacher, use)

    async def check(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        """Ask beforehand what can only be asked of a running service; the default asks nothing.

        Raises:
            ValueError: it cannot give what the config says; naming the key, the value and the fix.
        """
        return

    def unfit_settings(self, key: str, teacher: TeacherConfig, use: BackendUse) -> Iterator[Refusal]:
        """Settings that the backend would have to ignore."""
        name = f"{key}.backend={teacher.backend}"
        if teacher.quantization is not Quantization.none and not self.quantizes:
            fix = f"{name} takes weights as they are; set none, or backend=transformers"
            yield Refusal(f"{key}.quantization", teacher.quantization, fix)
        if teacher.weights is not TeacherWeights.fixed and not self.follows_student:
            fix = f"{name} takes no new weights; set fixed, or backend=transformers"
            yield Refusal(f"{key}.weights", teacher.weights, fix)
        if use.writes and not self.loads_model(teacher):
            fix = (
                "the teacher also has to write sequences, and this backend only scores them; set "
                "objective.sequences.on_policy_fraction=1 or objective.sequences.other_source=dataset, or "
                "backend=transformers"
            )
            yield Refusal(f"{key}.backend", teacher.backend, fix)
        if teacher.cross_tokenizer and self.is_remote(teacher) and teacher.tokenizer is None:
            fix = f"a server does not tell its tokenizer, and {key}.cross_tokenizer=true needs it; name its checkpoint"
            yield Refusal(f"{key}.tokenizer", None, fix)

    def unmet_needs(self, key: str, teacher: TeacherConfig, use: BackendUse) -> Iterator[Refusal]:
        """What the objective and the learner's monitors want and the backend cannot give."""
        given = self.capabilities(teacher, use.scoring.gpus_per_worker)
        missing_on_gpus = set(shortfalls(use.needs, self.capabilities(teacher, gpus=1)))
        for missing in shortfalls(use.needs, given):
            other = "" if missing in missing_on_gpus else ", or scoring=gpu"
            fix = (
                f"the objective needs {missing}, which this backend cannot give; {_FITTING}, or set "
                f"{key}.backend=transformers{other}"
            )
            yield Refusal(f"{key}.backend", teacher.backend, fix)
        if given.max_top_k is not None and use.needs.watched_top_k > given.max_top_k:
            fix = (
                f"{key}.server.max_top_k={given.max_top_k}, so fewer ids are known; lower it to that (0: the overlap "
                "is not measured), or raise max_top_k to what the endpoint gives"
            )
            yield Refusal("learner.overlap_k", use.needs.watched_top_k, fix)
