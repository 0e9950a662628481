"""What docs/extending.md shows works as it stands there: from outside the packages, by the commands that it names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"^# (\S+\.(?:py|yaml))\n")
_POINTS = re.compile(r'\[project\.entry-points\."tutelage\.extensions"\]\n((?:.+\n)+)')
# All commands in one process: an import of the engines' libraries takes longer than a dry run.
_RUN = """
import runpy, sys
for words in {commands!r}:
    print("$", *words, flush=True)
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture(scope="module")
def blocks() -> list[tuple[str, str]]:
    """Language and content of each block of the guide."""
    return _BLOCK.findall(GUIDE.read_text(encoding="utf-8"))


def install(folder: Path, blocks: list[tuple[str, str]]) -> None:
    """Lay the guide's files out as `pip install` would, with the entry points that it declares."""
    for _, body in blocks:
        name = _FILE.match(body)
        if name is not None:
            path = folder / name[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body[name.end() :], encoding="utf-8")
    (points,) = (found[1] for language, body in blocks if language == "toml" and (found := _POINTS.search(body)))
    installed = folder / "example-0.1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 0.1\n")
    (installed / "entry_points.txt").write_text("[tutelage.extensions]\n" + points.replace('"', ""))


def commands(blocks: list[tuple[str, str]]) -> list[list[str]]:
    """The words of each command after `python -m`."""
    lines = "".join(body for language, body in blocks if language == "bash").replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[2:] for line in lines if line.strip()]


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_everything_that_is_added_works_from_outside_the_packages(
    blocks: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, blocks)
    asked = commands(blocks)
    assert len(asked) == 8
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{GUIDE.parents[1]}")
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(commands=asked)], cwd=tmp_path, capture_output=True, text=True, timeout=800
    )
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    (metrics,) = tmp_path.rglob("metrics.jsonl")
    assert "health/digits_share" in metrics.read_text(encoding="utf-8")
