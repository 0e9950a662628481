"""Which teachers are refused before anything starts, and what the texts say."""

from dataclasses import replace
from typing import Any

import pytest

from scoring.backends.base import BackendUse
from scoring.config import Quantization, ScoringConfig, ServerConfig, TeacherConfig, TeacherWeights
from scoring.rules import backend_refusals
from tutelage.records.signal import SignalNeeds

NOTHING = SignalNeeds()
EVERYTHING = SignalNeeds(candidates=16, teacher_top_k=4, teacher_entropy=True, hidden_states=True)
SERVER = TeacherConfig(backend="server", server=ServerConfig(url="http://127.0.0.1:8000/v1"))
ENGINE = TeacherConfig(backend="vllm")


def refused(teacher: TeacherConfig, wanted: SignalNeeds = NOTHING, gpus: float = 0, **run: Any) -> list[str]:
    use = BackendUse(wanted, ScoringConfig(gpus_per_worker=gpus), **run)
    return [str(refusal) for refusal in backend_refusals("further_teachers.maths", teacher, use)]


def test_a_model_of_our_own_gives_everything() -> None:
    wanted = replace(EVERYTHING, watched_top_k=999)
    assert refused(TeacherConfig(quantization=Quantization.nf4), wanted, writes=True) == []


@pytest.mark.parametrize("teacher", [SERVER, ENGINE])
def test_the_sampled_token_and_the_teachers_own_ids_suit_all(teacher: TeacherConfig) -> None:
    assert refused(teacher) == refused(teacher, SignalNeeds(teacher_top_k=20, watched_top_k=20)) == []


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (SignalNeeds(candidates=16), "16 given ids"),
        (SignalNeeds(teacher_entropy=True), "exact entropy"),
        (SignalNeeds(hidden_states=True), "whole vocabulary"),
    ],
)
@pytest.mark.parametrize("teacher", [SERVER, ENGINE])
def test_each_wish_that_cannot_be_met_is_named_with_what_fits(
    teacher: TeacherConfig, wanted: SignalNeeds, words: str
) -> None:
    (text,) = refused(teacher, wanted)
    assert text.startswith(f"further_teachers.maths.backend={teacher.backend}: the objective needs")
    for fix in (words, "objective=teacher_topk_forward_kl", "further_teachers.maths.backend=transformers"):
        assert fix in text


def test_engines_score_given_ids_on_gpus() -> None:
    assert refused(ENGINE, SignalNeeds(candidates=16), gpus=1) == []
    assert "scoring=gpu" in refused(ENGINE, SignalNeeds(candidates=16))[0]
    assert len(refused(SERVER, SignalNeeds(candidates=16), gpus=1)) == 1


def test_more_likely_ids_than_an_endpoint_gives() -> None:
    (of_objective,) = refused(SERVER, SignalNeeds(teacher_top_k=21))
    assert "its 21 most likely ids (it gives 20 at most)" in of_objective
    (of_monitor,) = refused(SERVER, SignalNeeds(watched_top_k=21))
    assert of_monitor.startswith("learner.overlap_k=21: further_teachers.maths.server.max_top_k=20")
    assert refused(ENGINE, SignalNeeds(teacher_top_k=500, watched_top_k=500)) == []


@pytest.mark.parametrize("teacher", [SERVER, ENGINE])
def test_settings_that_would_be_ignored(teacher: TeacherConfig) -> None:
    (text,) = refused(replace(teacher, quantization=Quantization.int8))
    assert text.startswith("further_teachers.maths.quantization=int8")
    (text,) = refused(replace(teacher, weights=TeacherWeights.ema))
    assert text.startswith("further_teachers.maths.weights=ema")


def test_an_endpoint_writes_no_sequences() -> None:
    assert "objective.sequences" in refused(SERVER, writes=True)[0]
    assert refused(ENGINE, writes=True) == []


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host/v1"])
def test_an_address_that_is_none_is_named(url: str) -> None:
    (text,) = refused(replace(SERVER, server=ServerConfig(url=url)))
    assert text.startswith(f"further_teachers.maths.server.url={url or repr(url)}: is no endpoint")


def test_a_backend_that_nobody_added_is_named_with_those_there_are() -> None:
    (text,) = refused(TeacherConfig(backend="transformer"), EVERYTHING)
    assert text.startswith("further_teachers.maths.backend=transformer: is none of transformers, vllm, server, cache")


def test_a_cache_has_only_what_others_computed() -> None:
    nowhere, samples = refused(TeacherConfig(backend="cache"), new_responses=True)
    assert "scoring.cache_dir, which is null" in nowhere and "what the student samples" in samples


def test_a_password_is_not_shown() -> None:
    server = ServerConfig(url="https://me:sk-zebra@host/v1")
    (text,) = refused(replace(SERVER, server=server))
    assert "host" in text and "sk-zebra" not in text
