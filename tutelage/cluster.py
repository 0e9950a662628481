"""The Ray cluster of a run: joining it, starting workers in it, calling them with deadlines, and who died of what.

    Session ─► Cluster ─► start, or reuse of what an earlier run left idle ─► Worker ─► call, stream
    (several runs)                                                             └─► WorkerLost, WorkerFailure

A worker is a Ray actor under a name that people can read. Nothing waits for it longer than a deadline, and where it
fails the message names it and shows the end of its log.
"""

import asyncio
import logging
import os
import re
import secrets
import shutil
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray._private import ray_constants
from ray.exceptions import RayActorError, RayTaskError

from tutelage.errors import WorkerFailure, WorkerLate, WorkerLost
from tutelage.settings import ClusterConfig, ConfigError, Refusal

log = logging.getLogger("tutelage")
T = TypeVar("T")
ReuseKey = tuple[Any, ...]  # all that two runs must have in common to share workers
TAIL_LINES = 25
PING_SECONDS = 5.0
_NEWEST_LOGS = 8
_ENGINE_DIED = re.compile(r"EngineDeadError|EngineCore encountered|Engine core initialization failed|EngineCore failed")
_ENGINE_IS_DEAD = "EngineDeadError"  # of vLLM, which the driver does not import
_LOGGED_ERROR = re.compile(
    r"EngineCore.*?(?:^|\s)(?P<kind>(?:\w+\.)*(?:\w*Error|\w*Exception)): (?P<words>.+)$", re.MULTILINE
)
_ADVICE = {  # by what an engine says
    r"kv cache|cache blocks": "raise {room}.kv_cache_gib (on GPUs {room}.gpu_memory_utilization), or lower "
    "rollout.max_model_len",
    r"out of ?memory|cannot allocate|bad_alloc": "lower {room}.kv_cache_gib (on GPUs {room}.gpu_memory_utilization) or "
    "{room}.max_num_seqs",
    r"free memory on device": "lower {room}.gpu_memory_utilization, or free the GPU",
    r"max_model_len|max_position_embeddings": "lower rollout.max_model_len",
}


@dataclass(frozen=True)
class Resources:
    """What one worker takes of the cluster."""

    cpus: float
    gpus: float
    threads: int  # of its process
    concurrency: int | None = None  # calls at a time; None: Ray's own bound

    def options(self) -> dict[str, Any]:
        """Write them as Ray wants them; the threads are bounded before any library reads the environment."""
        threads = str(self.threads)
        environment = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "runtime_env": {"env_vars": environment}}
        return options if self.concurrency is None else {**options, "max_concurrency": self.concurrency}


@dataclass(frozen=True)
class Worker:
    """A Ray actor with a name people can read."""

    name: str
    handle: Any
    pid: int
    node: str
    session_dir: Path

    @property
    def log_files(self) -> list[Path]:
        """What its process printed, on this node; empty where it runs on another one."""
        return sorted((self.session_dir / "logs").glob(f"worker-*-{self.pid}.*"))

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        """Call a method of the actor and wait for its result.

        Raises:
            WorkerLost: it died, or did not answer within `deadline` seconds.
            WorkerFailure: the method raised.
        """
        return await self._wait(getattr(self.handle, method).remote(*args), method, deadline)

    async def stream(self, method: str, *args: Any, deadline: float) -> AsyncIterator[Any]:
        """Iterate over what a generator method yields; `deadline` holds from one item to the next.

        Raises:
            WorkerFailure: as `call`.
        """
        items = getattr(self.handle, method).remote(*args)
        iterator = aiter(items)
        while True:
            try:
                ref = await self._wait(anext(iterator), method, deadline)
            except StopAsyncIteration:
                return
            yield await self._wait(ref, method, deadline)

    async def _wait(self, waitable: Awaitable[T], method: str, deadline: float) -> T:
        try:
            return await _within(waitable, deadline, f"{self.name}.{method}")
        except RayActorError as error:
            raise WorkerLost(f"{self.name} died during {method}: {_first_line(error)}\n{self._log_tail()}") from None
        except RayTaskError as error:
            root = _root_cause(self.name, self.log_files)
            said = f"{root}\n{error.cause!r}" if root else repr(error.cause)
            # The process of a worker's engine is gone: what another worker could do in its place, this one cannot.
            is_lost = isinstance(error.cause, WorkerLost) or type(error.cause).__name__ == _ENGINE_IS_DEAD
            kind = WorkerLost if is_lost else WorkerFailure
            raise kind(f"{self.name} failed in {method}: {said}\n{self._log_tail()}") from error

    async def death_report(self) -> str | None:
        """Tell who died and what it last printed; None for a worker that lives or cannot say. Never raises."""
        try:
            await asyncio.wait_for(self.handle.__ray_call__.remote(lambda _self: None), PING_SECONDS)
        except RayActorError as error:
            return f"{self.name} died: {_first_line(error)}\n{self._log_tail()}"
        except Exception:  # too busy; a cluster that is gone itself
            return None
        return None

    def _log_tail(self) -> str:
        tails = [tail for path in self.log_files if (tail := _tail(path))]
        if not tails:
            return f"its log is on node {self.node}, in {self.session_dir / 'logs'}, under worker-*-{self.pid}.err"
        return "\n".join(tails)

    def stop(self) -> None:
        """Kill its process."""
        ray.kill(self.handle)


