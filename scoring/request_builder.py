"""What each teacher of a run is asked about a trajectory: what the objective needs, and what is watched beside it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from scoring.cross_tokenizer.byte_alignment import Aligner
from scoring.cross_tokenizer.requests import other_tokens_request
from scoring.cross_tokenizer.token_bytes import TokenBytes
from scoring.requests import TeacherRequest, build_request, same_tokens_request
from tutelage.records.signal import SignalNeeds
from tutelage.records.trajectory import STUDENT_ROLE, FollowUp, Trajectory
from tutelage.stops import AS_THEY_ARE, TurnEnds


class RequestBuilder:
    """Makes the requests of all teachers of a run, each in the teacher's own tokens."""

    def __init__(
        self,
        needs: SignalNeeds,
        aligners: Mapping[str, Aligner] | None = None,
        without_entropy: Collection[str] = (),
        max_tokens: int | None = None,
        ends: TurnEnds = AS_THEY_ARE,
        uncommon: Mapping[str, NDArray[np.int32]] | None = None,
    ) -> None:
        """
        Args:
            needs: of the objective and the learner's monitors. No ids are watched where a teacher has another
                tokenizer, since they are measured in all examples of a batch or in none.
            aligners: of the teachers with another tokenizer, by key.
            without_entropy: keys of the teachers that do not tell theirs, which is watched otherwise.
            max_tokens: of prompt and response that a teacher can read, where its tokens may be more than the
                student's: what lies beyond is not scored.
            ends: what the run makes of the ends of turns.
            uncommon: ids that only one of the two tokenizers has, of the teachers that have the student's but for
                those, by key.
        """
        self._needs, self._aligners, self._max_tokens = needs, aligners or {}, max_tokens
        self._without_entropy, self._ends, self._uncommon = frozenset(without_entropy), ends, uncommon or {}
        self._watched_top_k = 0 if self._aligners else needs.watched_top_k

    def build(
        self,
        teacher: str,
        prompt_ids: NDArray[np.int32],
        trajectory: Trajectory,
        follow_ups: Sequence[FollowUp] = (),
    ) -> TeacherRequest:
        """The request about one trajectory to one teacher.

        Args:
            teacher: its key.
            prompt_ids: [P], the teacher's rendering of the trajectory's prompt.
            follow_ups: the teacher's rendering of each turn that is not the student's (`tutelage.chat`).

        Raises:
            ValueError: the rollout brought fewer candidate ids than the objective needs, or turns lack a rendering.
        """
        others = sum(turn.role != STUDENT_ROLE for turn in trajectory.turns)
        if len(follow_ups) < others:
            raise ValueError(
                f"the trajectory of prompt {trajectory.prompt_id!r} has {others} turns of others, and the teacher's "
                f"rendering has {len(follow_ups)}"
            )
        request = build_request(teacher, prompt_ids, trajectory, self._needs)
        # Hidden states tell the watched ids, and more; of these, those that the objective asked for are the first.
        top_k = request.top_k if request.hidden_states else max(request.top_k, self._watched_top_k)
        entropy = request.entropy or teacher not in self._without_entropy
        request = replace(request, top_k=top_k, entropy=entropy, stops=self._ends.merged)
        aligner = self._aligners.get(teacher)
        if aligner is None:
            swap, uncommon = self._ends.swaps.get(teacher), self._uncommon.get(teacher)
            return same_tokens_request(request, trajectory, follow_ups, swap, uncommon)
        candidates = self._needs.candidates
        return other_tokens_request(request, trajectory, candidates, follow_ups, aligner, self._max_tokens)


def make_aligner(
    student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, key: str = "teacher.tokenizer"
) -> Aligner:
    """Align the tokens of two tokenizers by their bytes.

    Args:
        key: full name of the setting that chose the teacher's, for messages.

    Raises:
        ValueError: one of them does not tell the bytes of its tokens.
    """
    return Aligner(TokenBytes(student, "student.model"), TokenBytes(teacher, key))
