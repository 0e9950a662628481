"""Tiny Llama checkpoints with a real byte-level tokenizer, made on the spot: what the tests run on."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOKENIZER_VOCABULARY = 576  # ids of the tokenizer
PADDED_VOCABULARY = 640  # rows of the embedding when it is padded

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

CORPUS = """
The quick brown fox jumps over the lazy dog while seven wizards quietly examine a puzzling box of jade
jewels. Every morning the baker mixes flour, water, salt and yeast, waits an hour, and then shapes round
loaves for the oven. Light travels faster than sound, so we always see the lightning before we hear the
thunder roll across the valley. A river begins as a small spring in the mountains and grows as other streams
join it on its way down to the sea. Please answer the following question with one short sentence: what is
the capital of France, and why is it famous? You are a helpful assistant. Add the numbers 12, 345, 6789 and
1024, then write down the result step by step. Numbers: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20
21 22 23 24 25 30 40 50 60 70 80 90 100 200 500 1000. Children learn to speak by listening, by trying, by
making mistakes and by being gently corrected again and again. When the student writes an answer of its own,
the teacher marks each word, and the student slowly comes to agree. Winter nights are long and cold; summer
days are warm and bright; spring and autumn share the weather between them. def add(left, right): return
left + right  # a small function that returns the sum of its two arguments Trees take carbon dioxide from
the air, keep the carbon in their wood, and give the oxygen back to the world. The old library keeps
thousands of books about history, music, science, gardening, travel, cooking and mathematics. To boil an
egg, place it into hot water for eight minutes, cool it under the tap, and remove the shell carefully.
Gravity pulls every object towards every other; the heavier and the nearer they are, the stronger is the
pull.
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of `TOKENIZER_VOCABULARY` ids with a ChatML template; <|im_end|> ends a turn."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCABULARY,
        min_frequency=1,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=512,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_tiny_model(
    directory: Path,
    *,
    tied: bool,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    padded: bool = False,
    std: float = 0.15,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> Path:
    """Write a two-layer Llama checkpoint with its tokenizer and return its directory; deterministic by seed.

    Args:
        tied: the LM head shares the embedding.
        padded: the embedding has `PADDED_VOCABULARY` rows, more than the tokenizer has ids.
        std: of every weight matrix; large enough that distributions are not flat.
        tokenizer: the model's, if not `make_tokenizer`'s.
    """
    tokenizer = tokenizer or make_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = LlamaConfig(
        vocab_size=PADDED_VOCABULARY if padded else len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=std,
        tie_word_embeddings=tied,
        **ids,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(dtype)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(directory, safe_serialization=True)
    tokenizer.save_pretrained(directory)
    return directory