@dataclass(frozen=True)
class Cluster:
    """A Ray that this process has joined, the workers of the present run, and those that earlier ones left idle."""

    session_dir: Path
    workers: list[Worker] = field(default_factory=list)  # every one that was up in this run
    restarts: Counter[str] = field(default_factory=Counter)  # in this run, by role
    tasks: set[asyncio.Task[None]] = field(default_factory=set)  # that look after workers
    _idle: dict[str, tuple[ReuseKey, list[Worker]]] = field(default_factory=dict)  # by kind, from earlier starts
    numbers: Counter[str] = field(default_factory=Counter)  # names given in this run, by role

    @classmethod
    def join(cls, settings: ClusterConfig) -> "Cluster":
        """Start a Ray of one's own, or join the running one.

        Raises:
            ConfigError: no cluster at `cluster.address`.
        """
        is_local = settings.address == "local"
        # Without it a node of one's own takes the machine's address and is offered to the network; Ray has no setting
        # for that, and turns _node_ip_address="127.0.0.1" into that address.
        ray_constants.ENABLE_RAY_CLUSTER = not is_local
        if is_local:
            _keep_token_private()
            context = ray.init(
                address="local",
                num_cpus=local_cpus(settings),
                object_store_memory=int(settings.object_store_gib * 2**30),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            try:
                context = ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError) as error:  # nobody there; no address at all
                fix = f"no Ray cluster can be joined there ({_first_line(error)}); start one, or set local"
                raise ConfigError(Refusal("cluster.address", settings.address, fix)) from error
        return cls(Path(context.address_info["session_dir"]))

    @staticmethod
    def resources() -> tuple[float, float]:
        """Count all CPUs and GPUs of the cluster, whoever holds them."""
        total = ray.cluster_resources()
        return total.get("CPU", 0.0), total.get("GPU", 0.0)

    async def start(
        self, actor_class: type, *arguments: Any, names: Sequence[str], resources: Resources, deadline: float
    ) -> list[Worker]:
        """Start an actor for each name, all with the same arguments, and wait until their processes are up.

        Where not all of them come, none is left behind.

        Raises:
            WorkerLost: one of them died, or took more than `deadline` seconds.
            WorkerFailure: its constructor raised.
        """
        actor = ray.remote(actor_class).options(**resources.options())
        handles = [actor.remote(*arguments) for _ in names]
        arriving = (self._arrival(name, handle, deadline) for name, handle in zip(names, handles, strict=True))
        try:
            return list(await asyncio.gather(*arriving))
        except BaseException:
            for handle in handles:
                ray.kill(handle)
            raise

    async def _arrival(self, name: str, handle: Any, deadline: float) -> Worker:
        place = handle.__ray_call__.remote(lambda _self: (os.getpid(), ray.util.get_node_ip_address()))
        try:
            pid, node = await _within(place, deadline, name)
        except RayActorError as error:  # its constructor's error is in the text
            logs = sorted((self.session_dir / "logs").glob("worker-*"), key=lambda path: path.stat().st_mtime)
            engine_died = _ENGINE_DIED.search(str(error)) is not None
            root = _root_cause(name, logs[-_NEWEST_LOGS:]) if engine_died else None
            # What raises will raise again; an engine that dies without a word of its own was killed.
            raises_again = error.actor_init_failed and (root is not None or not engine_died)
            kind = WorkerFailure if raises_again else WorkerLost
            raise kind(f"{name} did not start: {root or ''}\n{error}") from None
        worker = Worker(name, handle, pid, node, self.session_dir)
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

    def keep_logs(self, folder: Path) -> None:
        """Copy what the workers of this node printed into the run's folder."""
        for worker in self.workers:
            for path in worker.log_files:
                shutil.copyfile(path, folder / f"{worker.name}{path.suffix}")


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


async def _within(waitable: Awaitable[T], deadline: float, what: str) -> T:
    try:
        return await asyncio.wait_for(waitable, deadline)
    except TimeoutError:
        raise WorkerLate(f"{what} did not answer within {deadline:g} s; see timeouts.* in the config") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), repr(error))


def _root_cause(name: str, logs: Sequence[Path]) -> str | None:
    """The first error that the engine of a worker has logged, and the setting to change; None: no engine died of one.

    An engine of vLLM's is a process of its own: what the worker raises says only that it is gone.
    """
    for path in logs:
        text = path.read_text(encoding="utf-8", errors="replace")
        errors = [match for match in _LOGGED_ERROR.finditer(text) if not _ENGINE_DIED.search(match[0])]
        if errors and _ENGINE_DIED.search(text):
            words = f"{errors[0]['kind']}: {errors[0]['words'].strip()}"
            room = "rollout" if "rollout" in name else "scoring.engine"
            advice = next((fix for pattern, fix in _ADVICE.items() if re.search(pattern, words, re.IGNORECASE)), None)
            return f"{words}; {advice.format(room=room)}" if advice else words
    return None


def _tail(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:  # Ray tidies up
        return ""
    return "\n".join([f"--- the end of {path.name} ---", *lines]) if lines else ""


def values_of(settings: Any) -> ReuseKey:
    """List all values of a settings dataclass, as part of a reuse key."""
    return tuple(asdict(settings).items())


async def call_all(workers: Sequence[Worker], method: str, *args: Any, deadline: float) -> list[Any]:
    """Call the same method of all workers at once; returns their results, in the order of the workers.

    Raises:
        WorkerFailure: the first failure of any of them.
    """
    return list(await asyncio.gather(*(worker.call(method, *args, deadline=deadline) for worker in workers)))
