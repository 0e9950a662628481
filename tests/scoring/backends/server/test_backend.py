"""The backend for completions endpoints: exact scores from a good one, and nothing lost to a bad one."""

import asyncio
import gzip
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scoring.backends.base import ServerStats
from scoring.backends.server import client as endpoint_module
from scoring.backends.server.backend import ServerTeacher
from scoring.backends.server.client import EndpointFailure, GarbledAnswer
from tests.scoring.backends.server.endpoints import (
    FakeEndpoint,
    Fault,
    altered,
    compressed,
    dropped,
    encoded,
    half,
    silent,
    status,
    text,
    trickling,
    true_logprobs,
)
from tests.scoring.backends.server.work import assert_right, masked, run, score_under
from tests.scoring.reference import random_request
from tutelage.records.signal import ScoringRequest


@pytest.mark.parametrize(
    "request_",
    [
        random_request(1, 1, entropy=False),
        random_request(1, 9, entropy=False, top_k=1),
        random_request(8, 12, entropy=False, top_k=20),
        masked(random_request(5, 9, entropy=False, top_k=3), 0),
        masked(random_request(5, 9, entropy=False, top_k=3), 8),
        masked(random_request(5, 9, entropy=False, top_k=3), 2, 3, 6),
    ],
)
def test_marks_are_of_the_marked_tokens(tokenizer_dir: Path, request_: ScoringRequest) -> None:
    signal, stats = score_under([], request_, tokenizer_dir)
    assert_right(signal, request_)
    assert stats == ServerStats(attempts=1)


def test_the_likely_token_is_one_of_the_most_likely_and_not_one_more(tokenizer_dir: Path) -> None:
    """The entry of a response token is in the way only where it is an extra one."""
    prompt = random_request(4, 0).prompt_ids
    for rank in range(4):  # of a response's only token among the 3 that are asked for
        row = true_logprobs([*prompt.tolist(), 0], 576)[-1]
        response = np.argsort(-row)[rank : rank + 1].astype(np.int32)
        request = ScoringRequest("teacher", prompt, response, top_k=3)
        signal, _ = score_under([], request, tokenizer_dir)
        assert_right(signal, request)
        assert (response[0] in signal.top_ids) == (rank < 3)


def test_nothing_is_asked_where_nothing_is_scored(tokenizer_dir: Path) -> None:
    for request in (random_request(5, 0, top_k=4, entropy=False), masked(random_request(5, 3, top_k=4, entropy=False))):
        signal, stats = score_under([], request, tokenizer_dir)
        assert stats == ServerStats() and signal.logprobs.shape == (0,) and signal.top_ids.shape == (0, 4)


RECOVERIES: dict[str, Fault] = {
    "500": status(500),
    "502": status(502),
    "429": status(429, "slow down"),
    "dropped": dropped,
    "half": half,
    "silent": silent,
    "trickling": trickling,
}
GARBAGE: dict[str, Fault] = {
    "no JSON": text("<html>welcome</html>"),
    "another JSON": text("[1, 2]"),
    "no choice": text('{"choices": []}'),
    "no log-probs": text('{"choices": [{"text": "x"}]}'),
    "too short": altered(lambda entries: entries.pop()),
    "shifted": altered(lambda entries: entries.insert(0, None) or entries.pop()),
    "a hole": altered(lambda entries: entries.__setitem__(3, None)),
    "NaN": altered(lambda entries: next(iter(entries[3].values())).update(logprob=float("nan"))),
    "infinite": altered(lambda entries: next(iter(entries[3].values())).update(logprob=float("-inf"))),
    "positive": altered(lambda entries: next(iter(entries[3].values())).update(logprob=0.5)),
    "no number": altered(lambda entries: next(iter(entries[3].values())).update(logprob="high")),
    "no ids": altered(lambda entries: entries.__setitem__(3, {"the": {"logprob": -1.0}})),
    "too few": altered(lambda entries: entries[9].popitem()),
    "an id that is not there": altered(lambda entries: entries[9].update({"576": {"logprob": -9.0}})),
    "an id below 0": altered(lambda entries: entries[9].update({"-1": {"logprob": -9.0}})),
    "an id beyond int32": altered(lambda entries: entries[9].update({str(2**40): {"logprob": -9.0}})),
    "too long": text(" " * (2**20 + 1)),
    "a bomb": encoded("gzip", gzip.compress(bytes(2**26))),
    "another encoding": encoded("br", b"{}"),
    "no gzip": encoded("gzip", b"{}"),
    "half a gzip": encoded("gzip", gzip.compress(b"{}" * 999)[:-9]),
    "brackets without end": text("[" * 100_000),
    "too probable": altered(lambda entries: [entry.update(logprob=-0.1) for entry in entries[9].values()]),
}


def test_a_compressed_answer_is_read(tokenizer_dir: Path) -> None:
    request = random_request(5, 9, top_k=6, entropy=False)
    signal, stats = score_under([compressed], request, tokenizer_dir)
    assert_right(signal, request)
    assert stats == ServerStats(attempts=1)


