"""From what runs leave behind to the lab's claims and page, on files written here."""

import json
import re
from pathlib import Path

import pytest

from orchestration.lab.outcome import Outcome
from orchestration.lab.phenomena import PAIRS, PHENOMENA, Claim, Phenomenon, Variant
from orchestration.lab.table import conclude, make_table, mean_interval, weigh_claims
from tutelage.files import write_json, write_text

STEPS = 20


def evaluation(accuracy: float) -> dict:
    return {"accuracy": accuracy, "intervals": {"accuracy/column_sums": {"mean": accuracy, "low": 0.0, "high": 1.0}}}


def leave_run(folder: Path, before: float, after: float, teacher: float | None, overlap: float) -> None:
    """What a run leaves that the table reads: the overlap goes from 0.5 to `overlap` in a straight line."""
    found = {
        "student_before": evaluation(before),
        "student_after": evaluation(after),
        "teacher": None if teacher is None else evaluation(teacher),
    }
    tokens = {"rollout": 90, "scored": 70, "trained": 60}
    folder.mkdir(parents=True)
    write_json(
        folder / "summary.json", {"status": "completed", "evaluation": found, "tokens": tokens, "wall_seconds": 9}
    )
    rows = [
        {
            "policy_version": step,
            "train/loss": 1.0,
            "train/overlap_ratio": 0.5 + (overlap - 0.5) * step / STEPS,
            "train/grad_norm": 1.0,
        }
        for step in range(1, STEPS + 1)
    ]
    rows.append({"policy_version": STEPS, "eval/accuracy": after, "eval/mean_response_tokens": 9.0})
    write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed in range(3):
        leave_run(tmp_path / "good" / f"seed-{seed}", 0.4, 0.8 + 0.01 * seed, 0.9, 0.9)
        leave_run(tmp_path / "bad" / f"seed-{seed}", 0.4, 0.1 + 0.3 * seed, None, 0.4)
    return tmp_path


PHENOMENON = Phenomenon(
    "good and bad",
    "here",
    (Variant("good", ()), Variant("bad", ())),
    (
        Claim("good gains", lambda o: o["good"].gain),
        Claim("bad gains", lambda o: o["bad"].gain),
        Claim("good loses", lambda o: -o["good"].gain),
        Claim("overlap rises", lambda o: o["good"].change("train/overlap_ratio")),
    ),
)


def outcomes(root: Path) -> dict[int, dict[str, Outcome]]:
    return {seed: {name: Outcome.read(root / name / f"seed-{seed}") for name in ("good", "bad")} for seed in range(3)}


def test_an_outcome_is_read_from_what_a_run_leaves(root: Path) -> None:
    outcome = Outcome.read(root / "good" / "seed-1")
    assert (outcome.accuracy_before, outcome.accuracy_after, outcome.accuracy_teacher) == (0.4, 0.81, 0.9)
    assert outcome.recovery == pytest.approx(0.41 / 0.5)
    assert outcome.teacher_tokens == 70
    # The means of steps 1 to 5 and 16 to 20 of a line that rises by 0.02 a step.
    assert outcome.first("train/overlap_ratio") == pytest.approx(0.56)
    assert outcome.change("train/overlap_ratio") == pytest.approx(15 * 0.02)
    assert Outcome.read(root / "bad" / "seed-0").recovery is None


def test_a_recipe_is_read_from_its_stages(root: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    leave_run(recipe / "1-cold_start", 0.2, 0.5, 0.9, 0.9)
    leave_run(recipe / "2-distil", 0.5, 0.8, 0.9, 0.9)
    for stage in ("1-cold_start", "2-distil"):
        write_text(recipe / stage / "config.yaml", "")
    outcome = Outcome.read(recipe)
    assert (outcome.accuracy_before, outcome.accuracy_started, outcome.accuracy_after) == (0.2, 0.5, 0.8)
    assert outcome.teacher_tokens == 140


def test_a_claim_holds_where_its_interval_is_above_zero(root: Path) -> None:
    verdicts = {finding.claim: finding.verdict for finding in weigh_claims(PHENOMENON, outcomes(root))}
    assert verdicts == {
        "good gains": "holds", "bad gains": "open", "good loses": "does not hold", "overlap rises": "holds",
    }  # fmt: skip


def test_the_interval_is_students() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])  # t = 4.303, s = 1
    assert (interval.mean, interval.low) == (2.0, pytest.approx(2 - 4.302653 / 3**0.5))


def test_the_page_and_the_figures_are_written(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestration.lab.page.PHENOMENA", (PHENOMENON,))
    conclude([PHENOMENON], ["good", "bad"], range(3), root)
    content = json.loads((root / "lab.json").read_text())
    assert content["runs"]["good"]["gap recovery"]["mean"] == pytest.approx(0.82)
    assert "gap recovery" not in content["runs"]["bad"]
    page = (root / "lab.html").read_text()
    assert "good gains" in page and "does not hold" in page and page.count("<svg") == 6
    assert page.count('<i style="background: #') == 2  # one legend for all charts
    assert "1 does not hold" in page and "2 of 4 claims hold" in page
    assert not re.search(r"https?://|@import|url\(", page)
    assert all(address.startswith(("#", "data:")) for address in re.findall(r'(?:src|href)="([^"]*)"', page))


@pytest.mark.parametrize(
    ("names", "seeds", "words"), [(["naive"], [0, 1], "no phenomenon"), ([], [1], "two different"), ([], [1, 1], "two")]
)
def test_what_cannot_be_shown_is_refused(names: list[str], seeds: list[int], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        make_table(names, seeds, tmp_path)


def test_variants_of_one_name_are_one_run() -> None:
    every = [*PAIRS, *(variant for phenomenon in PHENOMENA for variant in phenomenon.variants)]
    by_name = {variant.name: variant for variant in every}
    assert all(by_name[variant.name] == variant for variant in every)
    assert len(PAIRS) >= 10
