"""Requests of every coverage and the answers that a store keeps of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from scoring.backends.store import Coverage
from tests.scoring.reference import random_request
from tutelage.records.signal import ScoringRequest, TeacherSignal

EXTENTS = st.builds(Coverage, st.integers(0, 6), st.booleans(), st.booleans())


def invented(request: ScoringRequest, seed: int = 0) -> TeacherSignal:
    """An answer of the right form, with numbers that no two requests share."""
    generator = np.random.default_rng(seed)
    tokens = request.num_scored

    def numbers(*shape: int) -> np.ndarray:
        return generator.normal(size=shape).astype(np.float32)

    return TeacherSignal(
        teacher=request.teacher,
        logprobs=numbers(tokens),
        entropy=numbers(tokens) if request.entropy else None,
        support_ids=request.support_ids,
        support_logprobs=None if request.support_ids is None else numbers(*request.support_ids.shape),
        top_ids=generator.integers(0, 99, (tokens, request.top_k), dtype=np.int32) if request.top_k else None,
        top_logprobs=numbers(tokens, request.top_k) if request.top_k else None,
        hidden_states=numbers(tokens, 8) if request.hidden_states else None,
    )


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
