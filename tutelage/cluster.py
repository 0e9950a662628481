"""The Ray cluster of a run: joining it, starting workers where there is room, and keeping them for the next run.

Session ─► Cluster ─► start, or reuse of what an earlier run left idle ─► Worker ─► call, stream
(several runs)                                                             └─► WorkerLost, WorkerFailure
"""

import asyncio
import atexit
import logging
import os
import secrets
import shutil
import socket
import time
from collections import Counter
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.state import available_resources_per_node
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tutelage.errors import WorkerFailure, WorkerLost
from tutelage.placement import ClusterNode, NoRoom, Resources, choose_seats
from tutelage.scratch import RAY, Scratch
from tutelage.settings import ClusterConfig, ConfigError, Placement, Refusal
from tutelage.worker import Worker, first_line, read_logs, root_cause, says_engine_died, within

log = logging.getLogger("tutelage")
ReuseKey = tuple[Any, ...]  # all that two runs must have in common to share workers
LEARNER = "learner"  # the role whose nodes others may belong near or away from
_NEWEST_LOGS = 8
_RAY_STARTS = 3
_ROOM_SECONDS = 0.5  # between two looks for room
_COUNTED_SECONDS = 3.0  # after which Ray counts whoever has begun to start
_TELL_SECONDS = 10.0  # after which whoever waits for room says so
_ANSWER_SECONDS = 2.0  # within which a node takes a connection
_COLLECT_SECONDS = 30.0  # for another node's logs


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process has joined, the workers of the present run, and those that earlier ones left idle."""

    session_dir: Path
    scratch: Scratch | None = None  # of a Ray of one's own
    workers: list[Worker] = field(default_factory=list)  # every one that was up in this run
    restarts: Counter[str] = field(default_factory=Counter)  # in this run, by role
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # that look after workers
    _idle: dict[str, tuple[ReuseKey, list[Worker]]] = field(default_factory=dict)  # by kind, from earlier starts
    numbers: Counter[str] = field(default_factory=Counter)  # names given in this run, by role
    _learner_nodes: set[str] = field(default_factory=set)  # ids, of its latest ranks
    # node and needs of those in their start, and since when
    _arriving: dict[str, tuple[str, Resources, float]] = field(default_factory=dict)

    @classmethod
    def join(cls, settings: ClusterConfig) -> "Cluster":
        """Start a Ray of one's own, or join the running one.

        Raises:
            ConfigError: no cluster at `cluster.address`.
            WorkerLost: one of one's own does not come up.
        """
        is_local, scratch = settings.address == "local", None
        # Without it a node of one's own takes the machine's address and is offered to the network; Ray has no setting
        # for that, and turns _node_ip_address="127.0.0.1" into that address.
        ray_constants.ENABLE_RAY_CLUSTER = not is_local
        if is_local:
            scratch = Scratch()
            atexit.register(scratch.remove)  # where Ray does not come up
            _keep_token_private()
            context = _start_ray(settings, scratch.path / RAY)
        else:
            try:
                context = ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:  # nobody there; no address at all
                fix = f"no Ray cluster can be joined there ({first_line(error)}); start one, or set local"
                raise ConfigError(Refusal("cluster.address", settings.address, fix)) from error
        return cls(Path(context.address_info["session_dir"]), scratch)

    @property
    def is_gone(self) -> bool:
        """Whether it was this run's own and its node has died: nothing can be started in it any more."""
        with suppress(Exception):  # of Ray's, without its server
            return self.scratch is not None and not self.nodes(free=False)
        return True

    @staticmethod
    def nodes(free: bool) -> list[ClusterNode]:
        """The nodes that live, with what is free of them, or with all that they have, whoever holds it."""
        left = available_resources_per_node()
        nodes = []
        for entry in [entry for entry in ray.nodes() if entry["Alive"]]:
            where = entry["NodeID"], entry["NodeManagerAddress"]
            has = left.get(where[0], {}) if free else entry["Resources"]
            nodes.append(ClusterNode(*where, has.get("CPU", 0.0), has.get("GPU", 0.0)))
        return nodes

    async def start(
        self,
        actor_class: type,
        *arguments: Any,
        names: Sequence[str],
        resources: Resources,
        deadline: float,
        patience: float,
        placement: Placement = Placement.spread,
    ) -> list[Worker]:
        """Start an actor for each name, all with the same arguments, and wait until their processes are up.

        Where not all of them come, none is left behind.

        Args:
            deadline: seconds, once there is room.
            patience: seconds in which room for them may come free, or nodes join that have some.

        Raises:
            NoRoom: there is none for them.
            WorkerLost: one of them died, or took more than `deadline` seconds.
            WorkerFailure: its constructor raised.
        """
        options, handles = resources.options(), list[Any]()
        seats = await self._seats(names, resources, placement, patience)
        self._mark_learner(names, seats)
        now = time.monotonic()
        self._arriving.update({name: (seat, resources, now) for name, seat in zip(names, seats, strict=True)})
        try:
            for seat in seats:
                # Where the place is a wish, Ray finds another one if the node is gone or full by now.
                wish = placement in (Placement.spread, Placement.pack)
                strategy = NodeAffinitySchedulingStrategy(seat, soft=wish, _spill_on_unavailable=wish)
                actor = ray.remote(actor_class).options(**options, scheduling_strategy=strategy)
                handles.append(actor.remote(*arguments))
            arriving = (self._arrival(name, handle, deadline) for name, handle in zip(names, handles, strict=True))
            return list(await asyncio.gather(*arriving))
        except BaseException:
            for handle in handles:
                ray.kill(handle)
            raise
        finally:
            for name in names:
                self._arriving.pop(name, None)

    def has_room(self, needs: Resources, placement: Placement) -> bool:
        """Whether one more worker could be started now."""
        try:
            choose_seats(self._free_nodes(), needs, 1, placement, self._learner_nodes)
        except NoRoom:
            return False
        return True

    async def _seats(
        self, names: Sequence[str], resources: Resources, placement: Placement, patience: float
    ) -> list[str]:
        """The id of a node for each name.

        Raises:
            NoRoom: for longer than `patience` seconds.
        """
        began, has_told = time.monotonic(), False
        while True:
            silent = await asyncio.to_thread(_silent_nodes)
            nodes = [node for node in self._free_nodes() if node.id not in silent]
            try:
                return choose_seats(nodes, resources, len(names), placement, self._learner_nodes)
            except NoRoom as error:
                if self.is_gone:
                    raise NoRoom("Ray's own node is gone; start again with resume=auto") from None
                waited, what = time.monotonic() - began, f"{', '.join(names)}: {error}"
                if waited > patience:
                    raise NoRoom(f"{what} (waited {patience:g} s: recovery.wait_for_node)") from None
                if waited > _TELL_SECONDS and not has_told:
                    log.warning("waiting for room, or for a node that has some: %s", what)
                    has_told = True
            await asyncio.sleep(_ROOM_SECONDS)

    def _free_nodes(self) -> list[ClusterNode]:
        """What is free of each node, less what those take that have just begun to start: Ray does not count them."""
        nodes = {node.id: node for node in self.nodes(free=True)}
        for seat, needs, since in self._arriving.values():
            if seat in nodes and time.monotonic() - since < _COUNTED_SECONDS:
                nodes[seat] = nodes[seat].without(needs, 1)
        return list(nodes.values())

    def _mark_learner(self, names: Sequence[str], seats: Sequence[str]) -> None:
        """Keep where the learner's latest ranks are, if these are they."""
        if names and all(name.startswith(f"{LEARNER}-") for name in names):
            self._learner_nodes.clear()
            self._learner_nodes.update(seats)

    async def _arrival(self, name: str, handle: Any, deadline: float) -> Worker:
        place = handle.__ray_call__.remote(
            lambda _self: (os.getpid(), ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())
        )
        try:
            pid, node, node_id = await within(place, deadline, name)
        except RayActorError as error:  # its constructor's error is in the text
            logs = sorted((self.session_dir / "logs").glob("worker-*"), key=lambda path: path.stat().st_mtime)
            engine_died = says_engine_died(str(error))
            root = root_cause(name, logs[-_NEWEST_LOGS:]) if engine_died else None
            # What raises will raise again; an engine that dies without a word of its own was killed.
            raises_again = error.actor_init_failed and (root is not None or not engine_died)
            kind = WorkerFailure if raises_again else WorkerLost
            raise kind(f"{name} did not start: {root or ''}\n{error}") from None
        worker = Worker(name, handle, pid, node, node_id, self.session_dir)
        self.workers.append(worker)
        return worker

    @property
    def has_idle(self) -> bool:
        return bool(self._idle)

    def reuse(self, kind: str, name: str, reuse_key: ReuseKey) -> list[Worker]:
        """Take the idle workers of a kind, under the name that they go by now; those that do not fit are stopped.

        Empty where there are none that fit. Those that were of this run already keep their names.
        """
        idle_key, workers = self._idle.pop(kind, (reuse_key, []))
        if idle_key != reuse_key:
            for worker in workers:
                worker.stop()
            return []
        taken = []
        for worker in workers:
            if worker not in self.workers or not worker.name.startswith(f"{name}-"):
                worker = replace(worker, name=self.names(name, 1)[0])
                self.workers.append(worker)
            taken.append(worker)
        self._mark_learner([worker.name for worker in taken], [worker.node_id for worker in taken])
        return taken

    def names(self, role: str, count: int) -> list[str]:
        """Name workers of a role, each with a number of its own in this run."""
        taken = self.numbers[role]
        self.numbers[role] += count
        return [f"{role}-{taken + index}" for index in range(count)]

    def set_idle(self, kind: str, reuse_key: ReuseKey, workers: Sequence[Worker]) -> None:
        """Keep workers for a next run, which may take what fits."""
        self._idle[kind] = (reuse_key, list(workers))

    def dismiss_idle(self, but: Set[str]) -> None:
        """Stop the idle workers of all kinds `but` these: a run may need the room."""
        for kind in self._idle.keys() - but:
            for worker in self._idle.pop(kind)[1]:
                worker.stop()

    def dismiss_all_but_idle(self) -> None:
        """Stop every worker of this run that nobody has set idle, and whoever would replace one."""
        for task in self.tasks:
            task.cancel()
        idle = [worker.handle for _, workers in self._idle.values() for worker in workers]
        for worker in self.workers:
            if worker.handle not in idle:
                worker.stop()

    def leave(self) -> None:
        """Leave the cluster; one of the run's own ends."""
        ray.shutdown()
        if self.scratch is not None:
            self.scratch.remove()
            atexit.unregister(self.scratch.remove)

    def keep_logs(self, folder: Path) -> None:
        """Copy what the workers printed into the run's folder; of nodes that do not answer, nothing."""
        away = {worker.node_id: list[Worker]() for worker in self.workers if not worker.log_files}
        for worker in self.workers:
            for path in worker.log_files:
                shutil.copyfile(path, folder / f"{worker.name}{path.suffix}")
            if worker.node_id in away:
                away[worker.node_id].append(worker)
        reading = {}
        for node_id, workers in away.items():
            there = NodeAffinitySchedulingStrategy(node_id, soft=False)
            read = ray.remote(read_logs).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
            reading[read.remote(self.session_dir, [worker.pid for worker in workers])] = workers
        if reading:
            answered, _ = ray.wait(list(reading), num_returns=len(reading), timeout=_COLLECT_SECONDS)
            for answer in answered:
                with suppress(RayError):
                    _write_logs(folder, reading[answer], ray.get(answer))


