"""Fixtures of the driver's tests: a few prompts, and the overrides of a run on tiny models."""

import json
from pathlib import Path

import pytest


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [{"prompt": f"What is {i} and {i}?", "answer": str(2 * i)} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "prompts.jsonl"


@pytest.fixture
def overrides(prompts: Path, tiny_tied: Path, tiny_untied: Path) -> list[str]:
    return [
        f"student.model={tiny_tied}",
        f"teacher.model={tiny_untied}",
        "teacher.context=null",
        f"data.train.path={prompts}",
        f"data.heldout.path={prompts}",
        "rollout.max_model_len=256",
        "evaluation.prompts=3",
    ]
