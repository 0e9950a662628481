"""HTTP to a completions endpoint: bounded, paced, retried and counted.

question ─► one of max_connections ─► rate limit ─► attempt, request_timeout seconds at most ─► answer
                 ▲                                     │ busy, dead, slow or garbled
                 └─────── a growing, random pause ◄────┘
"""

import asyncio
import json
import os
import random
import re
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiolimiter import AsyncLimiter
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_after_attempt

from scoring.backends.base import ServerStats
from scoring.config import ServerConfig
from tutelage.settings import ConfigError, Refusal

T = TypeVar("T")
FIRST_PAUSE = 1.0  # seconds, doubled from retry to retry
LONGEST_PAUSE = 30.0
CONNECT_TIMEOUT = 10.0
_CHUNK = 2**16  # bytes that are read at a time
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32  # told apart by their headers
_QUOTED = 300  # characters of the endpoint's own words that an error repeats


class EndpointFailure(RuntimeError):
    """The endpoint has not answered, however often it was asked; the same question may be answered another time."""


class EndpointRefusal(ValueError):
    """The endpoint has said that it will not answer this."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(status, words)
        self.status, self.words = status, words

    def __str__(self) -> str:
        return f"{self.status}: {self.words}"


class _Transient(Exception):
    """An attempt failed and another one may not."""

    def __init__(self, what: str, pause: float = 0.0) -> None:
        super().__init__(what)
        self.pause = pause  # seconds that the endpoint asks for


class GarbledAnswer(_Transient):
    """What has come is not an answer to the question."""


class Endpoint:
    """A client of one endpoint; within an event loop, `open` comes first and `close` last."""

    def __init__(self, config: ServerConfig) -> None:
        """Read the key from the environment.

        Raises:
            ValueError: the address or the key cannot be one.
        """
        refusals = list(address_refusals("teacher.server.url", config.url))
        if refusals:
            raise ConfigError(*refusals)
        self._config = config
        self._key = _key(config.api_key_env)
        self._stats = ServerStats()
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Connections are made as questions come; once open, it stays as it is."""
        if self._session is not None:
            return
        config = self._config
        self._slots = asyncio.Semaphore(config.max_connections)
        per_minute = config.requests_per_minute
        # One at a time: a larger bucket would let through twice the quota in its first minute.
        self._pace = None if per_minute is None else AsyncLimiter(1, 60 / per_minute)
        # The proxy is the environment's (HTTPS_PROXY, NO_PROXY, …); aiohttp would read passwords from ~/.netrc as well.
        parts = urlsplit(config.url)
        key = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            headers={"Accept-Encoding": "gzip, deflate", **key},
            auto_decompress=False,  # it has no bound: a few kilobytes can become gigabytes
            connector=aiohttp.TCPConnector(limit=config.max_connections),
            timeout=aiohttp.ClientTimeout(total=config.request_timeout, sock_connect=CONNECT_TIMEOUT),
            proxy=None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme),
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._session = None

    def stats(self) -> ServerStats:
        return self._stats

    async def ask(self, path: str, body: Any, read: Callable[[bytes], T]) -> T:
        """What `read` makes of the answer; GET without a `body`.

        Args:
            read: raises GarbledAnswer where there is nothing to read.

        Raises:
            EndpointRefusal: a status that says no.
            EndpointFailure: no answer after all attempts, of request_timeout seconds each at most.
        """
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._config.attempts),
            wait=_pause,
            retry=retry_if_exception_type(_Transient),
            before_sleep=self._count_retry,
            reraise=True,
        )
        started = time.monotonic()
        try:
            return await retrying(self._attempt, path, body, read)
        except _Transient as error:
            seconds = time.monotonic() - started
            raise EndpointFailure(
                f"teacher.server.url={self._config.url}: {self._config.attempts} attempts in {seconds:.0f} s and no "
                f"answer; at last: {error}. See whether it runs and is not overloaded, or raise "
                "teacher.server.attempts or teacher.server.request_timeout"
            ) from error

    def _count_retry(self, _state: RetryCallState) -> None:
        self._stats = replace(self._stats, retries=self._stats.retries + 1)

    async def _attempt(self, path: str, body: Any, read: Callable[[bytes], T]) -> T:
        async with self._slots:
            if self._pace is not None:
                await self._pace.acquire()
            self._stats = replace(self._stats, attempts=self._stats.attempts + 1)
            try:
                return read(await self._content(path, body))
            except GarbledAnswer:
                self._stats = replace(self._stats, garbled=self._stats.garbled + 1)
                raise

    async def _content(self, path: str, body: Any) -> bytes:
        assert self._session is not None  # open comes first
        url = f"{self._config.url.rstrip('/')}/{path}"
        method = "GET" if body is None else "POST"
        try:
            async with self._session.request(method, url, json=body, allow_redirects=False) as response:
                content = await _body(response, self._config.max_answer_mib)
        except aiohttp.ConnectionTimeoutError as error:
            raise _Transient(f"no connection within {CONNECT_TIMEOUT:g} s") from error
        except TimeoutError as error:
            raise _Transient(f"no answer within {self._config.request_timeout:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Transient(self._without_key(f"{type(error).__name__}: {error}")) from error
        self._judge(response, content)
        return content

    def _judge(self, response: aiohttp.ClientResponse, content: bytes) -> None:
        """Raise if the status is not one of success."""
        status = response.status
        if status < HTTPStatus.MULTIPLE_CHOICES:
            return
        words = response.headers.get("Location") or _words(content) or response.reason or "no reason given"
        words = self._without_key(words)[:_QUOTED]
        if status not in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) and status < 500:
            raise EndpointRefusal(status, words)
        pause = _seconds(response.headers.get("Retry-After"))
        if pause > self._config.request_timeout:
            raise EndpointFailure(
                f"teacher.server.url={self._config.url}: {status}: {words}; it wants no question for {pause:.0f} s, "
                "longer than teacher.server.request_timeout: lower teacher.server.requests_per_minute, or raise that"
            )
        raise _Transient(f"{status}: {words}", pause)

    def _without_key(self, words: str) -> str:
        """Some endpoints repeat the key that they refuse."""
        return words.replace(self._key, "***") if self._key else words


