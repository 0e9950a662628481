"""How far scores of spans are from exact ones where two tokenizers meet: python -m benchmarks.boundaries.

The teacher's log-prob of a span is that of its own tokens for these bytes. The exact one, of the bytes whatever the
tokens, also counts the teacher's tokens that go on beyond a boundary: " be" begins " because". At the boundary b
behind the tokens t_1 … t_k, with p_j the place where t_j ends,

    c_b = log(1 + Σ_j<k Σ_v P(v | t_1 … t_j) / P(t_j+1 … t_k | t_1 … t_j))

over all v that begin with the bytes from p_j to b and are longer; a span from a to b has the exact log-prob that was
scored plus c_b - c_a. Over the spans of an answer that cancels but for the last boundary, behind which only the end of
the turn is written. Other ways to write what lies before are left out, so texts are taken as canonical. The identity is
that of Vieira et al., 2412.03719.

The teacher is SmolLM2-135M-Instruct on its own answers; the student's tokenizer is sentencepiece's with 32,000 pieces.

Shape suffixes: L teacher tokens of an answer, V vocabulary.
"""

import argparse
import shutil
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import mistral_common
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from transformers import AutoModelForCausalLM, LlamaTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.report import finish, print_table
from orchestration.prepare.checkpoints import SMOLLM2, read_tokenizer, resolve_model
from rollout.config import PromptSourceConfig
from rollout.data.sources import load_prompts
from scoring.cross_tokenizer.byte_alignment import Aligner
from scoring.cross_tokenizer.token_bytes import TokenBytes
from tutelage.chat import Chat

PROMPTS = PromptSourceConfig(path="pkg://conf/data/everyday_train.jsonl")
MAX_TOKENS = 48
Bytes = Sequence[bytes]


class Vocabulary:
    """A vocabulary in the order of its bytes, so that all tokens with a common beginning stand together."""

    def __init__(self, by_id: dict[int, bytes]) -> None:
        order = sorted(by_id, key=by_id.__getitem__)
        self.order = np.array(order)
        self._bytes = [by_id[token] for token in order]
        self.longest = max(map(len, self._bytes))

    def beyond(self, beginning: bytes) -> slice:
        """The tokens that begin with these bytes and are longer, as a slice of `order`."""
        return slice(bisect_right(self._bytes, beginning), bisect_left(self._bytes, beginning + b"\xff" * self.longest))


def corrections(
    probs_LV: NDArray[np.float64], ids: Sequence[int], pieces: Bytes, vocabulary: Vocabulary
) -> list[float]:
    """c_b at each boundary between tokens, [L + 1]: before the first (0) to behind the last.

    Args:
        probs_LV: P(· | t_1 … t_j), for j from 0.
        pieces: bytes of the tokens.
    """
    sums = np.concatenate([np.zeros((len(ids), 1)), probs_LV[:, vocabulary.order].cumsum(1)], 1)
    logprobs = np.log(probs_LV[np.arange(len(ids)), ids])
    found = [0.0]
    for end in range(1, len(ids) + 1):
        ratio, written, logprob = 0.0, b"", 0.0
        for start in range(end - 1, -1, -1):
            written, logprob = pieces[start] + written, logprob + logprobs[start]
            if len(written) >= vocabulary.longest:
                break
            longer = vocabulary.beyond(written)
            ratio += (sums[start, longer.stop] - sums[start, longer.start]) / np.exp(logprob)
        found.append(float(np.log1p(ratio)))
    return found


@torch.inference_mode()
def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int
) -> Iterator[tuple[list[int], NDArray[np.float64]]]:
    """Answers of the model's own in its canonical tokens, and its distributions in front of each, [L, V]."""
    teacher = TokenBytes(tokenizer, "teacher.model")
    prompts = Chat(tokenizer).render(load_prompts(PROMPTS, "data.train")[:count])
    for prompt in track(prompts, "answers", transient=True):
        ids = torch.from_numpy(prompt.ids).long()[None]
        sampled = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, max_new_tokens=MAX_TOKENS,
            pad_token_id=tokenizer.eos_token_id,
        )[0, ids.shape[1] :]  # fmt: skip
        encoded = teacher.encode(tokenizer.decode(sampled, skip_special_tokens=True))
        if encoded is not None and encoded.ids:
            whole = torch.cat([ids[0], torch.tensor(encoded.ids)])[None]
            logits = model(whole).logits[0, ids.shape[1] - 1 : -1]
            yield list(encoded.ids), logits.double().softmax(-1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=32)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    path = resolve_model(SMOLLM2, "teacher.model")
    tokenizer = read_tokenizer(path, "teacher.model", "teacher.trust_remote_code", False)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", f"{folder}/tokenizer.model")
        students = LlamaTokenizer.from_pretrained(folder, trust_remote_code=False)
    aligner = Aligner(TokenBytes(students, "student.model"), TokenBytes(tokenizer, "teacher.model"))
    vocabulary = Vocabulary(aligner.teacher.by_id)
    biases: dict[str, list[float]] = {"in front of a space": [], "elsewhere": []}
    spans, scores = [], []
    for ids, probs in answers(model, tokenizer, arguments.answers):
        pieces = [aligner.teacher.by_id[token] for token in ids]
        at = corrections(probs, ids, pieces, vocabulary)
        aligned = aligner.align(students.encode(b"".join(pieces).decode(), add_special_tokens=False))
        if aligned.teacher_ids.tolist() != ids:
            continue
        places = [0, *(np.flatnonzero(np.diff(aligned.teacher_spans)) + 1).tolist(), len(ids)]
        spans += [at[first] - at[last] for first, last in pairwise(places)]
        scores += [float(np.log(probs[range(first, last), ids[first:last]]).sum()) for first, last in pairwise(places)]
        for place in places[1:-1]:
            biases["in front of a space" if pieces[place].startswith((b" ", b"\n")) else "elsewhere"].append(at[place])
    rows = [
        (name, len(values), *map(float, (np.mean(values), np.quantile(values, 0.99), np.mean(np.array(values) > 0.1))))
        for name, values in biases.items()
    ]
    print_table(
        f"What spans are off by at boundaries, nats ({len(spans)} spans)",
        ("boundary", "boundaries", "mean", "99 % are below", "share above 0.1"), rows,
    )  # fmt: skip
    finish(
        {
            "mean_span_bias": float(np.mean(spans)),
            "mean_absolute_span_bias": float(np.mean(np.abs(spans))),
            "bias_over_score": float(np.mean(np.abs(spans)) / np.mean(np.abs(scores))),
            "p99_absolute_span_bias": float(np.quantile(np.abs(spans), 0.99)),
        },
        arguments.json,
    )


if __name__ == "__main__":
    main()
