"""What a teacher's scores cost: time, memory, bytes on the wire, and reading them instead.

    python -m benchmarks.scoring [--json PATH] [--quick]

Time: `TeacherModel` gives the log-probs of the response's tokens, the teacher's top 16, 16 given ids and the entropy;
- against transformers' own forward of the same sequences, padded, sorted by length, which only returns logits;
- against vLLM's `prompt_logprobs=20` (in the same process, eager, on CPU, without texts), with the top 20 here, too:
  vLLM gives them for the prompt as well, and neither given ids nor entropy. The small model has two layers of 64 and
  SmolLM2's vocabulary: what is left is what happens after the backbone;
- read from disk (`scoring.cache_dir`) against computed.
Each pair takes turns in a process of its own, in float32 on one thread; ratios are medians over neighbouring passes.
The figures are of CPU seconds, which other work on the machine moves less than wall time; the table has both.

Memory: the resident peak of scoring 2,048 and 8,192 tokens with 49,152 and 151,936 ids, beyond model and requests.
Wire: what Ray sends for a request and its signal: the pickle and its buffers. `--quick` takes fewer passes.
"""

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.report import finish, print_table
from benchmarks.scoring_paths import Compared, Peak, make_requests
from orchestration.prepare.checkpoints import SMOLLM2, resolve_model
from tutelage.records.signal import ScoringRequest, TeacherSignal

MIB = 2**20
VOCABULARY, HIDDEN = 49_152, 576  # SmolLM2-135M's
TOKENS, VOCABULARIES = (2048, 8192), (49_152, 151_936)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",
}
COMPARISONS = {
    "bare": ("bare", "smollm2", 5),
    "prompt_logprobs": ("prompt_logprobs", "small", 7),
    "prompt_logprobs, SmolLM2": ("prompt_logprobs", "smollm2", 2),
    "cache": ("cache", "smollm2", 3),
}


def measure(name: str, *arguments: object) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scoring_paths", name, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True, env=os.environ | ENVIRONMENT)
    return json.loads(result.stdout.splitlines()[-1])


def make_small_model(folder: Path, tokenizer_of: str) -> str:
    """Two layers of 64 with SmolLM2's vocabulary and tokenizer."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of, trust_remote_code=False).save_pretrained(folder)
    return str(folder)


def compare(quick: bool) -> dict[str, Compared]:
    smollm2 = resolve_model(SMOLLM2)
    with tempfile.TemporaryDirectory() as folder:
        models = {"smollm2": smollm2, "small": make_small_model(Path(folder), smollm2)}
        return {
            title: Compared(**measure(path, models[model], 2 if quick else repeats))
            for title, (path, model, repeats) in COMPARISONS.items()
        }


def wire_bytes() -> dict[str, tuple[float, float]]:
    """Bytes of a request and of its signal for each response token, by what is asked."""
    (request, *_) = (r for r in make_requests(VOCABULARY) if r.num_scored >= 64)
    bare = replace(request, support_ids=None, top_k=0, entropy=False)
    kinds = {
        "the token that came": bare,
        "and the entropy": replace(bare, entropy=True),
        "and the teacher's top 16": replace(bare, top_k=16),
        "and 16 given ids": replace(bare, support_ids=request.support_ids),
        "all of these": request,
        f"and states of {HIDDEN}": replace(bare, hidden_states=True),
    }
    tokens = request.num_scored
    return {name: (sent_bytes(kind) / tokens, sent_bytes(answer_to(kind)) / tokens) for name, kind in kinds.items()}


def answer_to(request: ScoringRequest) -> TeacherSignal:
    """A signal of the form of a real one; bytes do not depend on the numbers."""
    tokens, k = request.num_scored, request.top_k
    return TeacherSignal(
        teacher=request.teacher,
        logprobs=np.zeros(tokens, np.float32),
        entropy=np.zeros(tokens, np.float32) if request.entropy else None,
        support_ids=request.support_ids,
        support_logprobs=None if request.support_ids is None else np.zeros((tokens, 16), np.float32),
        top_ids=np.zeros((tokens, k), np.int32) if k else None,
        top_logprobs=np.zeros((tokens, k), np.float32) if k else None,
        hidden_states=np.zeros((tokens, HIDDEN), np.float32) if request.hidden_states else None,
    )


def sent_bytes(record: object) -> int:
    """Pickle and out-of-band buffers, as Ray sends them."""
    buffers: list[pickle.PickleBuffer] = []
    content = pickle.dumps(record, protocol=5, buffer_callback=buffers.append)
    return len(content) + sum(buffer.raw().nbytes for buffer in buffers)


def figures(found: Mapping[str, Compared], peaks: Mapping[tuple[int, int], Peak]) -> dict[str, float]:
    few, many, small = *TOKENS, found["prompt_logprobs"]
    largest = peaks[many, VOCABULARIES[-1]]
    return {
        "tokens_per_second_over_bare_forward": found["bare"].speedup_cpu,
        "tokens_per_second_over_prompt_logprobs": small.speedup_cpu,
        "scores_per_second_over_prompt_logprobs": small.speedup_cpu * small.scored_mask / small.tokens,
        "tokens_per_second_over_prompt_logprobs_smollm2": found["prompt_logprobs, SmolLM2"].speedup_cpu,
        "cache_hit_over_scoring": 1 / found["cache"].speedup_cpu,
        "peak_memory_8192_over_2048": max(peaks[many, v].peak_bytes / peaks[few, v].peak_bytes for v in VOCABULARIES),
        "peak_memory_over_logits": largest.peak_bytes / largest.logits_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="two passes each")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    found = compare(arguments.quick)
    peaks = {(t, v): Peak(**measure("memory", t, v)) for t in TOKENS for v in VOCABULARIES}
    times = [
        [
            title,
            c.tokens,
            c.scored_mask,
            c.ours_cpu,
            c.theirs_cpu,
            c.speedup_cpu,
            c.ours_wall,
            c.theirs_wall,
            c.speedup_wall,
        ]
        for title, c in found.items()
    ]
    columns = ["against", "tokens", "scored", "CPU s", "theirs", "ratio", "wall s", "theirs", "ratio"]
    print_table("Seconds of a pass, float32, one thread", columns, times)
    sizes = [[f"{t} x {v}", p.peak_bytes / MIB, p.logits_bytes / MIB] for (t, v), p in peaks.items()]
    print_table("Memory of scoring", ["tokens x vocabulary", "peak MiB", "all logits MiB"], sizes)
    wire = [[kind, *sizes] for kind, sizes in wire_bytes().items()]
    print_table("Bytes a response token on the wire", ["asked", "request", "signal"], wire)
    finish(figures(found, peaks), arguments.json)


if __name__ == "__main__":
    main()
