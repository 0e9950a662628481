"""New weights in a running engine, held against a plain float32 forward of those weights."""

import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayTaskError

from learner.weights.client import RayWeightSyncClient, WeightSyncError
from learner.weights.shared_memory import SLOTS, write_bucket
from learner.weights.source import CausalLMSource
from rollout.weight_receiver import SharedMemoryUpdateInfo
from tests.integration.students import Student, load, perturbed, reference_logprobs, request, sampled, start_worker
from tutelage.settings import WeightTransfer
from tutelage.weights import DIRECTORY, PREFIX, SharedBuffer

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def no_buffer_left_behind() -> Iterator[None]:
    yield
    assert not list(DIRECTORY.glob(f"{PREFIX}*"))


def assert_agrees(student: Student, temperature: float = 1.0) -> None:
    for trajectory in student.generate([request(i, temperature=temperature) for i in range(4)]):
        expected = sampled(reference_logprobs(student.model, trajectory), trajectory)
        np.testing.assert_allclose(trajectory.sampling_logprobs, expected, atol=1e-3)


@pytest.mark.parametrize("transfer", [WeightTransfer.shared_memory, WeightTransfer.object_store])
@pytest.mark.parametrize("bucket_mib", [512, 0.3])  # 0.3 cuts gate_proj from up_proj, which engines fuse
def test_logprobs_agree_after_updates(student: Student, bucket_mib: float, transfer: WeightTransfer) -> None:
    """The same prompts each time: a stale prefix cache or LM head would show."""
    before = student.generate([request(0)])[0]
    first = round(bucket_mib) + len(transfer.value)
    for seed in (first, first + 1):
        report = student.publish(perturbed(student.path, seed), bucket_mib, transfer)
        assert report.version == student.version
        for temperature in (1.0, 0.7):
            assert_agrees(student, temperature)
        change = sampled(reference_logprobs(student.model, before), before) - before.sampling_logprobs
        assert np.abs(change).mean() > 0.1, "the update is too small to test anything"


def test_an_engine_goes_on_with_another_checkpoint(student: Student, tmp_path: Path) -> None:
    """As at its start, the weights are version 0, and updates follow; the prompts are those of the test before."""
    student.model = perturbed(student.path, 11)
    student.model.save_pretrained(tmp_path)
    ray.get(student.worker.load.remote(str(tmp_path)), timeout=60)
    assert student.version == 0
    assert_agrees(student)
    assert {span.version for span in student.generate([request(0)])[0].spans} == {0}
    assert student.publish(perturbed(student.path, 12)).version == student.version == 1
    assert_agrees(student)


def test_the_report_counts_every_weight(tied_student: Student) -> None:
    model = perturbed(tied_student.path, 3)
    report = tied_student.publish(model)
    parameters = sum(p.numel() for p in model.parameters()) + model.lm_head.weight.numel()
    assert report.nbytes == 4 * parameters
    assert report.engine_seconds is not None and 0 < report.engine_seconds < report.seconds
    assert report.checksum == tied_student.publish(model).checksum
    assert report.checksum != tied_student.publish(perturbed(tied_student.path, 4)).checksum


def test_requests_in_flight_go_on_with_the_new_weights(student: Student) -> None:
    old_model, old = student.model, student.version
    publisher = student.publisher(perturbed(student.path, 11))
    stream = student.worker.generate.remote([request(i, max_tokens=4 if i == 0 else 300) for i in range(6)])
    trajectories = [ray.get(next(stream))]
    publisher.publish(old + 1)
    student.model = perturbed(student.path, 11)
    trajectories += [ray.get(ref) for ref in stream]
    changed = [t for t in trajectories if len(t.spans) == 2]
    assert len(changed) >= 3
    for trajectory in changed:
        first, second = trajectory.spans
        assert (first.version, second.version) == (old, old + 1)
        assert 0 == first.start < first.stop == second.start < second.stop == len(trajectory.response_ids)
        cut = first.stop
        before = sampled(reference_logprobs(old_model, trajectory), trajectory)
        after = sampled(reference_logprobs(student.model, trajectory), trajectory)
        np.testing.assert_allclose(trajectory.sampling_logprobs[:cut], before[:cut], atol=1e-3)
        np.testing.assert_allclose(trajectory.sampling_logprobs[cut:], after[cut:], atol=1e-3)


