"""A cluster of one's own is nobody else's, and an engine that died says of what."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray

from tutelage.cluster import Cluster, _keep_token_private, _start_ray
from tutelage.errors import WorkerLost
from tutelage.settings import ClusterConfig
from tutelage.worker import Worker, root_cause

ROOT = Path(__file__).parents[2]
# Joins a Ray of its own, and meets nobody as the only rank; prints the addresses that its processes listen on.
LISTENERS = """
import os
import psutil
from learner.deepspeed_setup import join_group
from tutelage.cluster import Cluster, free_address
from tutelage.settings import ClusterConfig

cluster = Cluster.join(ClusterConfig(cpus=1, object_store_gib=0.1))
host, port = free_address()
os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": host, "MASTER_PORT": str(port)}
join_group(1, 60)
me = psutil.Process()
for process in (me, *me.children(recursive=True)):
    for connection in process.net_connections("inet"):
        if connection.status == psutil.CONN_LISTEN:
            print("listens", connection.laddr.ip, process.name())
cluster.leave()
"""


def test_a_local_ray_and_a_single_rank_listen_on_loopback_only(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    environment.pop("RAY_AUTH_TOKEN", None)
    command = [sys.executable, "-c", LISTENERS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    listeners = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("listens ")]
    assert (
        listeners
        and [where for where in listeners if not where[0].removeprefix("::ffff:").startswith(("127.", "::1"))] == []
    )
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_that_others_can_read_is_closed(home: Path) -> None:
    (home / ".ray").mkdir()
    token = home / ".ray" / "auth_token"
    token.write_text("kept")
    token.chmod(0o644)
    _keep_token_private()
    assert token.stat().st_mode & 0o777 == 0o600 and token.read_text() == "kept"


def test_a_home_that_cannot_be_written_leaves_the_token_in_the_environment(home: Path) -> None:
    (home / ".ray").touch()
    _keep_token_private()
    assert len(os.environ.pop("RAY_AUTH_TOKEN")) == 64


ENGINE_LOG = """\
INFO 11-27 12:00:00 [core.py:10] Initializing a V1 LLM engine
(EngineCore pid=77) ERROR 11-27 12:00:01 [core.py:90] EngineCore failed to start.
(EngineCore pid=77) ERROR 11-27 12:00:01 [core.py:90] Traceback (most recent call last):
(EngineCore pid=77) ERROR 11-27 12:00:01 [core.py:90] ValueError: 0.5 GiB KV cache is needed, larger than the 0.1 GiB
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def test_the_cause_of_an_engines_death_comes_first_with_its_key(tmp_path: Path) -> None:
    log = tmp_path / "worker-1.err"
    log.write_text(ENGINE_LOG)
    cause = root_cause("rollout-0", [log])
    assert cause is not None and cause.startswith("ValueError: 0.5 GiB KV cache is needed")
    assert "raise rollout.kv_cache_gib" in cause and "\n" not in cause
    assert "scoring.engine.kv_cache_gib" in str(root_cause("teacher-0", [log]))
    log.write_text("ValueError: of something else\n")
    assert root_cause("rollout-0", [log]) is None


class Handle:
    """Stands for an actor."""


def test_a_name_is_of_one_worker_of_a_run_and_stays_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[Any] = []
    monkeypatch.setattr(ray, "kill", stopped.append)
    cluster = Cluster(tmp_path)
    workers = [Worker(name, Handle(), 1, "node", "id", tmp_path) for name in cluster.names("rollout", 2)]
    cluster.workers.extend(workers)
    assert cluster.names("rollout", 1) == ["rollout-2"] and cluster.names("learner", 1) == ["learner-0"]

    cluster.set_idle("rollout", ("key",), workers)
    assert cluster.reuse("rollout", "rollout", ("key",)) == workers  # another start of the same run
    cluster.set_idle("rollout", ("key",), workers[:1])
    cluster.dismiss_all_but_idle()
    assert stopped == [workers[1].handle]
    (renamed,) = cluster.reuse("rollout", "teacher-rollout", ("key",))
    assert renamed.name == "teacher-rollout-0" and renamed.handle is workers[0].handle
    cluster.set_idle("rollout", ("key",), [renamed])
    assert cluster.reuse("rollout", "rollout", ("other key",)) == [] and stopped[-1] is renamed.handle


@pytest.mark.parametrize(("failures", "comes"), [(2, True), (3, False)])
def test_a_ray_that_is_slow_to_start_is_started_again(
    failures: int, comes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Any] = []

    def init(**_: Any) -> str:
        tries.append(None)
        if len(tries) <= failures:
            raise Exception("The current node timed out during startup.")
        return "context"

    monkeypatch.setattr(ray, "init", init)
    if comes:
        assert _start_ray(ClusterConfig(), Path("x")) == "context"
    else:
        with pytest.raises(WorkerLost, match=r"tried 3 times: The current node timed out"):
            _start_ray(ClusterConfig(), Path("x"))