def test_a_bomb_takes_no_more_memory_than_is_allowed() -> None:
    """256 MiB of zeros in 256 KiB: what is held stays near the bound, whatever it would become."""
    bomb = gzip.compress(bytes(2**28))

    class Response:
        def __init__(self) -> None:
            self.headers, self.content = {"Content-Encoding": "gzip"}, self

        async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
            for start in range(0, len(bomb), size):
                yield bomb[start : start + size]

    tracemalloc.start()
    with pytest.raises(GarbledAnswer, match="max_answer_mib=1"):
        asyncio.run(endpoint_module._body(Response(), 1))  # type: ignore[arg-type]
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("name", [*RECOVERIES, *GARBAGE])
def test_a_passing_fault_costs_a_retry(tokenizer_dir: Path, name: str) -> None:
    request = random_request(5, 9, top_k=6, entropy=False)
    signal, stats = score_under([(RECOVERIES | GARBAGE)[name]], request, tokenizer_dir)
    assert_right(signal, request)
    assert stats == ServerStats(attempts=2, retries=1, garbled=int(name in GARBAGE))


@pytest.mark.parametrize("name", [*RECOVERIES, *GARBAGE])
def test_a_lasting_fault_is_named(tokenizer_dir: Path, name: str) -> None:
    request = random_request(5, 9, top_k=6, entropy=False)
    error, stats = score_under([(RECOVERIES | GARBAGE)[name]] * 3, request, tokenizer_dir)
    assert isinstance(error, EndpointFailure) and not isinstance(error, ValueError)
    assert "teacher.server.url=http://127.0.0.1" in str(error) and "3 attempts" in str(error)
    assert stats == ServerStats(attempts=3, retries=2, garbled=3 * (name in GARBAGE))


def test_a_refusal_is_not_repeated(tokenizer_dir: Path) -> None:
    error, stats = score_under(
        [status(400, "far " * 200 + "too long")], random_request(4, 4, entropy=False), tokenizer_dir
    )
    assert isinstance(error, ValueError) and stats == ServerStats(attempts=1)
    assert "400: far far" in str(error) and len(str(error)) < 500


def test_a_redirection_is_not_followed(tokenizer_dir: Path) -> None:
    fault = status(307, Location="http://192.0.2.1/v1")
    error, stats = score_under([fault], random_request(4, 4, entropy=False), tokenizer_dir)
    assert isinstance(error, ValueError) and "192.0.2.1" in str(error) and stats.attempts == 1


def test_waits_as_long_as_it_is_told(tokenizer_dir: Path) -> None:
    async def work(endpoint: FakeEndpoint, backend: ServerTeacher) -> None:
        for code in (429, 503):
            endpoint.faults.append(status(code, Retry_After="1"))
            await backend.score(random_request(4, 4, entropy=False))
            first, second = endpoint.seen[-2:]
            assert 1 <= second - first < 1.5

    run(work, tokenizer_dir, start=False, request_timeout=2.0)


def test_does_not_wait_for_hours(tokenizer_dir: Path) -> None:
    fault = status(429, "quota", Retry_After="3600")
    error, stats = score_under([fault], random_request(4, 4, entropy=False), tokenizer_dir)
    assert isinstance(error, EndpointFailure) and stats.attempts == 1
    assert "3600 s" in str(error) and "teacher.server.requests_per_minute" in str(error)


def test_among_many_requests_and_faults_none_is_lost(tokenizer_dir: Path) -> None:
    requests = [random_request(2 + i % 5, 1 + i % 7, seed=i, top_k=i % 4, entropy=False) for i in range(40)]
    faults = [*RECOVERIES.values(), GARBAGE["NaN"], GARBAGE["no JSON"]]

    async def work(endpoint: FakeEndpoint, backend: ServerTeacher) -> None:
        endpoint.faults.extend(faults)
        endpoint.pause = 0.01
        signals = await asyncio.gather(*(backend.score(request) for request in requests))
        for request, signal in zip(requests, signals, strict=True):
            assert_right(signal, request)
        assert backend.server_stats() == ServerStats(40 + len(faults), len(faults), garbled=2)
        assert endpoint.most_at_once == 4

    run(work, tokenizer_dir, start=False, max_connections=4, attempts=len(faults) + 1, request_timeout=1.0)


def test_keeps_to_the_rate(tokenizer_dir: Path) -> None:
    async def work(endpoint: FakeEndpoint, backend: ServerTeacher) -> None:
        await asyncio.gather(*(backend.score(random_request(3, 3, seed=i, entropy=False)) for i in range(6)))
        assert endpoint.seen[-1] - endpoint.seen[0] > 0.6  # five pauses of 0.2 s, some of it lost on a busy machine

    run(work, tokenizer_dir, start=False, requests_per_minute=300)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"support": 3}, "support_ids"),
        ({"entropy": True}, "entropy"),
        ({"hidden_states": True}, "hidden_states"),
        ({"top_k": 21}, "teacher.server.max_top_k=20"),
    ],
)
def test_refuses_what_it_cannot_give(tokenizer_dir: Path, asked: dict[str, Any], words: str) -> None:
    error, stats = score_under([], random_request(4, 4, **{"entropy": False} | asked), tokenizer_dir)
    assert isinstance(error, ValueError) and words in str(error) and stats.attempts == 0


@pytest.mark.parametrize("words", [None, "soon", "-3", "1e9", "nan", "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_a_pause_that_says_nothing_is_none(words: str | None) -> None:
    assert endpoint_module._seconds(words) == 0


def test_a_pause_may_be_a_number_or_a_date() -> None:
    assert endpoint_module._seconds("17") == 17
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < endpoint_module._seconds(then) <= 100
