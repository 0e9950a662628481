"""What `benchmarks.scoring` measures, each in a process of its own.

    python -m benchmarks.scoring_paths bare MODEL REPEATS
    python -m benchmarks.scoring_paths prompt_logprobs MODEL REPEATS
    python -m benchmarks.scoring_paths cache MODEL REPEATS
    python -m benchmarks.scoring_paths memory TOKENS VOCABULARY

The last line is JSON. MODEL is a checkpoint directory. All in float32 on one thread.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.ideal import interleaved_ratio
from benchmarks.objective_paths import resident
from scoring.backends.cached import CachedBackend
from scoring.backends.factory import identity
from scoring.backends.model import TeacherModel
from scoring.backends.store import SignalStore
from scoring.backends.transformers import BatchingTeacher
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.records.signal import ScoringRequest
from tutelage.settings import DType

SEQUENCES, BATCH, K = 16, 8, 16
PROMPT_LOGPROBS = 20
SETTINGS = ScoringConfig(dtype=DType.float32, max_tokens_per_forward=2048)
AGREEMENT = 1e-3  # nats: paths that compute different things cannot be compared


@dataclass
class Seconds:
    """What passes over the same requests took."""

    cpu: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)

    def time(self, work: Callable[[], object]) -> None:
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        self.cpu.append(time.process_time() - cpu)
        self.wall.append(time.perf_counter() - wall)


@dataclass(frozen=True)
class Compared:
    """Two ways to the same scores, in turn."""

    tokens: int  # in all sequences
    scored_mask: int
    ours_cpu: float  # median seconds of a pass
    theirs_cpu: float
    ours_wall: float
    theirs_wall: float
    speedup_cpu: float  # theirs over ours, the median over neighbouring passes
    speedup_wall: float

    @classmethod
    def of(cls, requests: Sequence[ScoringRequest], ours: Seconds, theirs: Seconds) -> "Compared":
        return cls(
            tokens=sum(len(r.prompt_ids) + len(r.response_ids) for r in requests),
            scored_mask=sum(r.num_scored for r in requests),
            ours_cpu=statistics.median(ours.cpu),
            theirs_cpu=statistics.median(theirs.cpu),
            ours_wall=statistics.median(ours.wall),
            theirs_wall=statistics.median(theirs.wall),
            speedup_cpu=1 / interleaved_ratio(ours.cpu, theirs.cpu),
            speedup_wall=1 / interleaved_ratio(ours.wall, theirs.wall),
        )


def make_requests(vocabulary: int) -> list[ScoringRequest]:
    """Prompts of 24 to 96 tokens, responses of about 90, some of them long; no two begin alike."""
    generator = np.random.default_rng(0)
    prompts = generator.integers(24, 97, SEQUENCES)
    responses = np.clip(generator.lognormal(4.3, 0.6, SEQUENCES), 8, 320).astype(int)

    def ids(*shape: int) -> np.ndarray:
        return generator.integers(0, vocabulary, shape, dtype=np.int32)

    return [
        ScoringRequest("teacher", ids(p), ids(t), support_ids=ids(t, K), top_k=K, entropy=True)
        for p, t in zip(prompts.tolist(), responses.tolist(), strict=True)
    ]


def in_turn(repeats: int, ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[Seconds, Seconds]:
    """Passes that take turns; the first of each only warms up."""
    ours(), theirs()
    mine, others = Seconds(), Seconds()
    for _ in range(repeats):
        mine.time(ours)
        others.time(theirs)
    return mine, others


def bare(path: str, repeats: int) -> Compared:
    """Against transformers' own forward of padded batches, sorted by length, that returns logits."""
    teacher = TeacherModel(path, TeacherConfig(), SETTINGS)
    requests = make_requests(teacher.vocabulary_size)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    ).eval()
    batches = list(_padded_batches(requests))

    @torch.inference_mode()
    def forward() -> list[torch.Tensor]:
        return [model(input_ids=ids, attention_mask=mask, use_cache=False).logits for ids, mask in batches]

    _check(teacher, requests[0], forward())
    return Compared.of(requests, *in_turn(repeats, lambda: teacher.score(requests), forward))


