"""Real tokenizers that differ: a model's own with its last merges taken out, and those that mistral_common ships."""

import json
import shutil
from pathlib import Path

import mistral_common
import numpy as np
from tokenizers import Tokenizer
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_DATA = Path(mistral_common.__file__).parent / "data"


def pruned(tokenizer: PreTrainedTokenizerBase, merges: int, seed: int = 0) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A byte-level BPE without its last merges and with all ids permuted; and the old id of each new one.

    It cuts words more finely. A model with its embedding's rows in the order of the old ids works with it.
    """
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    model, added = described["model"], described["added_tokens"]
    dropped = {_joined(pair) for pair in model["merges"][len(model["merges"]) - merges :]}
    model["merges"] = model["merges"][: len(model["merges"]) - merges]
    dropped -= {_joined(pair) for pair in model["merges"]}
    every = {**model["vocab"], **{entry["content"]: entry["id"] for entry in added}}
    kept = sorted(old for piece, old in every.items() if piece not in dropped)
    old_ids = np.random.default_rng(seed).permutation(kept).tolist()
    new = {old: index for index, old in enumerate(old_ids)}
    model["vocab"] = {piece: new[old] for piece, old in model["vocab"].items() if old in new}
    for entry in added:
        entry["id"] = new[entry["id"]]
    described["added_tokens"] = sorted(added, key=lambda entry: entry["id"])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(described)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        model_max_length=tokenizer.model_max_length,
    )
    fast.chat_template = tokenizer.chat_template
    return fast, old_ids


def _joined(pair: list[str] | str) -> str:
    return "".join(pair.split(" ") if isinstance(pair, str) else pair)


def sentencepiece(folder: Path) -> LlamaTokenizer:
    """32,000 pieces with byte fallback; it puts a space before every text."""
    shutil.copy(_DATA / "tokenizer.model.v1", folder / "tokenizer.model")
    return LlamaTokenizer.from_pretrained(folder)
