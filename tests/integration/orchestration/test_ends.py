"""A student whose turns end with other tokens than its teacher's, through the real command."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.integration.launching import Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

MANY = [2, *range(500, 576)]  # so many that answers come to an end


@pytest.fixture(scope="module")
def chat_teacher(tmp_path_factory: pytest.TempPathFactory, tiny_untied: Path) -> Path:
    path = tmp_path_factory.mktemp("chat")
    model = AutoModelForCausalLM.from_pretrained(tiny_untied, dtype=torch.float32)
    model.generation_config.eos_token_id = MANY
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(tiny_untied).save_pretrained(path)
    return path


@pytest.mark.parametrize("objective", ["full_reverse_kl", "sampled_ppo_clip"])
def test_one_action_in_a_whole_run(series: Series, tmp_path: Path, chat_teacher: Path, objective: str) -> None:
    """Preflight, evaluation and steps agree on it: the learner finds the engine's log-probs again."""
    run = series.run(
        tmp_path / "run", f"teacher.model={chat_teacher}", f"objective={objective}", "preflight.enabled=true",
        "pipeline.steps=2", "pipeline.batch_size=12", "pipeline.max_staleness=0", "tracking.samples=12",
        "sampling.max_tokens=24",
    )  # fmt: skip
    assert all(row["health/rollout_logprob_gap_max"] < 1e-3 and row["train/grad_norm"] > 0 for row in run.step_rows())
    ends = [sample["tokens"][-1] for sample in run.samples()]
    assert ends.count("<|im_end|>") > 12  # of 24, whichever of the ends the student would have written
    exported = GenerationConfig.from_pretrained(run.run_dir / "final")
    assert exported.eos_token_id == MANY
