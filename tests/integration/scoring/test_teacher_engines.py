"""Scores by vLLM, in an engine of the worker's own and behind HTTP, against a plain float32 forward."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import ray

from scoring.backends.server import client as endpoint_module
from scoring.backends.server.backend import ServerTeacher
from scoring.config import EngineConfig, ScoringConfig, ServerConfig, TeacherConfig
from scoring.worker import ScoringWorker
from tests.integration.launching import Launched
from tests.scoring.reference import Reference, random_request
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.settings import DType

pytestmark = pytest.mark.integration

KEY = "sk-zebra"
NAME = "big"
MAX_LOGPROBS = 24
MAX_MODEL_LEN = 299
PART = 32  # tokens of a forward, so that most prompts are split
SCORING = ScoringConfig(
    dtype=DType.float32,
    max_tokens_per_forward=PART,
    max_model_len=MAX_MODEL_LEN,
    engine=EngineConfig(kv_cache_gib=0.05),
)
FEW_SECONDS = 90.0  # more than vLLM's start takes


def request_of(
    prompt: int, response: int, seed: int = 0, top_k: int = 0, scored_mask: tuple[int, ...] = ()
) -> ScoringRequest:
    request = random_request(prompt, response, seed, entropy=False, top_k=top_k)
    return replace(request, scored_mask=np.isin(np.arange(response), scored_mask)) if scored_mask else request


SHAPES = [
    request_of(1, 1),
    request_of(1, 1, top_k=MAX_LOGPROBS),
    request_of(1, 40, seed=1, top_k=1),
    request_of(PART - 1, 1, seed=2, top_k=3),  # as many tokens as a part has
    request_of(PART, 1, seed=3, top_k=3),  # one more
    request_of(PART + 1, PART, seed=4, top_k=3),
    request_of(200, MAX_MODEL_LEN - 200, seed=5, top_k=16),  # as long as can be
    request_of(20, 30, seed=6, top_k=5, scored_mask=(0,)),
    request_of(20, 30, seed=7, top_k=5, scored_mask=(29,)),
    request_of(20, 30, seed=8, top_k=5, scored_mask=(3, 4, 17)),
    request_of(20, 0, seed=9, top_k=5),
]


def assert_agrees(signal_: TeacherSignal, request: ScoringRequest, path: Path) -> None:
    assert len(signal_.logprobs) == request.num_scored and signal_.entropy is None
    if not request.num_scored:
        return
    expected = Reference(path).logprobs(request).numpy()[request.scored_positions]
    own = np.take_along_axis(expected, request.scored_ids[:, None].astype(np.int64), -1)[:, 0]
    np.testing.assert_allclose(signal_.logprobs, own, atol=1e-4)
    if request.top_k:
        assert signal_.top_ids is not None and signal_.top_ids.shape == (request.num_scored, request.top_k)
        np.testing.assert_allclose(signal_.top_logprobs, -np.sort(-expected)[:, : request.top_k], atol=1e-4)
        of_ids = np.take_along_axis(expected, signal_.top_ids.astype(np.int64), -1)
        np.testing.assert_allclose(signal_.top_logprobs, of_ids, atol=1e-4)


class VLLMServer:
    """A vLLM server in a process group of its own, started as often as one likes on the same port."""

    def __init__(self, path: Path, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self._path, self._log = path, folder / "serve.log"
        self.url = f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        options = {
            "model": self._path, "served-model-name": NAME, "host": "127.0.0.1", "port": self._port, "api-key": KEY,
            "dtype": "float32", "max-model-len": MAX_MODEL_LEN + 1, "max-num-batched-tokens": PART, "max-num-seqs": 16,
            "kv-cache-memory-bytes": 50_000_000, "distributed-executor-backend": "uni", "max-logprobs": MAX_LOGPROBS,
        }  # fmt: skip
        settings = {
            "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "TORCHDYNAMO_DISABLE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING",
        }  # fmt: skip
        flags = [f"--{name}={value}" for name, value in options.items()]
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--enforce-eager"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *flags], env=os.environ | settings, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    async def wait(self) -> None:
        deadline = time.monotonic() + FEW_SECONDS
        async with aiohttp.ClientSession() as session:
            while not await _is_up(session, self.url):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    pytest.fail(f"the server did not start: {self._log.read_text()[-3000:]}")
                await asyncio.sleep(0.2)


async def _is_up(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/models") as response:
            return response.status == 401  # it lets nobody in without the key
    except aiohttp.ClientConnectionError:
        return False


@pytest.fixture(scope="module")
def served(tiny_untied: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    server = VLLMServer(tiny_untied, tmp_path_factory.mktemp("served"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def engine(served: VLLMServer, local_ray: Path, tiny_untied: Path) -> Iterator[ray.actor.ActorHandle]:
    """A worker with an engine; the server starts meanwhile."""
    actor = ray.remote(ScoringWorker).options(num_cpus=1, max_concurrency=100)
    teacher = TeacherConfig(model=str(tiny_untied), backend="vllm")
    handle = actor.remote(str(tiny_untied), teacher, SCORING)
    assert ray.get(handle.start.remote()) == 576
    yield handle
    ray.kill(handle)


def test_an_engine_marks_as_a_plain_forward_does(engine: ray.actor.ActorHandle, tiny_untied: Path) -> None:
    """All shapes at once, so that parts of some share forwards with parts of others."""
    for request, scores in zip(SHAPES, ray.get([engine.score.remote(request) for request in SHAPES]), strict=True):
        assert_agrees(scores, request, tiny_untied)


def test_an_engine_asked_again_says_the_same(engine: ray.actor.ActorHandle, tiny_untied: Path) -> None:
    """Also where a longer request begins with one that it has just seen."""
    short = request_of(60, 40, seed=5, top_k=2)
    longer = replace(short, response_ids=np.concatenate([short.response_ids, short.prompt_ids]))
    for request in (short, short, longer):
        assert_agrees(ray.get(engine.score.remote(request)), request, tiny_untied)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (random_request(4, 4), "entropy"),
        (random_request(4, 4, entropy=False, hidden_states=True), "hidden_states"),
        (random_request(4, 4, entropy=False, support=2), "support_ids"),
        (random_request(4, 4, entropy=False, vocabulary=100_000), "out of vocabulary"),
        (request_of(4, 4, top_k=577), "prompt logprobs"),
        (request_of(200, MAX_MODEL_LEN - 199), "maximum model length"),
    ],
)
def test_an_engine_refuses_and_goes_on(
    engine: ray.actor.ActorHandle, tiny_untied: Path, request_: ScoringRequest, words: str
) -> None:
    good = request_of(9, 9, top_k=2)
    first, refused, last = (engine.score.remote(request) for request in (good, request_, good))
    with pytest.raises(ValueError, match=words):
        ray.get(refused)
    for scores in ray.get([first, last]):
        assert_agrees(scores, good, tiny_untied)


def remote_teacher(served: VLLMServer, model: str = NAME, **server: Any) -> TeacherConfig:
    given = {"url": served.url, "api_key_env": "TEACHER_KEY", "max_top_k": MAX_LOGPROBS, "attempts": 3} | server
    return TeacherConfig(model=model, backend="server", server=ServerConfig(**given))


@contextmanager
def key(value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TEACHER_KEY", value)
        yield


def with_server(
    served: VLLMServer, path: Path, work: Callable[[ServerTeacher], Awaitable[None]], **server: Any
) -> None:
    async def whole() -> None:
        await served.wait()
        backend = ServerTeacher(str(path), remote_teacher(served, **server), SCORING)
        assert await backend.start() == 576
        try:
            await work(backend)
        finally:
            await backend.close()

    with key(KEY):
        asyncio.run(whole())


def test_a_server_marks_as_a_plain_forward_does(
    served: VLLMServer, engine: ray.actor.ActorHandle, tiny_untied: Path
) -> None:
    async def work(backend: ServerTeacher) -> None:
        found = await asyncio.gather(*(backend.score(request) for request in SHAPES))
        for request, scores in zip(SHAPES, found, strict=True):
            assert_agrees(scores, request, tiny_untied)
        stats = backend.server_stats()
        assert stats.attempts == 2 + len(SHAPES) - 1 and stats.retries == stats.garbled == 0  # models, canary

    with_server(served, tiny_untied, work)


@pytest.mark.parametrize(
    ("environment", "settings", "scoring", "words"),
    [
        ("sk-other", {}, {}, "teacher.server.api_key_env=TEACHER_KEY.*401"),
        (KEY, {"model": "small"}, {}, f"teacher.model=small.*has {NAME}"),
        (KEY, {"max_top_k": MAX_LOGPROBS + 1}, {}, f"teacher.server.max_top_k=25.*max allowed: {MAX_LOGPROBS}"),
        (KEY, {}, {"max_model_len": MAX_MODEL_LEN + 1}, f"rollout.max_model_len to {MAX_MODEL_LEN}"),
    ],
)
def test_what_a_real_server_refuses_is_known_at_the_start(
    served: VLLMServer, tiny_untied: Path, environment: str, settings: Any, scoring: Any, words: str
) -> None:
    async def whole() -> None:
        await served.wait()
        teacher = remote_teacher(served, **settings)
        await ServerTeacher(str(tiny_untied), teacher, replace(SCORING, **scoring)).start()

    with key(environment), pytest.raises(ValueError, match=words) as caught:
        asyncio.run(whole())
    assert environment not in str(caught.value)


def test_a_server_killed_at_work_loses_nothing(
    served: VLLMServer, tiny_untied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "LONGEST_PAUSE", 1.0)
    requests = [request_of(150 + i % 50, 40 + i % 50, seed=i, top_k=i % 5) for i in range(120)]

    async def work(backend: ServerTeacher) -> None:
        tasks = [asyncio.create_task(backend.score(request)) for request in requests]
        while sum(task.done() for task in tasks) < 20:
            await asyncio.sleep(0.005)
        served.kill()
        done = sum(task.done() for task in tasks)
        served.start()
        found = await asyncio.gather(*tasks)
        assert 20 <= done < len(requests) - 8  # it was in the middle of them
        for request, scores in zip(requests, found, strict=True):
            assert_agrees(scores, request, tiny_untied)
        stats = backend.server_stats()
        assert stats.retries >= 8 and stats.attempts == 2 + len(requests) + stats.retries

    with_server(served, tiny_untied, work, attempts=200, max_connections=8)


@pytest.mark.faults
def test_a_run_outlives_its_server(
    served: VLLMServer, launch: Callable[..., Launched], tiny_untied: Path, tmp_path: Path
) -> None:
    """The server dies after the first step and comes back: every trajectory is scored and trained once."""
    options = [
        "teacher.backend=server", f"teacher.model={NAME}", f"teacher.tokenizer={tiny_untied}",
        f"teacher.server.url={served.url}", "teacher.server.api_key_env=TEACHER_KEY", "teacher.server.attempts=60",
        f"teacher.server.max_top_k={MAX_LOGPROBS}", "objective=sampled_reverse_kl", "pipeline.steps=6",
    ]  # fmt: skip
    asyncio.run(served.wait())
    with key(KEY):
        run = launch(tmp_path / "run", *options)
    run.wait_for_step(1)
    served.kill()
    served.start()
    assert run.wait() == 0, run.text()
    assert run.steps() == [1, 2, 3, 4, 5, 6] and sum(run.trained_prompts().values()) == 24
    assert "teacher/mean_entropy" not in run.step_rows()[0] and run.step_rows()[0]["train/overlap_ratio"] > 0
    assert run.summary()["evaluation"]["student_after"]["reverse_kl"] is None
    told = next(line for line in run.text().splitlines() if "the endpoint was asked" in line)
    assert ", 0 of them again" not in told and KEY not in run.text() + (run.run_dir / "run.log").read_text()