async def _body(response: aiohttp.ClientResponse, max_mib: int) -> bytes:
    """The decompressed body of an answer.

    Raises:
        GarbledAnswer: it is longer than `max_mib` MiB, before or after decompression, or cannot be decompressed.
    """
    limit, encoding = max_mib * 2**20, response.headers.get("Content-Encoding", "identity").lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise GarbledAnswer(f"an answer in the encoding {encoding!r}, which was not asked for")
    decoder = None if encoding == "identity" else zlib.decompressobj(_GZIP_OR_ZLIB)
    content, received = bytearray(), 0
    async for chunk in response.content.iter_chunked(_CHUNK):
        received += len(chunk)
        try:
            content += decoder.decompress(chunk, limit + 1 - len(content)) if decoder else chunk
        except zlib.error as error:
            raise GarbledAnswer(f"an answer that is no {encoding}: {error}") from error
        if max(received, len(content)) > limit:
            raise GarbledAnswer(f"an answer of more than teacher.server.max_answer_mib={max_mib}")
    if decoder and not decoder.eof:
        raise GarbledAnswer(f"an answer whose {encoding} is cut short")
    return bytes(content)


def address_refusals(key: str, url: str) -> Iterator[Refusal]:
    """Say what is wrong with an endpoint's address; a password in it is not repeated."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query:
        fix = (
            "the address holds more than host, port and path; put the key into an environment variable and name that "
            "in api_key_env"
        )
        yield Refusal(key, parts.hostname, fix)
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        fix = "is no endpoint; give its address up to and with /v1, for instance http://127.0.0.1:8000/v1"
        yield Refusal(key, url, fix)


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()  # files that keys come from end with a newline
    if not key:
        raise ValueError(
            f"teacher.server.api_key_env={variable}: no such variable in the environment of the scoring workers; set "
            "it to the endpoint's key, or teacher.server.api_key_env=null if it wants none"
        )
    if not re.fullmatch("[!-~]+", key):  # in a header, and errors about headers show them
        raise ValueError(
            f"teacher.server.api_key_env={variable}: its value holds blanks or characters beyond ASCII, so it is no "
            "key; set the variable to the key alone"
        )
    return key


def _pause(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the endpoint asks for, and a random share of a doubling interval.

    The share is drawn evenly from half of it to the whole, so that those who failed together do not return together.
    """
    assert state.outcome is not None
    error = state.outcome.exception()
    asked = error.pause if isinstance(error, _Transient) else 0.0
    interval = min(FIRST_PAUSE * 2.0 ** (state.attempt_number - 1), LONGEST_PAUSE)
    return asked + interval * random.uniform(0.5, 1)


def _seconds(retry_after: str | None) -> float:
    """Read the header Retry-After, a number or a date; 0 if it is neither."""
    if retry_after is None:
        return 0.0
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


def _words(content: bytes) -> str:
    """What an error's body says, on one line."""
    text = content[: 10 * _QUOTED].decode(errors="replace")
    try:
        error = json.loads(content)
    except (ValueError, RecursionError):  # no JSON; brackets without end
        return " ".join(text.split())
    for key in ("error", "message", "detail"):
        if isinstance(error, dict) and key in error:
            error = error[key]
    if isinstance(error, dict) and "message" in error:
        error = error["message"]
    return " ".join((error if isinstance(error, str) else text).split())
