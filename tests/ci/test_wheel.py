"""The wheel holds every file of the packages, so that a new folder or a new kind of data cannot be forgotten."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
PACKAGES = ("conf", "tutelage", "rollout", "scoring", "learner", "diagnostics", "orchestration")


def listed(*paths: str) -> list[str]:
    """List the files below some paths that git knows or would add."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate", "--", *paths]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return [name for name in names if (ROOT / name).is_file()]


def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    files = listed(*PACKAGES)
    source = tmp_path / "source"  # a copy: what an earlier build left in the checkout would be packed, too
    for name in [*files, "pyproject.toml", "README.md", "LICENSE"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == set(files)


def test_every_package_at_the_top_is_packed() -> None:
    tops = {Path(name).parent.name for name in listed("*/__init__.py") if name.count("/") == 1}
    assert tops == {*PACKAGES, "benchmarks", "tests"}
    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]
    assert find["include"] == [f"{package}*" for package in PACKAGES]