def _padded_batches(requests: Sequence[ScoringRequest]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and mask [BATCH, longest], padded on the right."""
    whole = sorted((_whole(request) for request in requests), key=len)
    for first in range(0, len(whole), BATCH):
        rows = [torch.tensor(row) for row in whole[first : first + BATCH]]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        yield ids, mask


def _whole(request: ScoringRequest) -> list[int]:
    return np.concatenate([request.prompt_ids, request.response_ids]).tolist()


def _check(teacher: TeacherModel, request: ScoringRequest, logits: Sequence[torch.Tensor]) -> None:
    """The bare forward and ours say the same of one response, wherever in the batches it is."""
    (signal,) = teacher.score([request])
    first, last = len(request.prompt_ids) - 1, len(_whole(request)) - 1
    targets = torch.from_numpy(request.response_ids.astype(np.int64))[:, None]
    ours = torch.from_numpy(signal.logprobs)
    gaps = [
        float((row[first:last].log_softmax(-1).gather(1, targets)[:, 0] - ours).abs().max())
        for batch in logits
        for row in batch
        if len(row) > last
    ]
    if min(gaps) > AGREEMENT:
        raise RuntimeError(f"the bare forward and ours differ by {min(gaps):.2g} nats")


def prompt_logprobs(path: str, repeats: int) -> Compared:
    """Against vLLM's `prompt_logprobs` of the same sequences, which cannot leave out the prompts."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=path,
        dtype="float32",
        trust_remote_code=False,
        max_model_len=1024,
        max_num_batched_tokens=2048,
        enforce_eager=True,
        enable_prefix_caching=False,
        max_logprobs=PROMPT_LOGPROBS,
        disable_log_stats=True,
    )
    torch.set_num_threads(1)
    teacher = TeacherModel(path, TeacherConfig(), SETTINGS)
    requests = [replace(r, top_k=PROMPT_LOGPROBS) for r in make_requests(teacher.vocabulary_size)]
    asked = SamplingParams(max_tokens=1, prompt_logprobs=PROMPT_LOGPROBS, detokenize=False)
    prompts = [{"prompt_token_ids": _whole(request)} for request in requests]

    def generate() -> list:
        return engine.generate(prompts, asked, use_tqdm=False)

    found, (signal,) = generate()[0].prompt_logprobs, teacher.score(requests[:1])
    rows = found[len(requests[0].prompt_ids) :]
    theirs = [row[token].logprob for row, token in zip(rows, requests[0].response_ids.tolist(), strict=True)]
    if np.abs(np.array(theirs) - signal.logprobs).max() > AGREEMENT:
        raise RuntimeError("vLLM's log-probs and ours differ")
    return Compared.of(requests, *in_turn(repeats, lambda: teacher.score(requests), generate))


def cache(path: str, repeats: int) -> Compared:
    """Hits against scoring, both through the worker's backend."""
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as runner:
        computing = BatchingTeacher(path, TeacherConfig(), SETTINGS)
        store = SignalStore(folder, identity(path, TeacherConfig(), SETTINGS))
        cached = CachedBackend(computing, store, TeacherConfig())
        requests = make_requests(computing.model.vocabulary_size)

        def score_all(backend: BatchingTeacher | CachedBackend) -> Callable[[], object]:
            async def all_at_once() -> None:
                await asyncio.gather(*(backend.score(request) for request in requests))

            return lambda: runner.run(all_at_once())

        return Compared.of(requests, *in_turn(repeats, score_all(cached), score_all(computing)))


@dataclass(frozen=True)
class Peak:
    peak_bytes: int  # resident at the peak, beyond the loaded model and the requests
    logits_bytes: int  # of [tokens, vocabulary] in float32


def memory(tokens: int, vocabulary: int) -> Peak:
    """Scoring so many tokens in sequences of 128, with a model of one layer whose head is what is large."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, tie_word_embeddings=True,
    )  # fmt: skip
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        teacher = TeacherModel(folder, TeacherConfig(), replace(SETTINGS, max_tokens_per_forward=512))
    ids = generator.integers(0, vocabulary, (tokens // 128, 130), dtype=np.int32)
    requests = [ScoringRequest("teacher", row[:2], row[2:], top_k=K, entropy=True) for row in ids]
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for start in range(0, len(requests), 8):
        teacher.score(requests[start : start + 8])
    return Peak(resident("VmHWM") - before, 4 * tokens * vocabulary)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, first, second = sys.argv[1:]
    if name == "memory":
        found: Peak | Compared = memory(int(first), int(second))
    else:
        found = {"bare": bare, "prompt_logprobs": prompt_logprobs, "cache": cache}[name](first, int(second))
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
