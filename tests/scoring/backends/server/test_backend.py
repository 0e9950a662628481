"""The backend for completions endpoints: exact scores from a good one, and nothing lost to a bad one."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from scoring.backends.base import ServerStats
from scoring.backends.server import client as endpoint_module
from scoring.backends.server.backend import ServerTeacher
from scoring.backends.server.client import EndpointFailure
from scoring.config import ScoringConfig, ServerConfig, TeacherConfig
from tests.models import make_tokenizer
from tests.scoring.backends.server.endpoints import (
    MODEL,
    FakeEndpoint,
    Fault,
    altered,
    dropped,
    half,
    silent,
    status,
    text,
    trickling,
    true_logprobs,
)
from tests.scoring.reference import random_request
from tutelage.records.signal import ScoringRequest, TeacherSignal

SECRET = "sk-zebra"
TOKENIZER = make_tokenizer()
Work = Callable[[FakeEndpoint, ServerTeacher], Awaitable[Any]]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_PAUSE", 0.01)


def settings(url: str = "", model: str = MODEL, **server: Any) -> TeacherConfig:
    attempts = {"attempts": 3, "request_timeout": 0.4} | server
    return TeacherConfig(model=model, backend="server", server=ServerConfig(url=url, **attempts))


def run(work: Work, path: Path, served: FakeEndpoint | None = None, start: bool = True, **server: Any) -> Any:
    """Do some work with a backend of an endpoint; both are closed at the end."""

    async def whole() -> Any:
        async with served or FakeEndpoint(TOKENIZER) as endpoint:
            backend = ServerTeacher(str(path), settings(**{"url": endpoint.url} | server), ScoringConfig())
            if start:
                await backend.start()
            else:
                await backend._endpoint.open()
            try:
                return await work(endpoint, backend)
            finally:
                await backend.close()

    return asyncio.run(whole())


def score_under(faults: Sequence[Fault], request: ScoringRequest, path: Path, **server: Any) -> tuple[Any, ServerStats]:
    """The signal, or what was raised instead, and what that took."""

    async def work(endpoint: FakeEndpoint, backend: ServerTeacher) -> tuple[Any, ServerStats]:
        endpoint.faults.extend(faults)
        (result,) = await asyncio.gather(backend.score(request), return_exceptions=True)
        return result, backend.server_stats()

    return run(work, path, start=False, **server)


def assert_right(signal: TeacherSignal, request: ScoringRequest) -> None:
    ids = np.concatenate([request.prompt_ids, request.response_ids])
    rows = true_logprobs(ids.tolist(), 576)[len(request.prompt_ids) - 1 + request.scored_positions]
    np.testing.assert_allclose(signal.logprobs, rows[np.arange(len(rows)), request.scored_ids], rtol=1e-6)
    assert signal.logprobs.dtype == np.float32 and signal.entropy is None and signal.hidden_states is None
    if request.top_k:
        order = np.argsort(-rows, axis=-1)[:, : request.top_k]
        np.testing.assert_array_equal(signal.top_ids, order)
        np.testing.assert_allclose(signal.top_logprobs, np.take_along_axis(rows, order, -1), rtol=1e-6)
    else:
        assert signal.top_ids is None and signal.top_logprobs is None


def masked(request: ScoringRequest, *places: int) -> ScoringRequest:
    return replace(request, scored_mask=np.isin(np.arange(len(request.response_ids)), places))


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
    "too probable": altered(lambda entries: [entry.update(logprob=-0.1) for entry in entries[9].values()]),
}


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


def test_starts_at_a_good_endpoint(tokenizer_dir: Path) -> None:
    async def work(_endpoint: FakeEndpoint, backend: ServerTeacher) -> None:
        assert await backend.start() == 576
        assert await backend.lm_head() is None
        assert await backend.reference_logprobs_for_check([random_request(2, 2)]) is None

    run(work, tokenizer_dir)


def start_error(path: Path, served: FakeEndpoint, scoring: ScoringConfig | None = None, **server: Any) -> str:
    async def whole() -> None:
        async with served as endpoint:
            teacher = settings(**{"url": endpoint.url} | server)
            await ServerTeacher(str(path), teacher, scoring or ScoringConfig()).start()

    with pytest.raises(ValueError) as caught:
        asyncio.run(whole())
    return str(caught.value)


def test_an_unknown_model_is_named_beside_the_known(tokenizer_dir: Path) -> None:
    message = start_error(tokenizer_dir, FakeEndpoint(TOKENIZER, id="small"), model="large")
    assert "teacher.model=large" in message and "has small" in message


def test_a_short_context_is_refused(tokenizer_dir: Path) -> None:
    served = FakeEndpoint(TOKENIZER, max_model_len=256)
    message = start_error(tokenizer_dir, served, ScoringConfig(max_model_len=256))
    assert "scoring.max_model_len=256" in message and "rollout.max_model_len to 255" in message
    assert "--max-model-len 257" in message


def test_a_context_that_just_fits_is_taken(tokenizer_dir: Path) -> None:
    async def whole() -> int:
        async with FakeEndpoint(TOKENIZER, max_model_len=256) as endpoint:
            backend = ServerTeacher(str(tokenizer_dir), settings(endpoint.url), ScoringConfig(max_model_len=255))
            try:
                return await backend.start()
            finally:
                await backend.close()

    assert asyncio.run(whole()) == 576


@pytest.mark.parametrize("gives", [None, 5])
def test_fewer_likely_ids_than_promised_are_refused(tokenizer_dir: Path, gives: int | None) -> None:
    """Whether the endpoint says so or just gives fewer."""
    served = FakeEndpoint(TOKENIZER)
    served.max_logprobs, served.gives = (5, None) if gives is None else (50, gives)
    message = start_error(tokenizer_dir, served)
    assert "teacher.server.max_top_k=20" in message and "--max-logprobs 20" in message


def test_a_plain_endpoint_is_refused(tokenizer_dir: Path) -> None:
    served = FakeEndpoint(TOKENIZER)
    served.has_logprobs = False
    message = start_error(tokenizer_dir, served)
    assert "teacher.server.url=http" in message and "no prompt_logprobs" in message and "vllm serve" in message


def test_an_endpoint_that_refuses_the_question_is_refused(tokenizer_dir: Path) -> None:
    served = FakeEndpoint(TOKENIZER)
    served.faults.extend([status(400, "unknown argument: prompt_logprobs")] * 2)
    message = start_error(tokenizer_dir, served)
    assert "unknown argument: prompt_logprobs" in message and "teacher.backend=transformers" in message


def swapped() -> PreTrainedTokenizerBase:
    """A tokenizer of the same size with two ids exchanged."""
    state = TOKENIZER.backend_tokenizer.to_str()
    first, second = TOKENIZER("students", add_special_tokens=False)["input_ids"][0], 400
    names = [TOKENIZER.convert_ids_to_tokens(i) for i in (first, second)]
    scores = [f'"{name}":{i}' for name, i in zip(names, (first, second), strict=True)]
    assert all(state.count(mark) == 1 for mark in scores)
    state = state.replace(scores[0], f'"{names[0]}":{second}').replace(scores[1], f'"{names[1]}":{first}')
    return type(TOKENIZER)(tokenizer_object=type(TOKENIZER.backend_tokenizer).from_str(state))


def test_other_ids_are_refused(tokenizer_dir: Path) -> None:
    message = start_error(tokenizer_dir, FakeEndpoint(swapped()))
    assert "teacher.tokenizer=null: id" in message and "cross_tokenizer" in message


def test_an_endpoint_that_is_not_there(tokenizer_dir: Path) -> None:
    message = start_error(tokenizer_dir, FakeEndpoint(TOKENIZER), url="http://127.0.0.1:9/v1")
    assert "teacher.server.url=http://127.0.0.1:9/v1" in message and "3 attempts" in message and "Connect" in message


def test_an_address_without_its_end(tokenizer_dir: Path) -> None:
    async def whole() -> None:
        async with FakeEndpoint(TOKENIZER) as endpoint:
            teacher = settings(endpoint.url.removesuffix("/v1"))
            await ServerTeacher(str(tokenizer_dir), teacher, ScoringConfig()).start()

    with pytest.raises(ValueError, match="up to and with /v1"):
        asyncio.run(whole())


@pytest.mark.parametrize("variable", [None, "TEACHER_KEY"])
def test_a_missing_or_wrong_key(
    tokenizer_dir: Path, variable: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The variable is named; the key is shown nowhere, though the endpoint repeats it."""
    monkeypatch.setenv("TEACHER_KEY", "sk-wrong")
    caplog.set_level(logging.DEBUG)
    message = start_error(tokenizer_dir, FakeEndpoint(TOKENIZER, key=SECRET), api_key_env=variable)
    assert f"teacher.server.api_key_env={variable or 'null'}" in message and "401" in message
    assert "sk-wrong" not in message + caplog.text and SECRET not in message + caplog.text


