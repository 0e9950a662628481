"""What docs/extending.md shows works as it stands there: from outside the packages, by the commands that it names."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "extending.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"^# (\S+\.(?:py|yaml|jsonl|toml))\n")


def sections() -> dict[str, str]:
    """The text below each heading of the second level, by heading."""
    parts = re.split(r"^## (.+)\n", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(text: str, language: str) -> Iterator[str]:
    return (body for kind, body in _BLOCK.findall(text) if kind == language)


EXAMPLES = {heading: text for heading, text in sections().items() if any(blocks(text, "bash"))}


def install(folder: Path, text: str) -> None:
    """Lay the section's files out as `pip install` would, with the entry points that its toml block declares."""
    for language in ("python", "yaml", "json"):
        for body in blocks(text, language):
            name = _NAME.match(body)
            if name is not None:
                path = folder / name[1]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(body[name.end() :], encoding="utf-8")
    declared = "\n".join(blocks(text, "toml"))
    points = re.search(r'\[project\.entry-points\."tutelage\.extensions"\]\n((?:.+\n?)+)', declared)
    if points is not None:
        installed = folder / "example-0.1.dist-info"
        installed.mkdir()
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 0.1\n")
        (installed / "entry_points.txt").write_text(f"[tutelage.extensions]\n{points[1].replace(chr(34), '')}")


@pytest.mark.integration
@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_works_from_outside_the_packages(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = EXAMPLES[heading]
    install(tmp_path, text)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{GUIDE.parents[1]}")
    for command in "\n".join(blocks(text, "bash")).replace("\\\n", " ").splitlines():
        words = [sys.executable if word == "python" else word for word in shlex.split(command, comments=True)]
        if words:
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
