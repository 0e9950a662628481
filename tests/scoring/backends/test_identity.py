"""Scores belong to what computed them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from scoring.backends.factory import CacheKind, identity
from scoring.backends.store import checkpoint_digest
from scoring.config import Quantization, ScoringConfig, ServerConfig, TeacherConfig
from tutelage.settings import DType

TEACHER, SCORING = TeacherConfig(), ScoringConfig(dtype=DType.float32)


def test_a_copy_is_the_same_teacher_and_any_change_another(tiny_tied: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_tied, copy)
    (copy / "README.md").write_text("says nothing about the scores")
    assert checkpoint_digest(str(copy)) == checkpoint_digest(str(tiny_tied))
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert checkpoint_digest(str(copy)) != checkpoint_digest(str(tiny_tied))
    shutil.copy(tiny_tied / "model.safetensors", weights)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"rope_theta": 5.0}))
    assert checkpoint_digest(str(copy)) != checkpoint_digest(str(tiny_tied))


def test_numbers_and_who_computes_them_count_and_names_do_not(tiny_tied: Path, tiny_untied: Path) -> None:
    path = str(tiny_tied)
    mine = identity(path, TEACHER, SCORING)
    assert identity(path, replace(TEACHER, model="another name", context="a hint"), replace(SCORING, workers=4)) == mine
    different = [
        identity(str(tiny_untied), TEACHER, SCORING),
        identity(path, TEACHER, replace(SCORING, dtype=DType.bfloat16)),
        identity(path, replace(TEACHER, quantization=Quantization.int8), SCORING),
        identity(path, replace(TEACHER, backend="vllm"), SCORING),
    ]
    assert len({mine, *different}) == 5


def server(url: str, model: str) -> TeacherConfig:
    return TeacherConfig(model=model, backend="server", server=ServerConfig(url=url))


def test_a_server_is_its_address_and_the_models_name() -> None:
    names = [("http://a/v1", "m"), ("http://b/v1", "m"), ("http://a/v1", "n"), ("http://a/v", "1m")]
    assert len({identity("", server(*name), SCORING) for name in names}) == 4


def test_the_cache_knows_who_may_have_filled_it(tiny_tied: Path) -> None:
    path, cache = str(tiny_tied), replace(TEACHER, backend="cache")
    assert CacheKind().fillers(cache) == ["transformers", "vllm"]
    for backend in ("transformers", "vllm"):
        assert identity(path, cache, SCORING, backend) == identity(path, replace(TEACHER, backend=backend), SCORING)
    of_a_server = replace(server("http://a/v1", "m"), backend="cache")
    assert CacheKind().fillers(of_a_server) == ["server"]
    assert identity("", of_a_server, SCORING, "server") == identity("", server("http://a/v1", "m"), SCORING)


def test_a_checkpoint_without_files_has_no_identity(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        identity(str(tmp_path), TEACHER, SCORING)
