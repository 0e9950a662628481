"""Who scores what: roles with equal checkpoints and settings share a group of workers."""

import json
import os
from pathlib import Path

import pytest

from tests.factories import prepared

ADDED = "+teacher@further_teachers.other=checkpoint"
WITH_REFERENCE = "objective=reward_extrapolation"


@pytest.fixture
def two(tmp_path: Path, tiny_tied: Path, tiny_untied: Path) -> list[str]:
    """A run in which two teachers score a prompt each."""
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"Say {i}", "answer": str(i), "teacher": key} for i, key in enumerate(("teacher", "other"))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"student.model={tiny_tied}", f"teacher.model={tiny_untied}", "teacher.context=null", ADDED,
        f"further_teachers.other.model={tiny_untied}", f"data.train.path={path}", f"data.heldout.path={path}",
        "rollout.max_model_len=256", "evaluation.base_kl=never",
    ]  # fmt: skip


def shared(settings: list[str], *changes: str) -> dict[str, str]:
    """The name of each role's group."""
    return {role: scorer.name for role, scorer in prepared(settings, *changes).roles.scorers.items()}


def test_two_teachers_with_the_same_work_share_a_group(two: list[str], tiny_untied: Path) -> None:
    assert shared(two) == {"teacher": "scoring", "other": "scoring"}
    alike = ["further_teachers.other.context='Be brief.'", "further_teachers.other.domains=[sums]"]
    assert len(set(shared(two, *alike).values())) == 1  # what a prompt is and who asks is not the workers'
    other_spelling = os.path.relpath(tiny_untied)
    assert len(set(shared(two, f"further_teachers.other.model=./{other_spelling}").values())) == 1


@pytest.mark.parametrize("change", ["quantization=int8", "backend=vllm", "trust_remote_code=true"])
def test_other_settings_are_another_group(two: list[str], change: str) -> None:
    settings = [*two, "objective=sampled_reverse_kl", f"further_teachers.other.{change}"]
    assert shared(settings) == {"teacher": "scoring", "other": "scoring-other"}


def test_a_reference_shares_the_group_that_holds_its_checkpoint(two: list[str], tiny_untied: Path) -> None:
    reference = [WITH_REFERENCE, f"objective.reference.model={tiny_untied}"]
    assert shared(two, *reference)["reference"] == "scoring"
    assert shared(two, *reference, "teacher.quantization=int8")["reference"] == "scoring-other"
    own = shared(two, WITH_REFERENCE, "objective.reference.model=student", "evaluation.base_kl=always")
    assert own["reference"] == own["base"] == "reference"
