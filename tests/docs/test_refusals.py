"""docs/refusals.md is what the source says."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_lists_what_the_source_refuses() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "refusals.py"), "--check"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_page_names_settings_of_every_kind() -> None:
    page = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8")
    for row in (
        "| `sampling.top_p` | above 0 and at most 1 |",
        "`learner.warmup_steps`",
        "`learner.betas`",
        "`run_dir`",
    ):
        assert row in page
