"""What a teacher's scores should be: a plain float32 transformers forward of one sequence alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from scoring.backends.model import TeacherModel
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.settings import DType


@dataclass(frozen=True)
class Reference:
    path: Path

    def logprobs(self, request: ScoringRequest) -> torch.Tensor:
        """[T, V] full log-probs, from logits of the whole sequence, last token included."""
        model = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32, attn_implementation="eager")
        ids = torch.from_numpy(np.concatenate([request.prompt_ids, request.response_ids]).astype(np.int64))
        with torch.inference_mode():
            logits = model.eval()(input_ids=ids[None]).logits[0]
        first = len(request.prompt_ids) - 1
        return logits[first : first + len(request.response_ids)].log_softmax(-1)


def load_teacher(path: Path, **scoring: object) -> TeacherModel:
    teacher = TeacherConfig(model=str(path))
    return TeacherModel(str(path), teacher, ScoringConfig(dtype=DType.float32, **scoring))  # type: ignore[arg-type]


def random_request(
    prompt: int,
    response: int,
    seed: int = 0,
    vocabulary: int = 576,
    support: int = 0,
    entropy: bool = True,
    **asked: object,
) -> ScoringRequest:
    generator = np.random.default_rng(seed)
    support_ids = generator.integers(0, vocabulary, (response, support), dtype=np.int32) if support else None
    return ScoringRequest(
        teacher="teacher",
        prompt_ids=random_ids(generator, prompt, vocabulary),
        response_ids=random_ids(generator, response, vocabulary),
        support_ids=support_ids,
        entropy=entropy,
        **asked,  # type: ignore[arg-type]
    )


def random_ids(generator: np.random.Generator, length: int, vocabulary: int) -> NDArray[np.int32]:
    return generator.integers(0, vocabulary, length, dtype=np.int32)


def assert_matches(signal: TeacherSignal, request: ScoringRequest, expected_TV: torch.Tensor) -> None:
    targets = torch.from_numpy(request.response_ids.astype(np.int64))
    close = {"atol": 1e-4, "rtol": 0}
    np.testing.assert_allclose(signal.logprobs, expected_TV.gather(1, targets[:, None])[:, 0], **close)
    np.testing.assert_allclose(signal.entropy, -(expected_TV.exp() * expected_TV).sum(-1), **close)
    if request.support_ids is not None:
        support = torch.from_numpy(request.support_ids.astype(np.int64))
        np.testing.assert_allclose(signal.support_logprobs, expected_TV.gather(1, support), **close)
    if request.top_k:
        best = expected_TV.topk(request.top_k)
        np.testing.assert_allclose(signal.top_logprobs, best.values, **close)
        np.testing.assert_array_equal(signal.top_ids, best.indices)
