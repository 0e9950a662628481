"""What a run does with the checks of its preflight."""

import asyncio
import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from transformers import AutoModelForCausalLM

from diagnostics.check import Check, Status
from orchestration.config.compose import build, register_schema
from orchestration.measure.preflight import Preflight, model_size
from orchestration.prepare.inputs import prepare
from orchestration.prepare.plan import host_memory_gib
from orchestration.results.directory import open_run_directory
from orchestration.runs import run as run_module
from orchestration.runs.run import Run

GOOD = Check("canary", Status.passed, "they agree")
DOUBT = Check("chat templates", Status.warned, "they differ [here]", "give both one")
BAD = Check("teacher differs", Status.failed, "KL is 0", "choose another teacher")


@pytest.fixture
def overrides(tmp_path: Path, tiny_tied: Path, tiny_untied: Path) -> list[str]:
    for name in ("train", "heldout"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"prompt": f"Why {name}?"}) + "\n")
    return [
        f"student.model={tiny_tied}", f"teacher.model={tiny_untied}", "teacher.context=null", "tracking=disabled",
        f"data.train.path={tmp_path}/train.jsonl", f"data.heldout.path={tmp_path}/heldout.jsonl",
        "rollout.max_model_len=256", f"run_dir={tmp_path}/run",
    ]  # fmt: skip


def make_run(overrides: list[str]) -> Run:
    register_schema()
    with initialize_config_module(version_base="1.3", config_module="conf"):
        composed = compose("config", overrides=overrides)
    config = build(composed)
    return Run(config, prepare(config), open_run_directory(config, composed), None, asyncio.wait_for)  # type: ignore[arg-type]


def outcome(run: Run, checks: list[Check], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the run goes on after these checks; no worker is asked."""

    async def found(*_: object) -> Preflight:
        return Preflight(checks, 1.5)

    monkeypatch.setattr(run_module, "run_preflight", found)
    return asyncio.run(run._passes_preflight(None))  # type: ignore[arg-type]


def test_warnings_are_printed_and_the_run_goes_on(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(overrides)
    assert outcome(run, [GOOD, DOUBT], monkeypatch)
    text = capsys.readouterr().out
    assert "they differ [here]" in text and "give both one" in text and "they agree" not in text
    kept = json.loads((run.directory.path / "preflight.json").read_text())
    assert kept["seconds"] == 1.5 and [row["status"] for row in kept["checks"]] == ["pass", "warn"]
    assert kept["checks"][1] == {**DOUBT.__dict__, "status": "warn"}


def test_a_failure_ends_the_run_with_all_checks_and_what_to_do(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not outcome(make_run(overrides), [GOOD, BAD], monkeypatch)
    text = capsys.readouterr().out
    assert "they agree" in text and "choose another teacher" in text and "preflight.enabled=false" in text


def test_a_run_that_is_resumed_or_told_not_to_is_not_checked(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert outcome(make_run([*overrides, "preflight.enabled=false"]), [BAD], monkeypatch)
    resumed = make_run([*overrides, f"run_dir={overrides[-1].removeprefix('run_dir=')}-2"])
    resumed.recorder.checkpoint = Path("step-000001")
    assert outcome(resumed, [BAD], monkeypatch)


def test_sizes_are_those_of_the_model(tiny_tied: Path, tiny_untied: Path) -> None:
    for path in (tiny_tied, tiny_untied):
        model, size = AutoModelForCausalLM.from_pretrained(path), model_size(str(path), False)
        assert size.parameters == sum(p.numel() for p in model.parameters())
        assert size.head == model.lm_head.weight.numel() and size.vocabulary == 576
        assert size.cache == 2 * 2 * 2 * 32  # keys and values, layers, heads, head size
    assert 0.5 < host_memory_gib() < 100_000
