"""A learner's group of processes that tests hand functions to."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any


def _enter(rank: int, ranks: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(ranks),
        LOCAL_RANK="0",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )


class Ranks:
    """`ranks` processes of one thread that live until `close`, so the imports are paid for once."""

    def __init__(self, ranks: int) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        spawn = get_context("spawn")
        self.size = ranks
        self._pools = [
            ProcessPoolExecutor(1, mp_context=spawn, initializer=_enter, initargs=(rank, ranks, port))
            for rank in range(ranks)
        ]

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(*args)` on every rank at once; the results in order of rank."""
        futures = [pool.submit(function, *args) for pool in self._pools]
        return [future.result(timeout=300) for future in futures]

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(cancel_futures=True)
