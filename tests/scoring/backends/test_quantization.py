"""Quantised teachers: their scores are those of their own plain forward, and how far that is from the full weights."""

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scoring.backends.model import TeacherModel
from scoring.backends.quantization import measure_bias
from scoring.config import Quantization, ScoringConfig, TeacherConfig
from scoring.worker import ScoringWorker
from tests.scoring.reference import load_teacher, random_request
from tutelage.lm.head import LMHead, LogitTransform
from tutelage.records.signal import TeacherSignal
from tutelage.settings import DType

QUANTISED = (Quantization.int8, Quantization.nf4)
LENGTHS = ((20, 7), (3, 40), (1, 1), (50, 2))


def load_quantised(path: Path, kind: Quantization, **scoring: object) -> TeacherModel:
    teacher = TeacherConfig(model=str(path), quantization=kind)
    settings = {"dtype": DType.float32} | scoring
    return TeacherModel(str(path), teacher, ScoringConfig(**settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize(("dtype", "close"), [(DType.float32, 1e-4), (DType.bfloat16, 0.05)])
def test_marks_equal_a_plain_forward_of_the_quantised_model(
    tiny_untied: Path, kind: Quantization, dtype: DType, close: float
) -> None:
    """However they are packed: what is said of one response does not depend on those beside it."""
    teacher = load_quantised(tiny_untied, kind, dtype=dtype)
    requests = [random_request(p, t, seed=p) for p, t in LENGTHS]
    for request, signal in zip(requests, teacher.score(requests), strict=True):
        np.testing.assert_allclose(signal.logprobs, teacher.reference_logprobs_for_check(request), atol=close)


@pytest.mark.parametrize("kind", QUANTISED)
def test_only_linear_layers_of_the_backbone_are_quantised(tiny_untied: Path, kind: Quantization) -> None:
    full, quantised = load_teacher(tiny_untied), load_quantised(tiny_untied, kind)
    np.testing.assert_array_equal(quantised.lm_head().weight, full.lm_head().weight)
    request = random_request(9, 30)
    (ours,), (theirs,) = quantised.score([request]), full.score([request])
    assert 1e-6 < np.abs(ours.logprobs - theirs.logprobs).mean() < 1


def signal(states_Td: np.ndarray, ids_T: np.ndarray, head: LMHead) -> TeacherSignal:
    logits = states_Td @ head.weight.T
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return TeacherSignal("teacher", logprobs[np.arange(len(ids_T)), ids_T], hidden_states=states_Td)


def test_bias_by_hand() -> None:
    """Two tokens over two ids, with probabilities that are known."""
    head = LMHead(np.array([[1.0], [0.0]], np.float32), None, LogitTransform())
    states = {p: [np.log(p / (1 - p))] for p in (0.8, 0.6, 0.3)}
    full = signal(np.array([states[0.8], states[0.6]], np.float32), np.array([0, 1]), head)
    quantised = signal(np.array([states[0.8], states[0.3]], np.float32), np.array([0, 1]), head)
    bias = measure_bias("nf4", [full], [quantised], head)
    assert bias.tokens == 2 and bias.top1_agreement == 0.5
    assert bias.max_difference == pytest.approx(np.log(0.7 / 0.4), abs=1e-5)
    assert bias.mean_difference == pytest.approx(np.log(0.7 / 0.4) / 2, abs=1e-5)
    divergence = 0.6 * np.log(0.6 / 0.3) + 0.4 * np.log(0.4 / 0.7)
    assert bias.kl == pytest.approx(divergence / 2, abs=1e-5)
    assert "KL 0.096 nats a token" in str(bias) and "50.0% of 2 tokens" in str(bias)


def test_no_tokens_to_measure_on() -> None:
    head = LMHead(np.ones((2, 1), np.float32), None)
    empty = signal(np.zeros((0, 1), np.float32), np.zeros(0, np.int32), head)
    with pytest.raises(ValueError, match="the requests have none"):
        measure_bias("int8", [empty], [empty], head)


def test_a_worker_measures_its_bias_and_goes_on_quantised(tiny_untied: Path) -> None:
    requests = [random_request(p, t, seed=p) for p, t in LENGTHS]
    settings = ScoringConfig(dtype=DType.float32)

    async def measured() -> None:
        worker = ScoringWorker(str(tiny_untied), TeacherConfig(quantization=Quantization.nf4), settings)
        before = await worker.score(requests[0])
        bias = await worker.quantization_bias(requests)
        after = await worker.score(requests[0])
        np.testing.assert_array_equal(before.logprobs, after.logprobs)
        full = load_teacher(tiny_untied).score([replace(r, hidden_states=True) for r in requests])
        quantised = load_quantised(tiny_untied, Quantization.nf4).score(requests)
        differences = np.concatenate(
            [np.abs(f.logprobs - q.logprobs) for f, q in zip(full, quantised, strict=True)]
        )  # fmt: skip
        assert bias is not None and bias.tokens == sum(t for _, t in LENGTHS)
        assert bias.mean_difference == pytest.approx(differences.mean(), rel=1e-3)
        assert bias.max_difference == pytest.approx(differences.max(), rel=1e-3)
        assert 0 < bias.kl < 1

    asyncio.run(measured())


def test_full_weights_have_no_bias_to_measure(tiny_untied: Path) -> None:
    worker = ScoringWorker(str(tiny_untied), TeacherConfig(), ScoringConfig(dtype=DType.float32))
    assert asyncio.run(worker.quantization_bias([random_request(3, 4)])) is None