def test_a_wrong_checksum_is_refused_and_a_good_update_repairs(student: Student) -> None:
    source = CausalLMSource(perturbed(student.path, 21), 0, torch.float32, 2**30)
    (bucket,) = source.buckets
    buffer = SharedBuffer.create(source.nbytes)
    client = RayWeightSyncClient({"rollout-0": student.worker}, 60)
    client.begin(student.version + 1)
    client.init_weight_transfer_engine({"path": str(buffer.path), "nbytes": source.nbytes})
    buffer.unlink()
    checksum = write_bucket(buffer.data, bucket, torch.float32)
    buffer.data[12345] ^= 1
    sizes = [weight.nbytes for weight in bucket]
    info = SharedMemoryUpdateInfo(
        update="one",
        index=0,
        last=True,
        start=0,
        nbytes=source.nbytes,
        checksum=checksum,
        names=[weight.name for weight in bucket],
        dtype_names=["float32"] * len(bucket),
        shapes=[list(weight.shape) for weight in bucket],
        offsets=np.cumsum([0, *sizes[:-1]]).tolist(),
    )
    client.start_weight_update()
    with pytest.raises(WeightSyncError, match="checksum"):
        client.update_weights(asdict(info))
    with pytest.raises(WeightSyncError, match="no weight update"):
        client.finish_weight_update()
    student.publish(perturbed(student.path, 22), bucket_mib=1)
    assert_agrees(student)


def test_an_update_that_breaks_off_half_way_is_repaired_by_the_next(tied_student: Student) -> None:
    publisher = tied_student.publisher(perturbed(tied_student.path, 31), bucket_mib=1)
    engine = publisher._engine
    client = publisher._client
    client.begin(tied_student.version + 1)
    client.start_weight_update()
    first = engine._write("broken", 0, engine.source.buckets[0])
    assert not first.last
    client.update_weights(asdict(first))
    with pytest.raises(WeightSyncError, match="before its last"):
        client.finish_weight_update()
    assert tied_student.publisher(perturbed(tied_student.path, 32)).publish(client.version + 1)
    tied_student.model = perturbed(tied_student.path, 32)
    assert_agrees(tied_student)


def test_parts_that_arrive_out_of_order_are_loaded_in_order(tied_student: Student) -> None:
    model = perturbed(tied_student.path, 51)
    publisher = tied_student.publisher(model, bucket_mib=1)
    engine, client = publisher._engine, publisher._client
    buckets = engine.source.buckets
    assert 2 <= len(buckets) <= SLOTS
    client.begin(tied_student.version + 1)
    client.start_weight_update()
    parts = [engine._write("shuffled", index, bucket) for index, bucket in enumerate(buckets)]
    for call in [client.begin_update_weights(asdict(part)) for part in reversed(parts)]:
        client.wait(call)
    client.finish_weight_update()
    tied_student.model = model
    assert_agrees(tied_student)


def test_versions_are_idempotent(tied_student: Student) -> None:
    model = perturbed(tied_student.path, 41)
    publisher = tied_student.publisher(model)
    version = tied_student.version + 1
    report = publisher.publish(version)
    assert publisher.publish(version) is report
    with pytest.raises(ValueError, match="comes after"):
        publisher.publish(version - 1)
    ray.get(tied_student.worker.finish_weight_update.remote(version))  # a call that Ray repeats
    assert tied_student.version == version
    with pytest.raises(RayTaskError, match="cannot go back"):
        ray.get(tied_student.worker.start_weight_update.remote(version - 1))
    tied_student.model = model
    assert_agrees(tied_student)


def test_a_missed_deadline_is_an_error(tied_student: Student) -> None:
    with pytest.raises(WeightSyncError, match=r"within 0 s \(timeouts\.weight_sync\)"):
        RayWeightSyncClient({"rollout-0": tied_student.worker}, 0.0)


def test_processes_of_the_engine_die_with_its_worker(local_ray: None, tiny_tied: Path) -> None:
    worker = start_worker(tiny_tied)
    ray.get(worker.ready.remote(), timeout=300)
    pid = ray.get(worker.__ray_call__.remote(lambda _self: os.getpid()))
    children = descendants(pid)
    assert children
    ray.kill(worker)
    gone_by = time.monotonic() + 15
    while any(map(alive, children)) and time.monotonic() < gone_by:
        time.sleep(0.2)
    assert not any(map(alive, children))


def descendants(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = sorted({int(c) for task in tasks for c in (task / "children").read_text().split()})
    return children + [grandchild for child in children for grandchild in descendants(child)]


def alive(pid: int) -> bool:
    """A zombie counts as dead: its parent has only to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_checkpoint_can_be_loaded_back(student: Student) -> None:
    """Leaves the shared engines as they were found."""
    student.publish(load(student.path))
    assert_agrees(student)