def _write_logs(folder: Path, workers: Sequence[Worker], logs: dict[int, dict[str, bytes]]) -> None:
    for worker in workers:
        for suffix, content in logs.get(worker.pid, {}).items():
            (folder / f"{worker.name}{suffix}").write_bytes(content)


def _start_ray(settings: ClusterConfig, folder: Path) -> Any:
    """
    Raises:
        WorkerLost: it does not come up; on a machine that is very busy it gets several times its own half a minute.
    """
    for _ in range(_RAY_STARTS):
        try:
            return ray.init(
                address="local",
                _temp_dir=str(folder),
                num_cpus=local_cpus(settings),
                object_store_memory=int(settings.object_store_gib * 2**30),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        except Exception as error:  # Ray raises it as such
            said = error
            ray.shutdown()
    raise WorkerLost(f"Ray did not start, tried {_RAY_STARTS} times: {first_line(said)}") from said


def _silent_nodes() -> set[str]:
    """Ids of nodes that do not answer: Ray takes half a minute to find out that one is gone, or cut off."""
    silent, nodes = set(), [entry for entry in ray.nodes() if entry["Alive"]]
    for entry in nodes if len(nodes) > 1 else ():
        try:
            socket.create_connection((entry["NodeManagerAddress"], entry["NodeManagerPort"]), _ANSWER_SECONDS).close()
        except OSError:
            silent.add(entry["NodeID"])
    return silent


def _keep_token_private() -> None:
    """See that nobody else can read the token of a Ray of one's own, which Ray itself writes for all to read.

    Where there is none in the environment it is in ~/.ray/auth_token, or, where that cannot be written, in this
    process's environment alone.
    """
    if "RAY_AUTH_TOKEN" in os.environ:
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = secrets.token_hex(32)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(token)
    except OSError:
        if not path.is_file():
            os.environ["RAY_AUTH_TOKEN"] = token
        elif path.stat().st_uid == os.getuid():
            path.chmod(0o600)


class Session:
    """The cluster of several runs, one after the other: joined for the first, left after the last.

    Workers that a completed run leaves idle go on in the next one, if it can use them.
    """

    def __init__(self) -> None:
        self._cluster: Cluster | None = None
        self._settings: dict[str, Any] = {}

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        if self._cluster is not None:
            self._cluster.leave()

    def cluster(self, settings: ClusterConfig) -> Cluster:
        """Join the cluster that a run asks for, or stay in the one of the run before if it is the same.

        Raises:
            ConfigError: as `Cluster.join`.
        """
        values = asdict(settings)
        if self._cluster is not None and self._settings != values:
            self._cluster.leave()
            self._cluster = None
        if self._cluster is None:
            self._cluster, self._settings = Cluster.join(settings), values
        else:
            self._cluster.dismiss_all_but_idle()  # one that failed has left them as they were
            for of_the_run_before in (self._cluster.workers, self._cluster.restarts, self._cluster.numbers):
                of_the_run_before.clear()
        return self._cluster


def local_cpus(settings: ClusterConfig) -> int:
    """Count the logical CPUs of a cluster of the run's own."""
    return settings.cpus or os.cpu_count() or 1


def free_address() -> tuple[str, int]:
    """Find this node's IP address and a port on it that is free now."""
    host = ray.util.get_node_ip_address()
    with socket.socket() as listener:
        listener.bind((host, 0))
        return host, listener.getsockname()[1]


def values_of(settings: Any) -> ReuseKey:
    """List all values of a settings dataclass, as part of a reuse key."""
    return tuple(asdict(settings).items())
