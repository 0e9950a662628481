"""The rollout engine: vLLM's asynchronous engine, our records in and out, and new weights while it runs.

    requests ─► admitted together ─► vLLM ─► trajectories, one by one as they finish
    weights  ─► start (requests freeze) ─► buckets ─► finish (requests go on with the new weights)

Shape suffixes: N tokens of a sequence.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs.engine import tokens_input
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import RequestOutputCollector

from rollout import stop_class, weight_receiver
from rollout.config import RolloutConfig
from rollout.conversation import converse, most_tokens
from rollout.sampling import sampling_params, trajectory
from tutelage.records.trajectory import RolloutRequest, Trajectory
from tutelage.stops import AS_THEY_ARE, TurnEnds
from tutelage.vllm_environment import prepare_environment
from tutelage.weights import SHARED_MEMORY, SharedBuffer


class RolloutEngine:
    """One vLLM engine and the policy version of its weights.

    A group of requests is admitted atomically: the engine first sees them all at once, so that with one worker
    and groups that do not overlap its batches, and with them its arithmetic, repeat. Weight updates and
    admissions exclude each other.
    """

    def __init__(
        self, model_path: str, config: RolloutConfig, transfer_backend: str, seed: int, ends: TurnEnds = AS_THEY_ARE
    ) -> None:
        """Load the model and start vLLM's processes; takes tens of seconds.

        Args:
            model_path: a local checkpoint in safetensors.
            transfer_backend: of weight updates: shared_memory, nccl or ipc.
            seed: of the engine; requests carry their own.
            ends: what ends a turn beside the ends of the checkpoint.
        """
        prepare_environment(config.threads, config.tensor_parallel_size == 1, config.enforce_eager)
        if transfer_backend == "ipc":
            # CUDA IPC handles reach vLLM's own child processes as pickles.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        weight_receiver.register()
        self.policy_version = 0
        self.weight_dtype = config.dtype.value
        self.tensor_parallel_size = config.tensor_parallel_size
        self._max_model_len = config.max_model_len
        self._has_extension = transfer_backend == SHARED_MEMORY
        self._buffer: SharedBuffer | None = None  # that weights from another node are laid in
        self._stop_ids = ends.stop_ids
        args = _engine_args(model_path, config, transfer_backend, seed)
        if ends.merged is not None:
            args.logits_processors = [stop_class.NAME]
            args.additional_config = {stop_class.SETTING: list(ends.merged.ids)}
        self._llm = AsyncLLM.from_engine_args(args)
        self._numbers = itertools.count()
        # Of each group of requests, what it waits for.
        self._under_way: list[tuple[list[asyncio.Task[Trajectory]], list[RequestOutputCollector]]] = []
        self._admission = asyncio.Lock()  # held while frozen
        self._parts = asyncio.Condition()  # held while a part of the new weights is loaded
        self._next_part = 0
        self._frozen = False  # from the start of a weight update to its end, even if it fails in between
        self._updating_to: int | None = None
        self._complete = False  # whether all of the update under way has arrived

    async def generate(self, requests: Sequence[RolloutRequest]) -> AsyncIterator[Trajectory]:
        """Yield a trajectory for each request, in the order in which they finish.

        Raises:
            ValueError: a prompt and its response do not fit into rollout.max_model_len.
        """
        for request in requests:
            self._check_length(request)
        collectors = await self._admit(requests)
        latest = list(collectors)  # what each request waits for in the engine
        tasks = [asyncio.create_task(self._converse(request, latest, i)) for i, request in enumerate(requests)]
        self._under_way.append((tasks, latest))
        try:
            for finished in asyncio.as_completed(tasks):
                yield await finished
        except asyncio.CancelledError:
            if (tasks, latest) in self._under_way:
                raise  # nobody reads any more
            raise RuntimeError("the requests were dropped") from None
        finally:
            await self._abandon(tasks, latest)

    async def drop_requests(self) -> bool:
        """Give up all that is being generated; returns whether the engine can go on: no weights are half received."""
        while self._under_way:
            await self._abandon(*self._under_way[0])
        return not self._frozen

    async def _converse(self, request: RolloutRequest, latest: list[RequestOutputCollector], index: int) -> Trajectory:
        """Hold the whole conversation: its first answer was asked for with its group, the later ones as they come."""
        asked = False

        async def ask(turn: RolloutRequest) -> Trajectory:
            nonlocal asked
            if asked:
                (latest[index],) = await self._admit([turn])
            asked = True
            output = await latest[index].get()
            return trajectory(turn, output.outputs[0])

        return await converse(request, ask)

    async def prompt_logprobs(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Score tokens 1 to N - 1 at temperature 1, each given those before it: [N - 1], nats.

        vLLM computes prompt log-probs afresh; they never come from the prefix cache.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        async with self._admission:
            collector = await self._add(token_ids, params)
        output = await collector.get()
        return np.asarray(output.prompt_logprobs.logprobs, dtype=np.float32)

    async def check_health(self) -> None:
        """Raise what vLLM does where its process is gone."""
        await self._llm.check_health()

    async def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Connect the engine's workers with the learner; `init_info` is the backend's."""
        self._buffer = None
        if self._has_extension and not init_info["path"]:
            self._buffer = SharedBuffer.create(init_info["nbytes"])
            init_info = {**init_info, "path": str(self._buffer.path)}
        try:
            await self._llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))
        finally:
            if self._buffer is not None:
                self._buffer.unlink()  # the workers have it mapped

    async def load(self, model_path: str) -> None:
        """Go on with another checkpoint of the same architecture, as policy version 0; nothing may be under way.

        Raises:
            ValueError: the weight transfer is vLLM's own, whose process groups end with their learner.
        """
        if not self._has_extension:
            raise ValueError(f"an engine takes another model only with learner.weight_transfer={SHARED_MEMORY}")
        async with self._admission:
            await self._pause(clear_cache=True)
            await self._llm.collective_rpc("load_checkpoint", args=(model_path,))
            await self._llm.update_weight_version("0")
            self.policy_version = 0
            await self._llm.resume_generation()

    async def start_weight_update(self, version: int) -> None:
        """Freeze the requests in flight and prepare for the weights of policy `version`.

        An update that failed half-way may be started again.

        Raises:
            ValueError: the engine already has newer weights.
        """
        if version < self.policy_version:
            raise ValueError(f"the engine has policy version {self.policy_version}: it cannot go back to {version}")
        if not self._frozen:
            await self._admission.acquire()
            self._frozen = True
            # Layers lie on the meta device during a reload: a forward then would crash. Requests in flight
            # lose their keys and values with the rest of the cache and recompute them from the new weights.
            await self._pause(clear_cache=True)
        if self._updating_to is None:
            await self._llm.start_weight_update()
        self._updating_to, self._complete, self._next_part = version, False, 0

    async def update_weights(self, update_info: dict[str, Any], data: NDArray[np.uint8] | None = None) -> None:
        """Load one part of the new weights, after all earlier ones; a part that fails to load ends the update.

        Args:
            data: [nbytes], what the part holds, where it does not lie in the memory that learner and engine share.

        Raises:
            ValueError: no update is under way, or an earlier part ended it.
        """
        part = update_info.get("index", 0)  # only our own backend sends several parts
        async with self._parts:
            # Calls to an asynchronous actor may arrive out of order.
            await self._parts.wait_for(lambda: part <= self._next_part or self._updating_to is None)
            try:
                if self._updating_to is None:
                    raise ValueError(f"part {part} of a weight update has come, and no weight update is under way")
                if data is not None and self._buffer is not None:
                    self._buffer.lay(update_info["start"], data)
                await self._llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))
            except Exception:
                self._updating_to = None
                raise
            finally:
                self._parts.notify_all()
            self._next_part = part + 1
            self._complete = update_info.get("last", True)

    async def finish_weight_update(self, version: int) -> float | None:
        """Put the new weights to use and let requests go on.

        Returns the seconds that vLLM itself spent on loading, where the backend can tell. A second call for
        the same version does nothing.

        Raises:
            ValueError: the update has not been started, or not all of it has arrived.
        """
        if self._updating_to is None and version == self.policy_version:
            return None
        if self._updating_to != version:
            raise ValueError(f"no weight update to policy version {version} is under way")
        if not self._complete:
            raise ValueError(f"the weight update to policy version {version} ends before its last bucket")
        await self._llm.finish_weight_update(str(version))
        seconds = max(await self._llm.collective_rpc("weight_reload_seconds")) if self._has_extension else None
        self.policy_version, self._updating_to = version, None
        await self._llm.resume_generation()
        self._frozen = False
        self._admission.release()
        return seconds

    def shutdown(self) -> None:
        """End vLLM's processes."""
        self._llm.shutdown()

    def _check_length(self, request: RolloutRequest) -> None:
        needed = most_tokens(request)
        if needed > self._max_model_len:
            raise ValueError(
                f"prompt {request.prompt_id!r} needs {needed} tokens with its response, "
                f"rollout.max_model_len is {self._max_model_len}: raise it or drop the prompt"
            )

    async def _admit(self, requests: Sequence[RolloutRequest]) -> list[RequestOutputCollector]:
        async with self._admission:
            if len(requests) > 1:
                await self._pause(clear_cache=False)
            try:
                return [await self._add(r.prompt_ids.tolist(), sampling_params(r, self._stop_ids)) for r in requests]
            finally:
                if len(requests) > 1:
                    await self._llm.resume_generation()

    async def _pause(self, clear_cache: bool) -> None:
        """`AsyncLLM.pause_generation(mode="keep")` without its 20 ms of sleep, in which the engine would idle."""
        await self._llm.engine_core.pause_scheduler_async(mode="keep", clear_cache=clear_cache)

    async def _add(self, token_ids: Sequence[int], params: SamplingParams) -> RequestOutputCollector:
        return await self._llm.add_request(str(next(self._numbers)), tokens_input(list(token_ids)), params)

    async def _abandon(self, tasks: list[asyncio.Task[Trajectory]], collectors: list[RequestOutputCollector]) -> None:
        """Take requests that nobody waits for any more out of the engine."""
        if (tasks, collectors) in self._under_way:
            self._under_way.remove((tasks, collectors))
        pairs = zip(tasks, collectors, strict=True)
        unfinished = [(task, collector.request_id) for task, collector in pairs if not task.done()]
        for task, _request_id in unfinished:
            task.cancel()
        if unfinished:
            await self._llm.abort([request_id for _task, request_id in unfinished], internal=True)


