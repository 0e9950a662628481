"""A teacher whose weights follow the student's: the reader's end of the shared-memory weight transfer.

    current   the latest published version
    ema       average <- rate * average + (1 - rate) * version, once for each new version

No forward runs while an update is under way, so none sees half of one. The average is kept in float32.
"""

import json
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from scoring.backends.model import TeacherModel
from scoring.config import TeacherConfig, TeacherWeights
from tutelage.weights import Bucket, BufferInfo, SharedBuffer, read_bucket

T = TypeVar("T")
_VERSION = "policy_version"  # in the metadata of a file


class Pausable(Protocol):
    """A backend around a model of its own, whose forwards can be held up."""

    @property
    def model(self) -> TeacherModel: ...

    def paused(self) -> AbstractAsyncContextManager[None]:
        """No forward runs meanwhile."""

    async def in_turn(self, work: Callable[[], T]) -> T:
        """Run between two forwards."""


class Follower:
    """Puts published weights into a teacher."""

    def __init__(self, teacher: Pausable, config: TeacherConfig) -> None:
        self.version = 0  # of the student's weights that were taken in last
        self._teacher, self._model = teacher, teacher.model
        self._averages = config.weights is TeacherWeights.ema
        self._rate = config.ema_rate
        self._parameters = self._model.named_parameters()
        # In the model's own precision the small steps of an average would be rounded away.
        # Each once, under the first of its names.
        distinct = {id(weight): (name, weight) for name, weight in reversed(self._parameters.items())}
        self._masters = {name: weight.detach().float().clone() for name, weight in distinct.values() if self._averages}
        self._buffer: SharedBuffer | None = None  # that the weights come through
        self._pause = AsyncExitStack()
        self._incoming = 0  # version of the update under way
        self._taken: set[int] = set()  # parameters that the update under way has brought

    def receive_in(self, info: BufferInfo) -> None:
        """Prepare for the buckets that will come.

        Raises:
            ValueError: the learner's buffer is on another node, or there is no room for one here.
        """
        if info.path:
            self._buffer = SharedBuffer.open(Path(info.path), info.nbytes)
        else:
            self._buffer = SharedBuffer.create(info.nbytes)
            self._buffer.unlink()  # nobody else maps it

    async def start_update(self, version: int) -> None:
        """Forwards wait from here to `finish_update`; one that is under way is waited for."""
        await self._pause.aclose()  # of an update that broke off
        await self._pause.enter_async_context(self._teacher.paused())
        goes_on = self._averages and version == self._incoming > self.version
        if not goes_on:  # else what the broken update has brought must not be averaged in twice
            self._taken = set()
        self._incoming = version

    async def update(self, record: dict[str, Any], data: NDArray[np.uint8] | None = None) -> None:
        """Take in one bucket; an average takes a version once, however often it is published.

        Args:
            record: of a `Bucket`.
            data: [nbytes], what is in it, where it does not lie in shared memory.

        Raises:
            ChecksumMismatch: the bytes are not those that were sent.
        """
        if self._averages and self._incoming <= self.version:
            return
        if self._buffer is None:
            raise RuntimeError("the shared-memory weight transfer has not been initialised")
        bucket = Bucket(**record)
        if data is not None:
            self._buffer.lay(bucket.start, data)
        weights = read_bucket(self._buffer.data, bucket)
        await self._teacher.in_turn(lambda: self._take(weights))

    async def finish_update(self) -> None:
        self.version = max(self.version, self._incoming)
        await self._teacher.in_turn(self._model.refresh_head)
        await self._pause.aclose()

    def save(self, path: Path) -> None:
        """The average, as it must be found again when the run is resumed."""
        save_file(self._masters, path, metadata={_VERSION: json.dumps(self.version)})

    async def restore(self, path: Path) -> None:
        """Go on with a saved average."""

        def load() -> None:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118, the file is no mapping
                    self._masters[name].copy_(file.get_tensor(name))
                    self._parameters[name].copy_(self._masters[name])
                self.version = json.loads(file.metadata()[_VERSION])
            self._model.refresh_head()

        await self._teacher.in_turn(load)

    @torch.no_grad()
    def _take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        for name, weight in weights:
            parameter = self._parameters[name]
            if id(parameter) in self._taken:
                continue  # a tied head comes under its own name as well
            self._taken.add(id(parameter))
            if self._averages:
                master = self._masters[name].lerp_(weight.float().to(parameter.device), 1 - self._rate)
                parameter.copy_(master)
            else:
                parameter.copy_(weight)
