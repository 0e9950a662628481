"""Endpoints are asked before anything starts."""

import re
import socket
from pathlib import Path

import pytest

from orchestration.prepare.inputs import prepare
from orchestration.prepare.teachers import check_endpoints
from tests.factories import configured


def test_a_server_that_nobody_runs_is_named(overrides: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    settings = "teacher.backend=server", f"teacher.server.url={url}", "teacher.model=big", "teacher.server.attempts=1"
    config = configured(*overrides, *settings, "objective=sampled_reverse_kl")
    with pytest.raises(ValueError, match=re.escape(f"teacher.server.url={url}")):
        check_endpoints(config, prepare(config))


def test_a_key_that_is_not_set_is_named(overrides: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    settings = "teacher.backend=server", "teacher.server.url=http://127.0.0.1:1/v1", "teacher.model=big"
    config = configured(*overrides, *settings, "teacher.server.api_key_env=NO_SUCH_KEY", "objective=sampled_reverse_kl")
    with pytest.raises(ValueError, match=r"teacher\.server\.api_key_env=NO_SUCH_KEY"):
        check_endpoints(config, prepare(config))


def test_a_server_without_prompts_of_its_own_is_not_asked(overrides: list[str], tmp_path: Path) -> None:
    added = "+teacher@further_teachers.far=checkpoint"
    far = [f"further_teachers.far.{s}" for s in ("backend=server", "model=big", "server.url=http://127.0.0.1:1/v1")]
    config = configured(*overrides, added, *far, "objective=sampled_reverse_kl")
    check_endpoints(config, prepare(config))