def _engine_args(model_path: str, config: RolloutConfig, transfer_backend: str, seed: int) -> AsyncEngineArgs:
    on_cpu = current_platform.is_cpu()
    shared_memory = transfer_backend == SHARED_MEMORY
    memory: dict[str, Any] = (
        {"kv_cache_memory_bytes": int(config.kv_cache_gib * 2**30)}
        if on_cpu
        else {"gpu_memory_utilization": config.gpu_memory_utilization}
    )
    in_process = on_cpu and config.tensor_parallel_size == 1
    return AsyncEngineArgs(
        model=model_path,
        seed=seed,
        dtype=config.dtype.value,
        load_format="safetensors",
        trust_remote_code=False,
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        tensor_parallel_size=config.tensor_parallel_size,
        distributed_executor_backend="uni" if in_process else None,
        enforce_eager=config.enforce_eager,
        # A request with a seed whose prompt is split over two forwards rewinds its generator in between, which
        # CPU generators cannot do: the engine would die.
        enable_chunked_prefill=not on_cpu,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        max_logprobs=-1,
        disable_log_stats=True,
        weight_transfer_config=WeightTransferConfig(backend=transfer_backend),
        worker_extension_cls="rollout.weight_receiver.WorkerExtension" if shared_memory else "",
        **memory,
    )
