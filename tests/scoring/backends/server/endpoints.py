"""A completions endpoint in the test's own event loop: right, late, wrong, rude or dead, as the test wants."""

import asyncio
import gzip
import json
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Self

import numpy as np
from aiohttp import web
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

MODEL = "big"
Answer = dict[str, Any]
Fault = Callable[[web.Request, Answer], Awaitable[web.StreamResponse]]


def true_logprobs(ids: list[int], vocabulary: int) -> NDArray[np.float32]:
    """[N - 1, V]: of tokens 1 to N - 1; each row depends on all ids before it, so that a shift by one shows."""
    logits = np.stack([np.random.default_rng(ids[:i]).normal(0, 2, vocabulary) for i in range(1, len(ids))])
    return (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)


def status(code: int, words: str = "no", **headers: str) -> Fault:
    async def answer(_request: web.Request, _right: Answer) -> web.StreamResponse:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response({"error": {"message": words}}, status=code, headers=named)

    return answer


def text(content: str) -> Fault:
    async def answer(_request: web.Request, _right: Answer) -> web.StreamResponse:
        return web.Response(text=content)

    return answer


def altered(change: Callable[[list[Any]], object]) -> Fault:
    """The right answer with its prompt log-probs changed; json writes NaN as vLLM's own would."""

    async def answer(_request: web.Request, right: Answer) -> web.StreamResponse:
        changed = json.loads(json.dumps(right))
        change(changed["choices"][0]["prompt_logprobs"])
        return web.Response(text=json.dumps(changed))

    return answer


def encoded(encoding: str, content: bytes) -> Fault:
    """A body that says it is compressed, whether it is or not."""

    async def answer(_request: web.Request, _right: Answer) -> web.StreamResponse:
        return web.Response(body=content, headers={"Content-Encoding": encoding})

    return answer


async def compressed(_request: web.Request, right: Answer) -> web.StreamResponse:
    """The right answer, as a proxy in between may send it."""
    return web.Response(body=gzip.compress(json.dumps(right).encode()), headers={"Content-Encoding": "gzip"})


async def silent(_request: web.Request, right: Answer) -> web.StreamResponse:
    await asyncio.sleep(60)
    return web.json_response(right)


async def dropped(request: web.Request, _right: Answer) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request, right: Answer) -> web.StreamResponse:
    """Breaks off in the middle of the body."""
    content = json.dumps(right).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(content))})
    await response.prepare(request)
    await response.write(content[: len(content) // 2])
    return await dropped(request, right)


async def trickling(request: web.Request, right: Answer) -> web.StreamResponse:
    """Never pauses for long and never ends."""
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(1000):
        await response.write(b" ")
        await asyncio.sleep(0.02)
    return response


class FakeEndpoint:
    """Serves within `async with`; each completion takes the next of `faults`, and is right when there are none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str | None = None, **card: Any) -> None:
        self.card: dict[str, Any] = {"id": MODEL, "max_model_len": 512} | card
        self.faults: deque[Fault | None] = deque()  # None: the right answer
        self.seen: list[float] = []  # when completions were asked for
        self.most_at_once = 0
        self.pause = 0.0  # seconds that each completion takes
        self.max_logprobs = 20
        self.gives: int | None = None  # ids a position, whatever is asked for
        self.has_logprobs = True
        self._tokenizer, self._key, self._at_once = tokenizer, key, 0

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get("/v1/models", self._models), web.post("/v1/completions", self._completions)])
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"
        return self

    async def __aexit__(self, *_exception: object) -> None:
        await self._runner.cleanup()

    def _stranger(self, request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization")
        if self._key is None or given == f"Bearer {self._key}":
            return None
        return web.json_response({"error": f"bad credentials {given}"}, status=401)

    async def _models(self, request: web.Request) -> web.StreamResponse:
        return self._stranger(request) or web.json_response({"data": [self.card]})

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(asyncio.get_running_loop().time())
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            await asyncio.sleep(self.pause)
            return self._stranger(request) or await self._answer(request, await request.json())
        finally:
            self._at_once -= 1

    async def _answer(self, request: web.Request, question: dict[str, Any]) -> web.StreamResponse:
        top_k = question["prompt_logprobs"]
        assert question["temperature"] == 1 and question["model"] == MODEL
        if top_k > self.max_logprobs:
            return await status(400, f"{top_k} is greater than max allowed: {self.max_logprobs}")(request, {})
        right: Answer = {"choices": [{"text": "x"}]}
        if self.has_logprobs:
            right["choices"][0]["prompt_logprobs"] = self._prompt_logprobs(question["prompt"], top_k)
        fault = self.faults.popleft() if self.faults else None
        return web.json_response(right) if fault is None else await fault(request, right)

    def _prompt_logprobs(self, ids: list[int], top_k: int) -> list[Any]:
        k = top_k if self.gives is None else min(top_k, self.gives)
        entries: list[Any] = [None]
        for token_id, row in zip(ids[1:], true_logprobs(ids, 576) if len(ids) > 1 else [], strict=True):
            order = np.argsort(-row)
            shown = dict.fromkeys([token_id, *order[:k].tolist()])
            ranks = {i: int(np.flatnonzero(order == i)[0]) + 1 for i in shown}
            told = {i: {"logprob": float(row[i]), "rank": ranks[i]} for i in shown}
            entries.append({str(i): {**told[i], "decoded_token": self._tokenizer.decode([i])} for i in shown})
        return entries
