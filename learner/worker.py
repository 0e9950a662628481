"""The learner as a Ray actor: one DeepSpeed rank, no algorithm.

The engines are imported inside the actor: the driver knows this class too, and needs neither DeepSpeed nor vLLM.

Waits for the driver's calls; inside a call it waits for its sibling ranks. Every rank gets the same calls in the
same order, without a retry by Ray: a step that ran may be asked for again and answers from memory.
"""

import gc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from ray.actor import ActorHandle

from learner.config import LearnerSetup
from learner.records import Batch, ExampleDivergence, ExampleTokens, PublishReport, StepReport
from tutelage.cluster import free_address
from tutelage.lm.head import LMHead, MixedHead

if TYPE_CHECKING:
    from learner.engine import LearnerEngine
    from learner.weights.publisher import WeightPublisher


class LearnerWorker:
    """One rank, to be wrapped in `ray.remote`. Constructed idle; `setup` on all ranks at once brings the group up.

    Another `setup` of the same ranks drops the student and begins with the next.
    """

    _engine: "LearnerEngine"
    _publisher: "WeightPublisher"

    def address(self) -> tuple[str, int]:
        """Offer this node's IP address and a free port on it for the group to meet at (ask rank 0)."""
        return free_address()

    def setup(self, setup: LearnerSetup, rank: int, address: tuple[str, int]) -> int:
        """Join the group and load the student; returns the version of the weights."""
        from learner.engine import LearnerEngine

        self._drop_student()
        host, port = address
        os.environ.update(
            RANK=str(rank),
            WORLD_SIZE=str(setup.learner.ranks),
            LOCAL_RANK="0",  # Ray shows an actor only its own GPU
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        self._engine = LearnerEngine(setup)
        return self._engine.version

    def _drop_student(self) -> None:
        """Make room for the next one, if there was one before."""
        if "_publisher" in vars(self):
            self._publisher.close()
            del self._publisher
        if "_engine" in vars(self):
            self._engine.close()
            del self._engine
            gc.collect()  # DeepSpeed's hooks and the model refer to each other

    def step(self, batch: Batch) -> StepReport:
        return self._engine.step(batch)

    def set_teacher_head(self, teacher: str, head: LMHead | MixedHead) -> None:
        self._engine.set_teacher_head(teacher, head)

    def evaluate(self, batch: Batch, teacher: str | None = None) -> list[ExampleDivergence]:
        """Compare student and teacher; returns records of all examples, on every rank."""
        return self._engine.evaluate(batch, teacher)

    def examine(self, batch: Batch, k: int, teacher: str | None = None) -> list[ExampleTokens]:
        """Describe this rank's examples token by token, with the top `k` ids of student and teacher."""
        return self._engine.examine(batch, k, teacher)

    def logprobs(self, batch: Batch) -> dict[int, NDArray[np.float32]]:
        """Score the loss tokens of this rank's examples with the student, [T] each, by their places in the batch."""
        return self._engine.logprobs(batch)

    def perturb(self, seed: int, size: float) -> None:
        self._engine.perturb(seed, size)

    def restore_weights(self) -> None:
        self._engine.restore_weights()

    def connect(self, readers: Mapping[str, ActorHandle], timeout_s: float) -> None:
        """Remember whom `publish` sends the weights to, by name, instead of those that it was told before."""
        from learner.weights.publisher import WeightPublisher

        if "_publisher" in vars(self):
            self._publisher.close()
            del self._publisher
        self._publisher = WeightPublisher(
            self._engine.module, self._engine.rank, self._engine.config, readers, timeout_s
        )

    def publish(self, version: int, again: bool = False) -> PublishReport:
        """Send the weights to the rollout workers; `version` must be the engine's. Returns their report.

        A version that they have is not sent again unless `again` says so: the weights behind it are others now.
        """
        if version != self._engine.version:
            raise ValueError(f"publish: version {version} asked for, the weights are at {self._engine.version}")
        self._engine.check_weights()
        return self._publisher.publish(version, again)

    def save_checkpoint(self, directory: str) -> None:
        from learner.checkpoint import save_checkpoint

        save_checkpoint(self._engine, Path(directory))

    def load_checkpoint(self, directory: str, run_directory: str) -> int:
        """Restore what `save_checkpoint` wrote; returns the version of the weights."""
        from learner.checkpoint import load_checkpoint

        load_checkpoint(self._engine, Path(directory), Path(run_directory))
        return self._engine.version

    def export(self, directory: str) -> None:
        from learner.export import export

        export(self._engine, Path(directory))

    def version(self) -> int:
        return self._engine.version
