"""Reinforcement through the real command: a tiny random model learns to say a word from a verifier's rewards alone."""

import json
import signal
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.launching import Launched, Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

Launch = Callable[..., Launched]
SAMPLES = 8
REINFORCE = (
    "stage=reinforce", "objective=grpo", "data.verifier=exact", f"sampling.samples_per_prompt={SAMPLES}",
    "sampling.max_tokens=1", "evaluation.max_tokens=1", "checkpoint.every=0", "cluster.cpus=4",
    "sampling.temperature=1", "evaluation.temperature=1", "tracking.samples=64",
)  # fmt: skip
LEARNING = ("pipeline.batch_size=64", "pipeline.steps=15", "learner.learning_rate=3e-3", "learner.warmup_steps=0")
QUESTIONS = [f"{a} {b} ?" for a in ("red", "blue", "green", "small") for b in ("old", "new", "warm", "large")]


@pytest.fixture(scope="module")
def sometimes_said(tiny_tied: Path) -> str:
    """A word that the random model answers now and then, whatever the question: its answers are one token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tied)
    model = AutoModelForCausalLM.from_pretrained(tiny_tied, dtype=torch.float32)
    chance: dict[str, float] = {}
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            probabilities = model(**ids).logits[0, -1].softmax(-1).tolist()
        for token, probability in enumerate(probabilities):
            word = tokenizer.decode([token], skip_special_tokens=True).strip().casefold()
            if word.isascii() and word.isalpha():
                chance[word] = chance.get(word, 0.0) + probability / len(QUESTIONS)
    return min(chance, key=lambda word: abs(chance[word] - 0.04))


@pytest.fixture(scope="module")
def settings(settings: list[str], tmp_path_factory: pytest.TempPathFactory, sometimes_said: str) -> list[str]:
    folder = tmp_path_factory.mktemp("questions")
    for name, questions in (("train", QUESTIONS[:12]), ("heldout", QUESTIONS[12:])):
        rows = [{"prompt": question, "answer": sometimes_said} for question in questions]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [f"data.{name}.path={folder}/{name}.jsonl" for name in ("train", "heldout")]
    return [*settings, *paths, *REINFORCE]


def test_rewards_rise_without_a_teacher(series: Series, tmp_path: Path) -> None:
    run = series.run(tmp_path / "run", *LEARNING, "pipeline.max_replaced_groups=8")
    rows = run.step_rows()
    accuracies = [row["rollout/accuracy"] for row in rows]
    # Replaced groups carry no reward, so those that are trained start above the model's own 0.04.
    assert accuracies[0] < 0.4 and min(accuracies[-3:]) > 0.8, accuracies
    evaluation = run.summary()["evaluation"]
    assert evaluation["student_before"]["accuracy"] <= 0.5 and evaluation["student_after"]["accuracy"] == 1
    assert evaluation["teacher"] is None and run.summary()["gap_recovery"] is None
    assert {evaluation[f"student_{when}"]["reverse_kl"] for when in ("before", "after")} == {None}
    assert not [name for row in run.rows() for name in row if name.startswith("teacher/") or "kl" in name]
    assert run.summary()["tokens"]["scored"] == 0
    logs = {path.stem for path in (run.run_dir / "logs").iterdir()}
    assert not [name for name in logs if name.startswith(("scoring", "reference", "teacher"))], logs
    assert all(0 <= row["rollout/staleness_max"] <= 1 for row in rows)


def test_groups_without_spread_are_replaced_within_the_limit_and_counted(series: Series, tmp_path: Path) -> None:
    limit, groups, steps = 5, 2, 4
    run = series.run(
        tmp_path / "run", f"pipeline.batch_size={groups * SAMPLES}", f"pipeline.steps={steps}",
        f"pipeline.max_replaced_groups={limit}",
    )  # fmt: skip
    rows = run.step_rows()
    replaced = [row["rollout/groups_without_spread_replaced"] for row in rows]
    assert replaced == sorted(replaced) and replaced[-1] == run.summary()["counts"]["groups_without_spread_replaced"]
    assert 0 < replaced[-1] <= limit * steps
    trained = groups * SAMPLES * steps
    assert run.summary()["tokens"] == {"trained": trained, "scored": 0, "rollout": trained + SAMPLES * replaced[-1]}
    for _, batch in groupby(enumerate(run.samples()), key=lambda pair: pair[0] // (groups * SAMPLES)):
        samples = [sample for _, sample in batch]
        for first in range(0, len(samples), SAMPLES):
            group = samples[first : first + SAMPLES]
            assert len({sample["prompt_id"] for sample in group}) == 1
            assert [sample["sample_index"] for sample in group] == list(range(SAMPLES))


def test_the_classic_form_with_a_reference_is_marked_by_the_reference_alone(series: Series, tmp_path: Path) -> None:
    pull = ("objective.task_reward.share=0.05", "objective.reference.model=student")
    run = series.run(tmp_path / "run", "objective=grpo_classic", *pull, *LEARNING, "pipeline.steps=6")
    rows = run.step_rows()
    first, *later = (abs(row["train/sampled_reverse_kl"]) for row in rows)
    assert first < 1e-4 < min(later)  # the student is its reference until it has learned
    assert rows[-1]["rollout/accuracy"] > rows[0]["rollout/accuracy"] + 0.3
    assert run.summary()["tokens"]["scored"] == run.summary()["tokens"]["rollout"] > 0
    assert run.summary()["evaluation"]["teacher"] is None
    logs = {path.stem for path in (run.run_dir / "logs").iterdir()}
    assert "reference-0" in logs and "scoring-0" not in logs


@pytest.mark.faults
def test_a_killed_run_resumes_bit_for_bit(launch: Launch, series: Series, tmp_path: Path) -> None:
    strict = (
        "pipeline.max_staleness=0", "pipeline.steps=6", "checkpoint.every=2", f"pipeline.batch_size={2 * SAMPLES}",
        "pipeline.max_replaced_groups=1000",
    )  # fmt: skip
    whole = series.run(tmp_path / "whole", *strict)
    killed = launch(tmp_path / "run", *strict)
    killed.wait_for_step(3)
    killed.kill(signal.SIGKILL)
    killed.process.wait(30)
    resumed = series.run(tmp_path / "run", *strict, "resume=auto")
    assert resumed.steps() == whole.steps() and resumed.trained_prompts() == whole.trained_prompts()
    assert resumed.summary()["counts"] == whole.summary()["counts"]
    ours, theirs = (load_file(run.run_dir / "final" / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
