"""The built-in model, converted from its package on first use."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestration.prepare.checkpoints import SMOLLM2, resolve_model
from tests.factories import student_reads
from tutelage.records.prompt import Message, Prompt
from tutelage.stops import generation_ends, stop_token_ids


@pytest.mark.integration
def test_smollm2_is_a_normal_checkpoint_that_stops() -> None:
    """ChatML, <|im_end|> as the end, tied bfloat16 weights, and an answer that ends by itself."""
    path = resolve_model(SMOLLM2)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path)
    assert model.dtype == torch.bfloat16 and model.config.tie_word_embeddings
    assert getattr(model.config, "quantization_config", None) is None
    assert len(tokenizer) == model.config.vocab_size == 49152
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert stop_token_ids(tokenizer, generation_ends(path)) == {end}
    prompt = Prompt("q", (Message("system", "You know maps."), Message("user", "What is the capital of France?")))
    ids = student_reads(tokenizer, prompt).ids
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou know maps.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    output = model.generate(torch.from_numpy(ids).long()[None], max_new_tokens=32, do_sample=False)[0, len(ids) :]
    assert output[-1] == end and "Paris" in tokenizer.decode(output)
