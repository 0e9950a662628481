"""The start at an endpoint: what it must offer, and a key that is shown nowhere."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from scoring.backends.server.backend import ServerTeacher
from scoring.backends.server.client import EndpointFailure
from scoring.config import ScoringConfig
from tests.scoring.backends.server.endpoints import FakeEndpoint, status
from tests.scoring.backends.server.work import SECRET, TOKENIZER, assert_right, run, settings
from tests.scoring.reference import random_request


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
