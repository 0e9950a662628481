"""The manifest of a finished stage: it holds what was left behind, and notices what was done to it."""

import json
from pathlib import Path

import pytest

from orchestration.runs.artifact import is_sealed, seal, verify
from tutelage.settings import ConfigError


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "1-warm"
    (folder / "final" / "extra").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    (folder / "final" / "model.safetensors").write_bytes(b"weights")
    (folder / "final" / "extra" / "merges.txt").write_text("a b")
    return folder


def test_a_sealed_stage_is_whole_and_says_where_it_comes_from(stage: Path) -> None:
    assert not is_sealed(stage)
    sealed = seal(stage, "warm", "distil", "models/base")
    assert is_sealed(stage) and verify(stage) == sealed
    manifest = json.loads((stage / "artifact.json").read_text())
    assert (manifest["stage"], manifest["kind"], manifest["base_model"]) == ("warm", "distil", "models/base")
    assert set(manifest["files"]) == {"final/model.safetensors", "final/extra/merges.txt"}
    # as `printf weights | sha256sum` has it
    assert manifest["files"]["final/model.safetensors"] == (
        "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c"
    )


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("final/model.safetensors", b"Weights", "final/model.safetensors was altered"),
        ("final/model.safetensors", None, "final/model.safetensors is missing"),
        ("final/code.py", b"", "final/code.py was added"),
        ("config.yaml", b"seed: 1\n", "config.yaml was altered"),
        ("config.yaml", None, "config.yaml is missing"),
    ],
)
def test_what_is_not_as_it_was_left_is_named(stage: Path, name: str, content: bytes | None, found: str) -> None:
    seal(stage, "warm", "distil", "models/base")
    if content is None:
        (stage / name).unlink()
    else:
        (stage / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"'warm' left behind: {found};"):
        verify(stage)
