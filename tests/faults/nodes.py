"""Machines that are none: each has its own network, host name, shared memory and processes, as a node of a cluster has.

    bridge ─┬─ veth ─ node-1  10.77.0.1   docker/start-head.sh
            ├─ veth ─ node-2  10.77.0.2   docker/start-worker.sh, begun again whenever it ends
            ├─ veth ─ node-3  10.77.0.3   likewise
            └─ veth ─ node-9  10.77.0.9   a Redis that the head keeps its tables in, where one is asked for

Linux namespaces do it, so it takes root. The file system is common to all, as a network file system is.
"""

import ctypes
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
_TMP_RAY = "/tmp/ray"  # where every node of a real cluster has its own session
_JOB_SERVER = "http://127.0.0.1:8265"


def why_not(*programs: str) -> str | None:
    """Why there can be no such nodes here, or not with these programs; None: there can."""
    if os.getuid() != 0:
        return "needs root"
    if missing := [program for program in programs if shutil.which(program) is None]:
        return f"needs {', '.join(missing)}"
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "ip", "link", "add", "type", "veth"],
        capture_output=True,
        text=True,
    )
    return None if done.returncode == 0 else f"needs network namespaces: {done.stderr.strip()}"


class Node:
    """One machine; it is up once it has been booted, and may be cut off, killed and booted again."""

    def __init__(self, number: int, bridge: str, folder: Path, environment: dict[str, str]) -> None:
        self.name, self.address = f"node-{number}", f"10.77.0.{number}"
        self.log = folder / f"{self.name}.log"
        self._bridge, self._environment = bridge, environment
        self._link = f"{bridge}v{number}"
        self._init: subprocess.Popen[bytes] | None = None

    def boot(self, *command: str) -> None:
        """Start the machine, and on it a command that is begun again whenever it ends."""
        self._init = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc",
             "sleep", "infinity"],
            start_new_session=True, preexec_fn=_end_with_parent,
        )  # fmt: skip
        deadline = time.monotonic() + 10
        while not self._children():
            assert time.monotonic() < deadline, "unshare has started nothing"
            time.sleep(0.05)
        (pid,) = self._children()
        _ip("link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        _ip("link", "set", self._link, "master", self._bridge, "up")
        for line in (
            f"hostname {self.name}", "mount -t tmpfs tmpfs /dev/shm", f"mkdir -p {_TMP_RAY}",
            f"mount -t tmpfs tmpfs {_TMP_RAY}", "ip link set lo up", f"ip addr add {self.address}/24 dev eth0",
            "ip link set eth0 up",
        ):  # fmt: skip
            subprocess.run([*self.enter(), *line.split()], check=True)
        loop = "while true; do " + " ".join(command) + "; sleep 1; done"
        with self.log.open("ab") as file:
            subprocess.Popen([*self.enter(), "bash", "-c", loop], stdout=file, stderr=file, env=self._environment)

    def run(self, command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
        """Run a command on it to its end."""
        return subprocess.run(
            [*self.enter(), *command], capture_output=True, text=True, timeout=seconds, env=self._environment, cwd=ROOT
        )

    def kill(self) -> None:
        """All its processes at once, as when the power fails."""
        if self._init is not None:
            for pid in self._children():
                os.kill(pid, signal.SIGKILL)  # the first of its processes: the kernel ends the others with it
            self._init.wait(10)
            self._init = None
            subprocess.run(["ip", "link", "del", self._link], capture_output=True)  # may have gone with the network

    def cut(self, seconds: float) -> None:
        """Take it off the network for so long."""
        _ip("link", "set", self._link, "down")
        time.sleep(seconds)
        _ip("link", "set", self._link, "up")

    def _children(self) -> list[int]:
        assert self._init is not None
        text = Path(f"/proc/{self._init.pid}/task/{self._init.pid}/children").read_text()
        return [int(pid) for pid in text.split()]

    def enter(self) -> list[str]:
        """What a command begins with that is to run on it."""
        (pid,) = self._children()
        return ["nsenter", "--target", str(pid), "--net", "--mount", "--uts", "--ipc", "--pid"]


class Nodes:
    """A cluster of several, with a token, that jobs are submitted to."""

    def __init__(self, folder: Path, cpus: Sequence[int], environment: dict[str, str], has_store: bool = False) -> None:
        """
        Args:
            cpus: that each node offers; the first is the head.
            environment: of all processes, beside that of the tests.
            has_store: a head that comes back finds what it knew.
        """
        self._bridge = f"tb{secrets.token_hex(3)}"
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("link", "set", self._bridge, "up")
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | environment | {
            "PATH": path, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_HEAD_ADDRESS": "10.77.0.1:6379", "RAY_API_SERVER_ADDRESS": _JOB_SERVER,
        }  # fmt: skip
        if has_store:
            self.environment["RAY_REDIS_ADDRESS"] = "10.77.0.9:6379"
        self._cpus = cpus
        self.nodes = [Node(number + 1, self._bridge, folder, self.environment) for number in range(len(cpus))]
        self._store = Node(9, self._bridge, folder, self.environment)
        if has_store:
            self._store.boot("redis-server", "--bind", self._store.address, "--protected-mode no --save ''")

    @property
    def head(self) -> Node:
        return self.nodes[0]

    def boot(self, number: int) -> None:
        node, script = self.nodes[number], "start-worker.sh" if number else "start-head.sh"
        options = [f"--node-ip-address={node.address}", f"--num-cpus={self._cpus[number]}"]
        node.boot(f"cd {ROOT};", f"docker/{script}", *options, "--object-store-memory=200000000")

    def wait_for(self, count: int, seconds: float) -> None:
        """Until so many nodes are there."""
        alive = "len([node for node in ray.nodes() if node['Alive']])"
        script = f"import ray; ray.init('auto', log_to_driver=False); assert {alive} == {count}"
        deadline = time.monotonic() + seconds
        while (done := self.head.run([sys.executable, "-c", script], 60)).returncode:
            assert time.monotonic() < deadline, done.stderr + self.head.log.read_text()
            time.sleep(1)

    def close(self) -> None:
        for node in (*self.nodes, self._store):
            node.kill()
        _ip("link", "del", self._bridge)


@contextmanager
def booted(folder: Path, cpus: Sequence[int], environment: dict[str, str], has_store: bool = False) -> Iterator[Nodes]:
    """All nodes of a cluster up until the block is left; the arguments are those of `Nodes`."""
    nodes = Nodes(folder, cpus, environment, has_store)
    try:
        for number in range(len(cpus)):
            nodes.boot(number)
        nodes.wait_for(len(cpus), 180)
        yield nodes
    finally:
        nodes.close()


def _end_with_parent() -> None:
    """A machine is switched off with the process that has booted it, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
