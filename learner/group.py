"""The learner's ranks as one: one call a step, one failure."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray

from learner.config import LearnerSetup
from learner.records import Batch, ExampleDivergence, ExampleTokens, PublishReport, StepReport
from learner.worker import LearnerWorker
from tutelage.cluster import LEARNER, Cluster, ReuseKey
from tutelage.errors import LearnerFailure, WorkerFailure, WorkerLost
from tutelage.lm.head import LMHead, MixedHead
from tutelage.settings import Placement, TimeoutConfig
from tutelage.worker import Worker

_TELL_SECONDS = 15.0
_FIND_OUT_SECONDS = 60.0  # for Ray to notice that a node is gone


class LearnerGroup:
    """The ranks of one learner, each in a worker of its own; a call goes to all of them."""

    KIND = LEARNER

    def __init__(self, workers: list[Worker], reuse_key: ReuseKey, timeouts: TimeoutConfig) -> None:
        self.workers, self.reuse_key = workers, reuse_key
        self._timeouts = timeouts

    def set_idle(self, cluster: Cluster) -> None:
        """Keep the processes for a next run; the student in them is dropped then."""
        cluster.set_idle(self.KIND, self.reuse_key, self.workers)

    @classmethod
    async def start(
        cls,
        setup: LearnerSetup,
        timeouts: TimeoutConfig,
        cluster: Cluster,
        patience: float,
        placement: Placement = Placement.pack,
    ) -> "LearnerGroup":
        """Start the ranks, or take idle processes, and load the student in each.

        Args:
            patience: seconds in which room for them may come free.
        """
        settings, deadline = setup.learner, timeouts.start
        # The student is loaded anew, so idle processes need nothing else in common.
        reuse_key = (settings.ranks, settings.cpus_per_rank, settings.gpus_per_rank, settings.threads)
        workers = cluster.reuse(cls.KIND, LEARNER, reuse_key)
        if not workers:
            workers = await cluster.start(
                LearnerWorker,
                names=cluster.names(LEARNER, settings.ranks),
                resources=settings.needs,
                deadline=deadline,
                patience=patience,
                placement=placement,
            )
        address = await workers[0].call("address", deadline=deadline)
        setups = (worker.call("setup", setup, rank, address, deadline=deadline) for rank, worker in enumerate(workers))
        await asyncio.gather(*setups)
        return cls(workers, reuse_key, timeouts)

    async def ping(self, deadline: float) -> None:
        """Have every rank answer.

        Raises:
            WorkerLost: one of them is dead, or busy for longer than the deadline.
        """
        await self._all("version", deadline=deadline)

    async def connect(self, readers: Sequence[Worker]) -> None:
        """Let rank 0 send weights to engines and to whoever else follows the student."""
        handles = {worker.name: worker.handle for worker in readers}
        await self._all("connect", handles, self._timeouts.weight_sync, deadline=self._timeouts.start)

    async def step(self, batch: Batch) -> StepReport:
        """Take an optimiser step.

        Raises:
            LearnerFailure: a rank refused the batch, met a value that is not finite, or was lost.
        """
        try:
            reports = await self._on_shares("step", batch)
        except WorkerFailure as error:
            raise LearnerFailure(str(error)) from error
        return reports[0]

    async def publish(self, version: int, again: bool = False) -> PublishReport:
        """Send the weights to all that are connected; a version that they have only if `again` says so."""
        # Rank 0 names who has not answered it in time: it is asked for longer than it asks.
        reports = await self._all("publish", version, again, deadline=self._timeouts.weight_sync + _TELL_SECONDS)
        return reports[0]

    async def logprobs(self, batch: Batch) -> list[NDArray[np.float32]]:
        """Score each example's loss tokens with the student: log-probs [T] each, in the order of the batch."""
        everywhere = await self._on_shares("logprobs", batch)
        values = {index: logprobs for of_rank in everywhere for index, logprobs in of_rank.items()}
        return [values[index] for index in sorted(values)]

    async def perturb(self, seed: int, size: float) -> None:
        """Put noise on the weights until `restore_weights`; see `learner.perturbation`."""
        await self._all("perturb", seed, size, deadline=self._timeouts.learning)

    async def restore_weights(self) -> None:
        await self._all("restore_weights", deadline=self._timeouts.learning)

    async def evaluate(self, batch: Batch, teacher: str) -> list[ExampleDivergence]:
        """Compare the student with a teacher: one record an example, in the order of the batch."""
        everywhere = await self._on_shares("evaluate", batch, teacher)
        return everywhere[0]

    async def examine(self, batch: Batch, k: int, teacher: str) -> list[ExampleTokens]:
        """Compare token by token, with the top `k` ids of both: one record an example, in the order of the batch."""
        everywhere = await self._on_shares("examine", batch, k, teacher)
        return sorted((record for records in everywhere for record in records), key=lambda r: r.example_index)

    async def set_teacher_head(self, teacher: str, head: LMHead | MixedHead) -> None:
        await self._all("set_teacher_head", teacher, ray.put(head), deadline=self._timeouts.learning)

    async def save_checkpoint(self, directory: str) -> None:
        await self._all("save_checkpoint", directory, deadline=self._timeouts.checkpoint)

    async def load_checkpoint(self, directory: str, run_dir: str) -> None:
        await self._all("load_checkpoint", directory, run_dir, deadline=self._timeouts.checkpoint)

    async def export(self, directory: str) -> None:
        await self._all("export", directory, deadline=self._timeouts.checkpoint)

    async def _on_shares(self, method: str, batch: Batch, *args: Any) -> list[Any]:
        """Give each rank its own micro-batches and no others: states of a whole vocabulary's teacher are large."""
        shares = [ray.put(batch.share(rank)) for rank in range(len(self.workers))]
        return await self._each(method, [(share, *args) for share in shares], self._timeouts.learning)

    async def _all(self, method: str, *args: Any, deadline: float) -> list[Any]:
        return await self._each(method, [args for _ in self.workers], deadline)

    async def _each(self, method: str, arguments: Sequence[tuple[Any, ...]], deadline: float) -> list[Any]:
        """Call each rank with arguments of its own.

        Raises:
            WorkerLost: of the rank that is gone, though another one may have noticed it first.
            WorkerFailure: the first of a rank that raised.
        """
        pairs = zip(self.workers, arguments, strict=True)
        calls = [asyncio.create_task(worker.call(method, *args, deadline=deadline)) for worker, args in pairs]
        try:
            return list(await asyncio.gather(*calls))
        except WorkerLost:
            raise
        except WorkerFailure as error:
            # A rank that lives raises at once in the collective that a dead one has left. The dead one is the cause;
            # where its node is gone with it, Ray needs its time to find out.
            await asyncio.wait(calls, timeout=_FIND_OUT_SECONDS)
            ended = [call.exception() for call in calls if call.done() and not call.cancelled()]
            reports = await asyncio.gather(*(worker.death_report() for worker in self.workers))
            dead = [str(one) for one in ended if isinstance(one, WorkerLost)]
            dead = dead or [text for text in reports if text is not None]
            if dead:
                raise WorkerLost("\n".join(dead)) from error
            raise
        finally:
            for call in calls:
                call.cancel()
