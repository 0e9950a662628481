"""Runs whose teacher has another tokenizer, and whose student answers more than once; on tiny models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from orchestration.models import resolve_model
from tests.integration.launching import Series
from tests.models import make_tokenizer
from tests.tokenizers import pruned

pytestmark = pytest.mark.integration
ASKED = ("why red ?", "and the lightning ?")


@pytest.fixture(scope="module")
def finer_teacher(tmp_path_factory: pytest.TempPathFactory, tiny_untied: Path) -> Path:
    """The teacher of the other runs with fewer merges and all ids permuted: a working model of another tokenizer."""
    path = tmp_path_factory.mktemp("finer")
    tokenizer, old_ids = pruned(make_tokenizer(), 200)
    model = AutoModelForCausalLM.from_pretrained(tiny_untied, dtype=torch.float32)
    rows = torch.tensor(old_ids)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight = torch.nn.Parameter(layer.weight.detach()[rows].clone())
    model.config.vocab_size = len(old_ids)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    assert resolve_model(str(path)) == str(path)
    return path


@pytest.fixture(scope="module")
def two_turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("turns") / "train.jsonl"
    rows = [{"prompt": f"red {i} ?", "follow_ups": list(ASKED[: i % 3])} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("objective", ["sampled_reverse_kl", "cross_tokenizer"])
def test_a_student_learns_from_a_teacher_with_another_tokenizer(
    tmp_path: Path, series: Series, finer_teacher: Path, objective: str
) -> None:
    run = series.run(
        tmp_path / "run", f"teacher.model={finer_teacher}", "teacher.cross_tokenizer=true", f"objective={objective}",
        "pipeline.steps=12", "pipeline.batch_size=16", "sampling.max_tokens=24", "learner.learning_rate=3e-3",
    )  # fmt: skip
    rows = run.step_rows()
    gaps = [row["train/sampled_reverse_kl"] for row in rows]
    assert np.mean(gaps[-3:]) < 0.9 * np.mean(gaps[:3]), gaps
