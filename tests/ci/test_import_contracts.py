"""The contracts in pyproject.toml: an import that leads the wrong way is found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tutelage", "rollout", "scoring", "learner", "diagnostics", "orchestration", "benchmarks")
WRONG_WAYS = {
    "a worker that imports another": ("rollout/config.py", "import scoring.config", "Rooms"),
    "the ground that imports a worker": ("tutelage/files.py", "import learner.config", "Rooms"),
    "a floor that imports a higher one": ("orchestration/pipeline/schedule.py", "import orchestration.runs", "floors"),
    "a circle between siblings": ("tutelage/settings.py", "import tutelage.registry", "circles"),
    "a driver that opens an engine": ("orchestration/cli.py", "import learner.engine", "learner's engine"),
    "a judge that opens a teacher": ("diagnostics/check.py", "import scoring.backends.model", "Teachers' engines"),
    "a group that opens its engine": ("rollout/group.py", "import rollout.engine", "rollout engine"),
}


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    shutil.copy(ROOT / "pyproject.toml", root)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=lambda folder, names: [
            name for name in names if not name.endswith(".py") and not (Path(folder) / name).is_dir()
        ])  # fmt: skip
    return root


def broken(root: Path) -> list[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True).stdout
    return [line for line in output.splitlines() if line.endswith("BROKEN")]


@pytest.mark.parametrize("case", WRONG_WAYS)
def test_an_import_that_leads_the_wrong_way_breaks_its_contract(case: str, copied: Path) -> None:
    path, line, contract = WRONG_WAYS[case]
    before = (copied / path).read_text()
    try:
        (copied / path).write_text(f"{before}\n{line}\n")
        assert any(contract in name for name in broken(copied))
    finally:
        (copied / path).write_text(before)


def test_a_folder_without_a_floor_breaks_the_order_of_floors(copied: Path) -> None:
    (copied / "orchestration" / "attic.py").write_text("")
    assert any("floors" in name for name in broken(copied))
    (copied / "orchestration" / "attic.py").unlink()


def test_main_keeps_its_contracts(copied: Path) -> None:
    assert broken(copied) == []
