"""Sequences laid end to end, with what several of them begin with laid down once.

Shape suffixes: N packed tokens, S segments, L tokens of a sequence.

    system prompt ─┬─ question 1 ─┬─ answer 1a        6 segments instead of 3 whole sequences;
                   │              └─ answer 1b        each attends to itself and to the segments
                   └─ question 2 ─── answer 2         on its way to the root, so every state is the
                                                      one that its sequence alone would have
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

# A shorter run in common is not worth the attention call of one more segment.
MIN_SHARED_TOKENS = 16


@dataclass(frozen=True)
class PrefixTree:
    token_ids: NDArray[np.int64]  # [N]
    position_ids: NDArray[np.int64]  # [N], each token's place in its sequences, from 0
    segment_starts: NDArray[np.int32]  # [S + 1], cumulative lengths
    segment_parents: NDArray[np.int32]  # [S], an earlier segment, which it continues; -1 where a sequence begins
    rows: tuple[NDArray[np.int64], ...]  # for each sequence [L], where in N its tokens are


def lay_out(sequences: Sequence[NDArray[np.integer]], share: bool, shortest: int = MIN_SHARED_TOKENS) -> PrefixTree:
    """Pack sequences of at least one token; without `share` each is a segment of its own.

    Args:
        shortest: tokens that two sequences must have in common before they share a segment.
    """
    tree = _Growth([np.asarray(sequence, np.int64) for sequence in sequences], shortest)
    tree.grow(range(len(sequences)), depth=0, parent=-1, share=share)
    return tree.finish()


class _Growth:
    def __init__(self, sequences: list[NDArray[np.int64]], shortest: int) -> None:
        self._sequences, self._shortest = sequences, shortest
        self._segments: list[NDArray[np.int64]] = []
        self._depths: list[int] = []
        self._parents: list[int] = []
        self._paths: list[list[int]] = [[] for _ in sequences]

    def grow(self, members: Sequence[int], depth: int, parent: int, share: bool) -> None:
        """Lay down what follows the first `depth` tokens, which the members have in common."""
        for group in self._alike(members, depth) if share else [[member] for member in members]:
            length = self._common_length(group, depth)
            if length == depth:
                continue  # this sequence ends where the others go on
            segment = len(self._segments)
            self._segments.append(self._sequences[group[0]][depth:length])
            self._depths.append(depth)
            self._parents.append(parent)
            for member in group:
                self._paths[member].append(segment)
            if len(group) > 1:
                self.grow(group, length, segment, share)

    def _alike(self, members: Sequence[int], depth: int) -> list[list[int]]:
        """Members whose next `shortest` tokens are the same, in order of appearance; one with fewer is alone."""
        groups: dict[bytes | int, list[int]] = {}
        for member in members:
            ahead = self._sequences[member][depth : depth + self._shortest]
            groups.setdefault(ahead.tobytes() if len(ahead) == self._shortest else member, []).append(member)
        return list(groups.values())

    def _common_length(self, group: Sequence[int], depth: int) -> int:
        first, *others = (self._sequences[member] for member in group)
        length = len(first)
        for other in others:
            both = min(length, len(other))
            differ = np.flatnonzero(first[depth:both] != other[depth:both])
            length = depth + int(differ[0]) if len(differ) else both
        return length

    def finish(self) -> PrefixTree:
        starts = [0, *accumulate(len(segment) for segment in self._segments)]
        places = [np.arange(start, stop) for start, stop in pairwise(starts)]
        depths = zip(self._depths, self._segments, strict=True)
        return PrefixTree(
            token_ids=np.concatenate(self._segments),
            position_ids=np.concatenate([np.arange(depth, depth + len(segment)) for depth, segment in depths]),
            segment_starts=np.array(starts, np.int32),
            segment_parents=np.array(self._parents, np.int32),
            rows=tuple(np.concatenate([places[segment] for segment in path]) for path in self._paths),
        )
