"""Made-up examples for the learner's tests."""

import numpy as np

from learner.records import Example
from tutelage.records.signal import TeacherSignal
from tutelage.records.trajectory import FinishReason, PolicySpan, Trajectory


def make_example(
    slot: int,
    prompt: int,
    response: int,
    *,
    vocabulary: int = 576,
    k: int = 16,
    teacher_width: int | None = None,
    masked: bool = False,
    top_k: int = 0,
    reference: bool = False,
) -> Example:
    """Random ids and log-probs, a function of the slot alone; a mask of about four in five unless `masked`.

    `top_k`, `reference` and `teacher_width` add what only some objectives need.
    """
    rng = np.random.default_rng(slot)
    loss_mask = rng.random(response) < 0.8
    loss_mask[0] = True
    support = np.argsort(rng.random((response, vocabulary)), axis=1)[:, :k].astype(np.int32)
    trajectory = Trajectory(
        slot=slot,
        prompt_id=f"prompt-{slot}",
        sample_index=0,
        prompt_ids=rng.integers(0, vocabulary, prompt).astype(np.int32),
        response_ids=rng.integers(0, vocabulary, response).astype(np.int32),
        loss_mask=np.zeros(response, dtype=np.bool_) if masked else loss_mask,
        sampling_logprobs=(-5 * rng.random(response)).astype(np.float32),
        temperature=0.7 if slot % 2 else 1.0,
        candidate_ids=support,
        spans=(PolicySpan(0, 0, response),),
        finish_reason=FinishReason.STOP,
    )
    hidden = None if teacher_width is None else rng.standard_normal((response, teacher_width)).astype(np.float32)
    others = np.random.default_rng([slot, 1])  # the rest stays as it is whatever is added
    top = np.argsort(others.random((response, vocabulary)), axis=1)[:, :top_k].astype(np.int32)
    signal = TeacherSignal(
        teacher="teacher",
        logprobs=(-5 * rng.random(response)).astype(np.float32),
        entropy=rng.random(response).astype(np.float32),
        support_ids=support,
        support_logprobs=(-1 - 5 * rng.random((response, k))).astype(np.float32),
        top_ids=top if top_k else None,
        top_logprobs=(-1 - 5 * others.random((response, top_k))).astype(np.float32) if top_k else None,
        hidden_states=hidden,
        reference_logprobs=(-5 * others.random(response)).astype(np.float32) if reference else None,
    )
    return Example(trajectory, signal)


LENGTHS = ((3, 9), (7, 1), (1, 12), (5, 20), (12, 4), (2, 2), (9, 15))  # prompt and response tokens


def make_examples(**options: int) -> list[Example]:
    return [make_example(slot, *lengths, **options) for slot, lengths in enumerate(LENGTHS)]
