"""Pages written from the folders of runs, recipes and diagnoses."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import wandb

from orchestration.config.schema import TrackingConfig, WandbMode
from orchestration.report import main
from orchestration.results.pages import NoReport, write_report
from orchestration.results.samples import Sample
from orchestration.results.tracker import Tracker, read_metrics, read_samples
from tests.diagnostics import report_examples as examples

SAMPLE = Sample(
    prompt_id="p",
    sample_index=0,
    origin="student",
    prompt="7+8=",
    response="15",
    reward=1.0,
    tokens=("15",),
    student_logprobs=(-0.5,),
    teacher_logprobs=(-0.25,),
    mean_log_ratio=0.25,
    teacher_top=((("15", -0.5, -0.25),),),
)


def make_run(folder: Path, status: str | None = "completed") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: lab/compatible\npipeline:\n  steps: 3\n")
    tracker = Tracker(folder, TrackingConfig(wandb=WandbMode.disabled), {})
    tracker.log(1, {"train/loss": 0.5})
    tracker.log_samples(1, [SAMPLE])
    tracker.close(succeeded=True)
    if status is not None:
        (folder / "summary.json").write_text(json.dumps(examples.summary(status)))
    return folder


@pytest.mark.parametrize(
    ("status", "title"),
    [("completed", "Accuracy rose"), ("interrupted", "Interrupted after step 3 of 3"), (None, "step 1 of 3 so far")],
)
def test_a_run_has_its_page_beside_its_files(tmp_path: Path, status: str | None, title: str) -> None:
    folder = make_run(tmp_path / "run", status)
    page = write_report(folder)
    assert page == folder / "report.html" and not list(folder.glob("*.partial"))
    assert title in page.read_text("utf-8") and "step 1: p" in page.read_text("utf-8")


def test_a_run_that_was_killed_in_a_line_has_a_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", None)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"policy_version": 2, "train/lo')
    assert "step 1 of 3 so far" in write_report(folder).read_text("utf-8")


def test_the_preflight_is_shown_where_there_was_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "preflight.json").write_text(json.dumps(examples.diagnosis()["preflight"]))
    assert "train and held-out overlap" in write_report(folder).read_text("utf-8")


def test_a_diagnosis_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "diagnosis.json").write_text(json.dumps(examples.diagnosis()))
    assert "Go, after a cold start" in write_report(tmp_path).read_text("utf-8")


def test_a_recipe_and_its_stages_have_pages(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: two\n")
    stage = make_run(tmp_path / "1-warm")
    with pytest.raises(NoReport, match=r"no summary\.json yet; give the folder of one of its stages"):
        write_report(tmp_path)
    row = {"name": "warm", "stage": "distil", "status": "completed", "folder": "1-warm", "summary": examples.summary()}
    recipe = {"status": "completed", "wall_seconds": 9.0, "stages": [row]}
    (tmp_path / "summary.json").write_text(json.dumps(recipe))
    assert "1-warm/report.html" in write_report(tmp_path).read_text("utf-8")
    assert (stage / "report.html").is_file()


def test_another_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path)])
    with pytest.raises(SystemExit) as refusal:
        main()
    assert "neither a run (config.yaml) nor a diagnosis (diagnosis.json) is there" in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_samples_come_back_by_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    tracker = Tracker(folder, TrackingConfig(wandb=WandbMode.disabled), {}, from_version=1)
    tracker.log_samples(12, [replace(SAMPLE, prompt_id="q")] * 2)
    tracker.close(succeeded=True)
    found = read_samples(folder)
    assert {step: [item["prompt_id"] for item in items] for step, items in found.items()} == {1: ["p"], 12: ["q", "q"]}
    assert found[1] == [json.loads(json.dumps(asdict(SAMPLE)))]


def test_a_response_may_hold_any_end_of_line_and_a_damaged_line_is_left_out(tmp_path: Path) -> None:
    folder, odd = make_run(tmp_path / "run"), "a\u2028b\u0085c\u2029\x0b\r\n"
    tracker = Tracker(folder, TrackingConfig(wandb=WandbMode.disabled), {}, from_version=1)
    tracker.log_samples(2, [replace(SAMPLE, response=odd), SAMPLE])
    tracker.close(succeeded=True)
    assert [item["response"] for item in read_samples(folder)[2]] == [odd, "15"]
    file = folder / "samples" / "step-000002.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    assert [item["response"] for item in read_samples(folder)[2]] == [odd]


def test_a_resumed_run_forgets_the_steps_that_it_does_again(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"policy_version": 2, "train/loss": 0.25}\n{"policy_version": 3, "tra')
    Tracker(folder, TrackingConfig(wandb=WandbMode.disabled), {}, from_version=1).close(succeeded=True)
    assert read_metrics(folder) == [{"policy_version": 1, "train/loss": 0.5}]


def test_a_damaged_row_is_dropped_alone_and_samples_go_with_their_step(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_bytes(
        b'{"policy_version": 1, "train/loss": 0.5}\n{"policy_ver\xffion": 2}\n[2]\n{"train/loss": 1}\n'
        b'{"policy_version": 3, "train/loss": 0.25}\n'
    )
    assert [row["policy_version"] for row in read_metrics(folder)] == [1, 3]
    tracker = Tracker(folder, TrackingConfig(wandb=WandbMode.disabled), {}, from_version=1)
    tracker.log_samples(2, [SAMPLE])
    tracker.log_samples(1_000_000, [SAMPLE])
    tracker.close(succeeded=False)
    assert list(read_samples(folder)) == [1, 2, 1_000_000]
    Tracker(folder, TrackingConfig(wandb=WandbMode.disabled), {}, from_version=2).close(succeeded=True)
    assert list(read_samples(folder)) == [1, 2]


def test_the_page_goes_to_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    page = write_report(make_run(tmp_path / "run"))
    tracker = Tracker(tmp_path / "run", TrackingConfig(wandb=WandbMode.offline), {"name": "e"}, from_version=1)
    tracker.log_samples(2, [SAMPLE])
    tracker.log_report(page)
    tracker.close(succeeded=True)
    media = {path.suffix for path in (tmp_path / "run" / "wandb").rglob("media/**/*.*")}
    assert media == {".html", ".json"} and wandb.run is None
    (kept,) = (tmp_path / "run" / "wandb").rglob("media/html/*.html")
    assert kept.read_text("utf-8") == page.read_text("utf-8")
