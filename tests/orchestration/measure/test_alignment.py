import asyncio
import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from diagnostics.alignment.gradients import compare_gradients
from diagnostics.config import AlignmentConfig
from orchestration.measure.alignment import measure_alignment
from orchestration.measure.alignment_record import AlignmentCost, GradientAlignment
from orchestration.measure.both_models import teacher_in_question
from orchestration.measure.probe import Prober
from scoring.pool import TeacherPool
from tests.diagnostics.alignment.examples import drawn, node, tilted, view
from tests.factories import configured
from tutelage.settings import ConfigError


def fleet(*teachers: str) -> Any:
    """Workers that nobody may ask anything, of these teachers."""
    return SimpleNamespace(teachers=TeacherPool({key: cast(Any, object()) for key in teachers}, {}))


def test_it_says_what_it_needs_before_anything_is_asked_of_the_workers() -> None:
    config, prepared = configured(), cast(Any, None)
    with pytest.raises(ConfigError, match=r"data\.verifier=none"):
        asyncio.run(measure_alignment(config, prepared, fleet("teacher"), None, print))
    with pytest.raises(ConfigError, match=r"stage=distil: no teacher takes part.*set stage=distil"):
        asyncio.run(measure_alignment(config, prepared, fleet(), cast(Any, object()), print))


def test_a_teacher_that_no_prompt_goes_to_cannot_be_in_question() -> None:
    """Where every prompt is a further teacher's, the teacher that every run has needs no workers, and has none."""
    config, prepared = configured(), cast(Any, None)
    for look in (
        lambda: asyncio.run(measure_alignment(config, prepared, fleet("math", "code"), cast(Any, object()), print)),
        lambda: Prober(config, prepared, fleet("math", "code"), None, lambda *_: None),
    ):
        with pytest.raises(ConfigError, match=r"further_teachers=math, code: .*set teacher to the right one"):
            look()
    assert teacher_in_question(config, fleet("math", "teacher")) is not None


def test_everything_is_said_of_the_runs_own_teacher_and_the_tables_of_all() -> None:
    p, success = np.array([0.5, 0.3, 0.2]), np.array([0.9, 0.2, 0.4])
    views = [view(p, tilted(p, success, strength)) for strength in (1.0, -1.0)]
    views[1] = replace(views[1], teacher="harmful", has_context=True)
    rows = [
        compare_gradients(node(f"q{i}", correct=i % 2 == 0), seen, drawn(success, 64, i), AlignmentConfig())
        for seen in views
        for i in range(6)
    ]
    cost = AlignmentCost(6, 6, 18, 1152, 64, 10**6, 20_000, 10_000, 5.0, 9_000, 6.0)
    accuracy = {f"q{i}": 0.5 for i in range(6)}
    found = GradientAlignment(tuple(rows), ("teacher", "harmful"), cost, accuracy, {0: "a", 1: "b", 2: "c"}).as_json()
    json.dumps(found, allow_nan=False)
    assert found["summary"]["all"]["reverse_kl"]["mean"] > 0.9 and len(found["candidates"]) == 6
    tables = found["tables"]
    assert [row["teacher"] for row in tables["by teacher"]] == ["teacher"] * 3 + ["harmful"] * 3
    assert {(row["teacher"], row["context"]) for row in tables["by context"]} == {
        ("teacher", "what the student sees"),
        ("harmful", "more than the student sees"),
    }
    between = tables["between teachers"][0]
    assert between["minus"] == "harmful" and between["reverse_kl"] > 1.8 and between["nodes"] == 6
    assert len(tables["by token"]) == 12 and len(tables["by question"]) == 6
