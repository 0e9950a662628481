"""Requests of every coverage and the answers that a store keeps of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from scoring.backends.store import Coverage
from tests.scoring.reference import random_request
from tutelage.records.signal import SIGNAL_ARRAYS, ScoringRequest, TeacherSignal

EXTENTS = st.builds(Coverage, st.integers(0, 6), st.booleans(), st.booleans())


def invented(request: ScoringRequest, seed: int = 0) -> TeacherSignal:
    """An answer with all the declared arrays that are asked for, with numbers that no two requests share."""
    generator = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name, row in request.row_shapes.items():
        shape = (request.num_scored, *((8,) if name == "hidden_states" else row))
        arrays[name] = (1000 * generator.normal(size=shape)).astype(SIGNAL_ARRAYS[name].dtype)
    return TeacherSignal(teacher=request.teacher, support_ids=request.support_ids, **arrays)


def assert_same(ours: TeacherSignal, theirs: TeacherSignal) -> None:
    """Bit for bit, and nothing more or less."""
    for name, expected in vars(theirs).items():
        found = getattr(ours, name)
        if isinstance(expected, np.ndarray):
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, name)
        else:
            assert found == expected, name


def asked(extent: Coverage, **changes: object) -> ScoringRequest:
    return replace(random_request(5, 7, support=3, entropy=False), **vars(extent), **changes)


def damage_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
