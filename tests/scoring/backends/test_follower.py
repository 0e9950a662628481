"""A teacher that follows the student: what is published is what scores, and an average takes each version once."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from safetensors.torch import load_file
from torch import Tensor

from scoring.backends.follower import Follower
from scoring.backends.transformers import BatchingTeacher
from scoring.config import ScoringConfig, TeacherConfig, TeacherWeights
from tests.scoring.reference import load_teacher, random_request
from tutelage.records.signal import TeacherSignal
from tutelage.settings import DType
from tutelage.weights import Bucket, BufferInfo, ChecksumMismatch, SharedBuffer

RATE = 0.75
REQUEST = random_request(6, 9, seed=1, top_k=3)


class Sender:
    """The learner's end, of whole models in one bucket."""

    def __init__(self, nbytes: int) -> None:
        self.buffer = SharedBuffer.create(nbytes)

    def bucket(self, weights: dict[str, Tensor]) -> Bucket:
        names, offsets, at = list(weights), [], 0
        for weight in weights.values():
            offsets.append(at)
            size = weight.numel() * weight.element_size()
            self.buffer.data[at : at + size] = weight.contiguous().reshape(-1).view(torch.uint8)
            at += size
        checksum = xxhash.xxh3_64_hexdigest(self.buffer.data[:at].numpy())
        types = [str(weight.dtype).removeprefix("torch.") for weight in weights.values()]
        return Bucket("u", 0, True, 0, at, checksum, names, types, [list(w.shape) for w in weights.values()], offsets)

    async def publish(self, follower: Follower, version: int, weights: dict[str, Tensor]) -> None:
        await follower.start_update(version)
        await follower.update(asdict(self.bucket(weights)))
        await follower.finish_update()


def make(path: Path, kind: TeacherWeights) -> tuple[BatchingTeacher, Follower, Sender]:
    config = TeacherConfig(weights=kind, ema_rate=RATE)
    teacher = BatchingTeacher(str(path), config, ScoringConfig(dtype=DType.float32))
    follower, sender = Follower(teacher, config), Sender(8 * 2**20)
    follower.receive_in(BufferInfo(str(sender.buffer.path), 8 * 2**20))
    sender.buffer.unlink()
    return teacher, follower, sender


def moved(path: Path, seed: int) -> dict[str, Tensor]:
    """Another version of the weights, as a publisher names them: a tied head under both of its names."""
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: weight.detach() + 0.02 * torch.randn(weight.shape, generator=generator)
        for name, weight in load_teacher(path)._model.named_parameters()
    }
    if "lm_head.weight" not in found:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    return found


def scores_of(path: Path, weights: dict[str, Tensor]) -> np.ndarray:
    model = load_teacher(path)
    for name, parameter in model.named_parameters().items():
        parameter.copy_(weights[name])
    model.refresh_head()
    return model.score([REQUEST])[0].logprobs


@pytest.mark.parametrize("student", ["tiny_tied", "tiny_untied"])
def test_the_current_weights_score(student: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(student)
    teacher, follower, sender = make(path, TeacherWeights.current)
    weights = moved(path, seed=1)

    async def job() -> tuple[TeacherSignal, TeacherSignal, np.ndarray]:
        before = await teacher.score(REQUEST)
        await sender.publish(follower, 1, weights)
        (plain,) = await teacher.reference_logprobs_for_check([REQUEST])
        return before, await teacher.score(REQUEST), plain

    before, after, plain = asyncio.run(job())
    assert np.abs(before.logprobs - after.logprobs).max() > 0.01
    np.testing.assert_allclose(after.logprobs, scores_of(path, weights), atol=1e-5)
    np.testing.assert_allclose(after.logprobs, plain, atol=1e-4)
    assert follower.version == 1


def test_an_average_takes_each_version_once(tiny_tied: Path) -> None:
    """However often one is published, and a tied head is one weight though it comes under two names."""
    teacher, follower, sender = make(tiny_tied, TeacherWeights.ema)
    first = {name: weight.clone() for name, weight in teacher.model.named_parameters().items()}
    one, two = moved(tiny_tied, seed=1), moved(tiny_tied, seed=2)

    async def job() -> TeacherSignal:
        await sender.publish(follower, 0, two)  # what a check of the workers sends; the average does not move
        await sender.publish(follower, 1, one)
        await sender.publish(follower, 1, one)
        await follower.start_update(2)
        await follower.update(asdict(sender.bucket(dict(list(two.items())[:3]))))  # breaks off here
        await sender.publish(follower, 2, two)
        return await teacher.score(REQUEST)

    signal = asyncio.run(job())
    expected = {name: RATE * (RATE * first[name] + (1 - RATE) * one[name]) + (1 - RATE) * two[name] for name in first}
    for name, parameter in teacher.model.named_parameters().items():
        torch.testing.assert_close(parameter, expected[name], atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(signal.logprobs, scores_of(tiny_tied, expected), atol=1e-5)


def test_an_average_is_found_again(tiny_untied: Path, tmp_path: Path) -> None:
    teacher, follower, sender = make(tiny_untied, TeacherWeights.ema)
    again, restored, other = make(tiny_untied, TeacherWeights.ema)
    one, two = moved(tiny_untied, seed=1), moved(tiny_untied, seed=2)

    async def job() -> tuple[TeacherSignal, TeacherSignal]:
        await sender.publish(follower, 1, one)
        follower.save(tmp_path / "average.safetensors")
        await restored.restore(tmp_path / "average.safetensors")
        assert restored.version == 1
        for whose, end in ((follower, sender), (restored, other)):
            await end.publish(whose, 1, one)  # a resumed learner publishes what it has first
            await end.publish(whose, 2, two)
        return await teacher.score(REQUEST), await again.score(REQUEST)

    ours, theirs = asyncio.run(job())
    np.testing.assert_array_equal(ours.logprobs, theirs.logprobs)
    assert len(load_file(tmp_path / "average.safetensors")) == len(dict(teacher.model._model.named_parameters()))


def test_no_forward_sees_half_of_an_update(tiny_tied: Path) -> None:
    teacher, follower, sender = make(tiny_tied, TeacherWeights.current)
    weights = moved(tiny_tied, seed=1)

    async def job() -> TeacherSignal:
        await follower.start_update(1)
        waiting = asyncio.create_task(teacher.score(REQUEST))
        await follower.update(asdict(sender.bucket(weights)))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        await follower.finish_update()
        return await waiting

    np.testing.assert_allclose(asyncio.run(job()).logprobs, scores_of(tiny_tied, weights), atol=1e-5)


def test_altered_bytes_are_refused(tiny_tied: Path) -> None:
    _, follower, sender = make(tiny_tied, TeacherWeights.current)

    async def job() -> None:
        await follower.start_update(1)
        bucket = sender.bucket(moved(tiny_tied, seed=1))
        sender.buffer.data[3] += 1
        await follower.update(asdict(bucket))

    with pytest.raises(ChecksumMismatch, match="not loaded"):
        asyncio.run(job())