def test_a_right_key_stays_secret(
    tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TEACHER_KEY", f"{SECRET}\n")
    caplog.set_level(logging.DEBUG)

    async def work(endpoint: FakeEndpoint, backend: ServerTeacher) -> None:
        request = random_request(3, 3, entropy=False)
        assert_right(await backend.score(request), request)
        endpoint.faults.extend([status(500, f"Bearer {SECRET}")] * 3)
        with pytest.raises(EndpointFailure) as caught:
            await backend.score(request)
        shown = repr([backend, backend._endpoint, backend._endpoint._session, backend.server_stats(), caught.value])
        assert "***" in str(caught.value) and SECRET not in shown + str(caught.getrepr(showlocals=False))

    run(work, tokenizer_dir, FakeEndpoint(TOKENIZER, key=SECRET), api_key_env="TEACHER_KEY")
    assert SECRET not in caplog.text


@pytest.mark.parametrize("value", [None, " ", "sk zebra", "sk-zebra\nX: y", "sk-zébra"])
def test_no_key_in_the_variable(tokenizer_dir: Path, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv("TEACHER_KEY", raising=False)
    else:
        monkeypatch.setenv("TEACHER_KEY", value)
    message = start_error(tokenizer_dir, FakeEndpoint(TOKENIZER), api_key_env="TEACHER_KEY")
    assert "teacher.server.api_key_env=TEACHER_KEY" in message and "zebra" not in message and "zébra" not in message


def test_a_password_in_the_address_is_not_repeated(tokenizer_dir: Path) -> None:
    message = start_error(tokenizer_dir, FakeEndpoint(TOKENIZER), url=f"http://me:{SECRET}@127.0.0.1:8000/v1")
    assert "teacher.server.url" in message and SECRET not in message


def test_may_be_started_again_and_closed_unstarted(tokenizer_dir: Path) -> None:
    async def work(_endpoint: FakeEndpoint, backend: ServerTeacher) -> None:
        session = backend._endpoint._session
        assert await backend.start() == 576 and backend._endpoint._session is session
        await ServerTeacher(str(tokenizer_dir), settings("http://127.0.0.1:9/v1"), ScoringConfig()).close()

    run(work, tokenizer_dir)


@pytest.mark.parametrize("words", [None, "soon", "-3", "1e9", "nan", "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_a_pause_that_says_nothing_is_none(words: str | None) -> None:
    assert endpoint_module._seconds(words) == 0


def test_a_pause_may_be_a_number_or_a_date() -> None:
    assert endpoint_module._seconds("17") == 17
    then = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < endpoint_module._seconds(then) <= 100
