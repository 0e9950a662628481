"""The diagnosis by its command, on the lab's models: what it says of a teacher that helps and of one that harms."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.integration.launching import KeptWorkers, Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
SMALL = ("probe.prompts=32", "probe.samples_per_prompt=4", "probe.shown=4")


@pytest.fixture(scope="module")
def lab(kept_workers: KeptWorkers) -> Series:
    return Series(kept_workers, [])


def _diagnosis(lab: Series, folder: Path, *overrides: str, exit_code: int) -> dict[str, Any]:
    lab.run(folder, *overrides, exit_code=exit_code, command="diagnose")
    return json.loads((folder / "diagnosis.json").read_text())


def test_a_compatible_and_stronger_teacher_is_a_go(lab: Series, tmp_path: Path) -> None:
    found = _diagnosis(
        lab,
        tmp_path / "d",
        "experiment=lab/compatible",
        *SMALL,
        "probe.representation=4",
        "probe.earlier_teacher=lab/student",
        exit_code=0,
    )
    verdict, probe = found["verdict"], found["probe"]
    assert verdict["verdict"] == "go"
    assert verdict["predicted_change"]["low"] > 0
    _, *module, overrides = verdict["recommended_command"].split(" ", 3)
    assert module == ["-m", "orchestration.launch"]
    lab.run(tmp_path / "again", *shlex.split(overrides), "dry_run=true", exit_code=0)
    assert {check["status"] for check in found["preflight"]["checks"]} <= {"pass", "warn"}
    assert probe["accuracy"]["teacher"]["mean"] > probe["accuracy"]["student"]["mean"] + 0.2
    assert [point["depth"] for point in probe["prefix_depth"]] == [0.0, 0.125, 0.25, 0.5, 0.75]
    assert all(point["advantage"]["mean"] > 0 for point in probe["prefix_depth"])
    assert probe["auroc"]["mean"] > 0.8
    assert sum(b["tokens"] for b in probe["by_position"]["reverse_kl"]) > 32 * 4 * 10
    # the earlier teacher is the student here, so this is the student's own log-ratio once more
    ratios = probe["statistics"]
    assert ratios["earlier_teacher_log_ratio"]["mean"] == pytest.approx(ratios["sampled_log_ratio"]["mean"], abs=0.02)
    assert all(0 < layer["cka"] <= 1 for layer in probe["representation"]["layers"])
    assert {trajectory["reward"] for trajectory in found["trajectories"]} == {0.0, 1.0}
    page = (tmp_path / "d" / "report.html").read_text()
    assert "This teacher is expected to help this student" in page


def test_a_teacher_of_another_pattern_is_none(lab: Series, tmp_path: Path) -> None:
    found = _diagnosis(lab, tmp_path / "d", "experiment=lab/other_pattern", *SMALL, exit_code=3)
    assert found["verdict"]["verdict"] == "go_with_cold_start"
    assert found["verdict"]["predicted_change"]["high"] < 0
    assert found["verdict"]["recommended_command"].endswith("recipe=cold_start_then_distil")
    start, *deeper = found["probe"]["prefix_depth"]
    assert start["advantage"]["mean"] > 0 > max(point["advantage"]["mean"] for point in deeper)


def test_the_probe_keeps_to_its_bound(lab: Series, tmp_path: Path) -> None:
    found = _diagnosis(
        lab, tmp_path / "d", "experiment=lab/compatible", *SMALL, "probe.max_tokens=9000", "probe.depths=[0.5]",
        exit_code=3,
    )  # fmt: skip
    assert 0 < found["probe"]["prompts"] < 32
    assert found["probe"]["tokens"] <= 9000


def test_without_a_verifier_it_says_that_it_cannot_tell(lab: Series, tmp_path: Path) -> None:
    found = _diagnosis(lab, tmp_path / "d", "experiment=lab/compatible", *SMALL, "data.verifier=none", exit_code=3)
    assert found["verdict"]["verdict"] == "cannot_tell"
    assert found["verdict"]["recommended_command"] is None
    assert found["verdict"]["unit"].startswith("reverse KL")
    assert found["probe"]["accuracy"] is None
    assert found["probe"]["prefix_depth"] == []


def test_what_has_no_teacher_is_refused_before_anything_starts(lab: Series, tmp_path: Path) -> None:
    run = lab.run(
        tmp_path / "d", "experiment=lab/compatible", "stage=reinforce", "objective=grpo",
        "sampling.samples_per_prompt=4", exit_code=1, command="diagnose",
    )  # fmt: skip
    assert "stage=reinforce: a diagnosis asks whether a teacher's scores will help" in run.text()
    assert not run.run_dir.exists()
