"""Runs whose teacher has another tokenizer, and whose student answers more than once; on tiny models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.launching import Run, Series
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
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        layer.weight = torch.nn.Parameter(layer.weight.detach()[torch.tensor(old_ids)].clone())
    model.config.vocab_size = len(old_ids)
    for config in (model.config, model.generation_config):
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def brief_student(tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path) -> Path:
    """The student of the other runs, of whose answers many ids are an end: it would seldom come to one."""
    path = tmp_path_factory.mktemp("brief")
    model = AutoModelForCausalLM.from_pretrained(tiny_tied, dtype=torch.float32)
    model.generation_config.eos_token_id = [2, *range(500, 576)]
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_tied).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with none to two follow-ups."""
    path = tmp_path_factory.mktemp("turns") / "train.jsonl"
    rows = [{"prompt": f"red {i} ?", "follow_ups": list(ASKED[: i % 3]) or None} for i in range(24)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_student_learns_from_a_teacher_with_another_tokenizer(
    tmp_path: Path, series: Series, brief_student: Path, finer_teacher: Path
) -> None:
    run = series.run(
        tmp_path / "run", f"student.model={brief_student}", f"teacher.model={finer_teacher}",
        "teacher.cross_tokenizer=true", "objective=sampled_reverse_kl", "pipeline.steps=8", "pipeline.batch_size=24",
        "sampling.max_tokens=24", "learner.learning_rate=3e-3",
    )  # fmt: skip
    rows = run.step_rows()
    assert all(0 < row["teacher/merged_share"] < 1 and row["teacher/unmatched_share"] < 0.5 for row in rows)
    gaps = [row["train/sampled_reverse_kl"] for row in rows]
    assert np.mean(gaps[-3:]) < 0.9 * np.mean(gaps[:3]), gaps


@pytest.mark.parametrize("across", [False, True], ids=["its tokenizer", "another tokenizer"])
def test_several_turns(
    tmp_path: Path, series: Series, brief_student: Path, finer_teacher: Path, turns: Path, across: bool
) -> None:
    other = [f"teacher.model={finer_teacher}", "teacher.cross_tokenizer=true", "objective=cross_tokenizer"]
    run = series.run(
        tmp_path / "run", f"student.model={brief_student}", *(other if across else []), f"data.train.path={turns}",
        "teacher.context='The lightning is red.'", "pipeline.steps=2", "pipeline.batch_size=12",
        "pipeline.max_staleness=0", "tracking.samples=12",
    )  # fmt: skip
    assert run.steps() == [1, 2]
    rows = run.step_rows()
    # The learner finds the sampled log-probs of every turn again: rows and positions belong together.
    assert all(row["health/rollout_logprob_gap_max"] < 1e-3 and row["train/grad_norm"] > 0 for row in rows)
    samples = run.samples()
    asked = [sample for sample in samples if ASKED[0] in sample["response"]]
    assert any(ASKED[1] in sample["response"] for sample in asked) and len(asked) < len(samples)
    for sample in samples:
        others = [place for place, value in enumerate(sample["student_logprobs"]) if value is None]
        assert bool(others) == (sample in asked)
        assert all(sample["teacher_logprobs"][place] is None for place in others)
    check_turns(run, asked)


def check_turns(run: Run, asked: list[dict]) -> None:
    """What others wrote is the template's, and what follows it the student's own."""
    for sample in asked:
        own = [value is not None for value in sample["student_logprobs"]]
        text = "".join(token for token, mine in zip(sample["tokens"], own, strict=True) if not mine)
        assert text.count("<|im_start|>assistant\n") == text.count("<|im_start|>user\n") >= 1
        assert text.endswith("<|im_start|>assistant\n") and own[0] and own[-1], run.text()
