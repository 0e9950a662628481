"""The lab's tokenizer and its untrained models: real ones, small enough to be trained on one core in minutes.

The tokenizer is a byte-level BPE that never merges digits, so that a column of a sum is always the same tokens.
"""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from rollout.config import PromptSourceConfig
from rollout.data.column_sums import ColumnSums
from rollout.data.digit_tasks import ReversedDigits
from rollout.data.sources import load_prompts

VOCABULARY = 512
POSITIONS = 128
END = "<|end|>"
_ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
_FINAL_ANSWER = "####"
_PROBLEMS = 256  # of each task, in the tokenizer's corpus
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_untrained(folder: Path, layers: int, seed: int) -> None:
    """Write a checkpoint of a Qwen3 model with random float32 weights, with tokenizer and generation config.

    The same bytes for the same arguments, on one version of the libraries. With 3 layers 0.77 million parameters,
    with 4 layers 0.98 million; the LM head has weights of its own.
    """
    tokenizer = make_tokenizer()
    ids: dict[str, Any] = {
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
        architectures=[Qwen3ForCausalLM.__name__],
        dtype="float32",
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(torch.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)
    GenerationConfig(**ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of `VOCABULARY` ids.

    They are roles, the end of a turn, every byte, merges of the everyday questions and the tasks, and ####.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,  # and ####
        special_tokens=[*_ROLES, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_tokens([AddedToken(_FINAL_ANSWER, normalized=False)])  # no special token: it is part of an answer
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast


def _corpus() -> Iterator[str]:
    questions = resources.files("conf").joinpath("data", "everyday_train.jsonl").read_text(encoding="utf-8")
    for line in questions.splitlines():
        yield json.loads(line)["prompt"]
    for task in (ColumnSums.name, ReversedDigits.name):
        source = PromptSourceConfig(kind="digit_tasks", task=task, size=_PROBLEMS)
        for prompt in load_prompts(source):
            yield prompt.messages[-1].content
