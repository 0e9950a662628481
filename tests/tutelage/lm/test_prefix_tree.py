"""Every sequence can be read back from the tree, and what is common is there once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tutelage.lm.prefix_tree import PrefixTree, lay_out

SEQUENCES = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8)


def paths(tree: PrefixTree) -> list[list[int]]:
    """Token rows from the start of a sequence to the end of each segment."""
    ends: list[list[int]] = []
    for start, stop, parent in zip(tree.segment_starts, tree.segment_starts[1:], tree.segment_parents, strict=False):
        ends.append((ends[parent] if parent >= 0 else []) + list(range(start, stop)))
    return ends


@given(sequences=SEQUENCES, share=st.booleans(), shortest=st.integers(1, 4))
def test_every_sequence_is_read_back(sequences: list[list[int]], share: bool, shortest: int) -> None:
    tree = lay_out([np.array(sequence, np.int32) for sequence in sequences], share, shortest)
    for sequence, rows in zip(sequences, tree.rows, strict=True):
        assert tree.token_ids[rows].tolist() == sequence
        assert tree.position_ids[rows].tolist() == list(range(len(sequence)))
        assert any(path[: len(rows)] == rows.tolist() for path in paths(tree))
    assert tree.segment_starts[-1] == len(tree.token_ids) == len(tree.position_ids)
    assert (np.diff(tree.segment_starts) > 0).all()
    if not share:
        assert len(tree.token_ids) == sum(map(len, sequences)) and (tree.segment_parents == -1).all()


@given(sequences=SEQUENCES)
def test_no_prefix_is_there_twice(sequences: list[list[int]]) -> None:
    tree = lay_out([np.array(sequence) for sequence in sequences], share=True, shortest=1)
    prefixes = {tuple(sequence[: n + 1]) for sequence in sequences for n in range(len(sequence))}
    assert len(tree.token_ids) == len(prefixes)


def test_short_beginnings_are_not_shared() -> None:
    sequences = [np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), np.array([1, 2, 9])]
    tree = lay_out(sequences, share=True, shortest=3)
    assert tree.segment_parents.tolist() == [-1, 0, 0, -1]
    assert tree.token_ids.tolist() == [1, 2, 3, 4, 5, 1, 2, 9]
