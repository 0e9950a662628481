"""What a diagnosis recommends, as a command."""

import shlex
from pathlib import Path

import pytest

from diagnostics.verdict import Verdict, VerdictReport
from orchestration.results.directory import locate
from orchestration.runs.diagnosis import run_command
from tests.factories import configured


@pytest.mark.parametrize("verdict", [Verdict.go, Verdict.go_with_cold_start])
def test_the_recommended_run_is_one_that_launch_accepts(verdict: Verdict, tmp_path: Path) -> None:
    """The diagnosis's own folder is taken by then, and what is changed may have been set."""
    taken = tmp_path / "a diagnosis, with a name"
    taken.mkdir()
    (taken / "diagnosis.json").write_text("{}")
    overrides = [
        f"run_dir='{taken}'", "experiment=lab/compatible", "recipe=distil_then_reinforce", "++dry_run=false",
        f"output_root={tmp_path}", "objective.k=8",
    ]  # fmt: skip
    change = VerdictReport(verdict, None, "", ()).overrides  # type: ignore[arg-type]
    python, m, module, *settings = shlex.split(run_command(overrides, change))
    assert [python, m, module] == ["python", "-m", "orchestration.launch"]
    assert {"experiment=lab/compatible", "objective.k=8"} <= set(settings)
    config = configured(*settings)
    assert tmp_path in locate(config).parents and not locate(config).exists()  # where nobody refuses it
    assert config.recipe.stages[0].name == ("distil" if verdict is Verdict.go else "cold_start")
