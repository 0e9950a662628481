"""The alignment on real engines and a pair of the lab, with a budget that has to be kept."""

import json
from pathlib import Path

import pytest

from tests.integration.launching import KeptWorkers, Series

BOUND = 60_000

pytestmark = pytest.mark.integration


def test_alignment_is_measured_within_its_bound(kept_workers: KeptWorkers, tmp_path: Path) -> None:
    done = Series(kept_workers, ["experiment=lab/compatible", "+probe=alignment"]).run(
        tmp_path / "run", f"alignment.max_tokens={BOUND}", "alignment.completions=8", "alignment.questions=12",
        "alignment.teachers=[{model: lab/columns}]", command="align",
    )  # fmt: skip
    found = json.loads((done.run_dir / "alignment.json").read_text())
    cost = found["cost"]
    assert 0 < cost["tokens"] <= cost["tokens_at_most"] <= cost["max_tokens"] == BOUND
    assert "instead of 12 to fit alignment.max_tokens" in done.text() and cost["questions"] < 12
    assert cost["requests"] > 0 and cost["seconds"] > 0
    assert {"all", "correct", "incorrect", "incorrect minus correct"} == set(found["summary"])
    rows = found["tables"]["by token"]
    teachers = {row["teacher"] for row in rows}
    assert teachers == {"lab/carries", "lab/columns, without context"} and len(rows) == 2 * cost["nodes"]
    assert {row["answers"] for row in rows} == {"correct", "incorrect"}
    counted = [row for row in rows if not row["skipped"]]
    assert counted and all(-1 <= row[name] <= 1 for row in counted for name in ("reverse_kl", "forward_kl", "jsd"))
    assert all(0 < row["inclusion_probability"] <= 1 for row in rows)
    summary = found["summary"]["all"]["reverse_kl"]
    assert summary["low"] <= summary["mean"] <= summary["high"]
    # A teacher of the student's own pattern points to what succeeds with it, one of another pattern does not.
    by_teacher = {row["teacher"]: row for row in found["tables"]["by teacher"] if row["answers"] == "all"}
    assert (
        by_teacher["lab/carries"]["teacher_advantage"] > by_teacher["lab/columns, without context"]["teacher_advantage"]
    )
