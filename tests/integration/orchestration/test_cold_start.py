"""Cold starts through the real command: on the data's completions, then on the answers of what came out of it."""

import json
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.launching import WORDS, Launched, Run, Series

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

Launch = Callable[..., Launched]
COLD_START = ("stage=cold_start", "objective=supervised", "sampling.max_tokens=8", "pipeline.batch_size=8")
FROM_DATA = (*COLD_START, "objective.sequences.other_source=dataset", "pipeline.steps=20", "checkpoint.every=5")
FROM_TEACHER = (*COLD_START, "pipeline.steps=20", "sampling.samples_per_prompt=2", "data.verifier=exact")
ANSWER = "warm"


@pytest.fixture(scope="module")
def settings(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One answer to every question: what a random model of two layers can learn in twenty steps."""
    folder = tmp_path_factory.mktemp("questions")
    for name, count in (("train", 40), ("heldout", 8)):
        rows = [
            {"prompt": f"{name} {WORDS[i % 8]} {WORDS[i // 8]} ?", "completion": ANSWER, "answer": ANSWER}
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [f"data.{name}.path={folder}/{name}.jsonl" for name in ("train", "heldout")]
    return [*settings, *data, "evaluation.prompts=8", "data.verifier=exact"]


@pytest.fixture(scope="module")
def from_data(series: Series, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return series.run(tmp_path_factory.mktemp("from_data") / "run", *FROM_DATA, "evaluation.every=10")


def losses(run: Run) -> list[float]:
    return [row["train/loss"] for row in run.rows() if "train/loss" in row]


def sequences(run: Run) -> list[dict]:
    return [json.loads(line) for line in (run.run_dir / "sequences.jsonl").read_bytes().splitlines()]


def test_the_datas_completions_are_learned_without_a_teacher(from_data: Run) -> None:
    summary = from_data.summary()
    assert summary["status"] == "completed" and summary["tokens"]["rollout"] == 0 == summary["tokens"]["scored"]
    assert summary["counts"]["sequences_kept"] == 40 and sum(summary["counts"].values()) == 40
    assert "40 kept" in from_data.text() and "4 epochs" in from_data.text()
    found = losses(from_data)
    assert len(found) == 20 and found[-1] < 0.2 * found[0]
    before, after = (summary["evaluation"][f"student_{when}"] for when in ("before", "after"))
    assert before["accuracy"] < 0.5 < after["accuracy"]  # the engines have the trained weights
    assert summary["evaluation"]["teacher"] is before["reverse_kl"] is after["reverse_kl"] is None
    assert not [name for row in from_data.rows() for name in row if name.startswith("teacher/") or "gap" in name]
    logs = {path.stem for path in (from_data.run_dir / "logs").iterdir()}
    assert not [name for name in logs if name.startswith(("scoring", "teacher"))]


def test_every_epoch_trains_every_prompt_once(from_data: Run) -> None:
    rows = [json.loads(line) for line in (from_data.run_dir / "metrics.jsonl").read_text().splitlines()]
    trained = sum(row["train/loss_tokens"] for row in rows if "train/loss" in row)
    assert trained == 4 * sum(len(item["response_ids"]) for item in sequences(from_data))


@pytest.mark.faults
def test_a_killed_cold_start_resumes_bit_for_bit(
    from_data: Run, launch: Launch, series: Series, tmp_path: Path
) -> None:
    killed = launch(tmp_path / "run", *FROM_DATA, "evaluation.every=10")
    killed.wait_for_step(7)
    killed.kill(signal.SIGKILL)
    killed.process.wait(30)
    resumed = series.run(tmp_path / "run", *FROM_DATA, "evaluation.every=10", "resume=auto")
    assert resumed.steps() == from_data.steps() and losses(resumed) == losses(from_data)
    ours, theirs = (load_file(run.run_dir / "final" / "model.safetensors") for run in (resumed, from_data))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_teachers_correct_answers_are_learned_and_the_rest_is_counted(
    from_data: Run, series: Series, tmp_path: Path
) -> None:
    teacher = f"teacher.model={from_data.run_dir / 'final'}"
    run = series.run(tmp_path / "run", *FROM_TEACHER, teacher, "evaluation.teacher=true")
    found, summary = sequences(run), run.summary()
    assert len(found) == 80 and {item["origin"] for item in found} == {"teacher"}
    verdicts = Counter(item["verdict"] for item in found)
    assert summary["counts"] == {f"sequences_{name}": verdicts[name] for name in (
        "kept", "truncated", "incorrect", "repetitive", "duplicate",
    )}  # fmt: skip
    kept = [item for item in found if item["verdict"] == "kept"]
    assert kept and {item["reward"] for item in kept} == {1.0}
    assert len({(item["prompt_id"], item["response"]) for item in kept}) == len(kept) <= 40
    assert summary["tokens"]["rollout"] == sum(len(item["response_ids"]) for item in found)
    last = [row for row in run.rows() if "train/loss" in row][-1]
    assert last["rollout/sequences_kept"] == len(kept) and last["rollout/on_policy_fraction"] == 0
    before, after, of_teacher = (summary["evaluation"][r] for r in ("student_before", "student_after", "teacher"))
    assert after["accuracy"] > before["accuracy"] and of_teacher["accuracy"] > 0.5
    assert after["reverse_kl"] < before["reverse_kl"]  # exact, though no step was told the teacher's scores


def test_a_teacher_that_is_never_right_ends_the_run_with_the_counts(
    series: Series, tmp_path: Path, tiny_untied: Path
) -> None:
    run = series.run(tmp_path / "run", *FROM_TEACHER, f"teacher.model={tiny_untied}", exit_code=1)
    assert "no sequence is left to learn from (0 kept" in run.text() and "Traceback" not in run.text()
    assert run.summary()["status"] == "failed" and len(sequences(run)) == 80
