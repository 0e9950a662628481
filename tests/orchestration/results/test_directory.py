"""The run's folder: locks, checkpoints, resumption."""

import hashlib
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from orchestration.config.schema import RecipeConfig, RecipeStage, Resume, RunConfig
from orchestration.pipeline.progress import Cursor
from orchestration.results.directory import (
    RunDirectory,
    RunState,
    kept_keys,
    latest_checkpoint,
    locate,
    open_recipe_directory,
    open_run_directory,
    read_state,
    whole_checkpoints,
)
from tutelage.files import write_json, write_text
from tutelage.settings import ConfigError


def config(tmp_path: Path, **values: object) -> tuple[RunConfig, DictConfig]:
    made = RunConfig(output_root=str(tmp_path), name="test")
    for name, value in values.items():
        setattr(made, name, value)
    return made, OmegaConf.structured(made)


def test_a_folder_in_use_is_refused_and_free_again_when_its_run_ends(tmp_path: Path) -> None:
    made = config(tmp_path, run_dir=str(tmp_path / "run"))
    directory = open_run_directory(*made)
    again = config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto)
    with pytest.raises(ConfigError, match="in use"):
        open_run_directory(*again)
    directory.close()
    open_run_directory(*again).close()


def test_another_runs_folder_is_refused_without_resume(tmp_path: Path) -> None:
    open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run"))).close()
    with pytest.raises(ConfigError, match="resume=auto"):
        locate(config(tmp_path, run_dir=str(tmp_path / "run"))[0])


def test_checkpoints_appear_whole_and_only_the_newest_stay(tmp_path: Path) -> None:
    directory = open_run_directory(*config(tmp_path))
    for step in (1, 2, 3):
        partial = directory.begin_checkpoint(step)
        (partial / "weights").write_text(str(step))
        directory.commit_checkpoint(partial, RunState(step=step, cursor=Cursor(16, (3, 5))), keep=2)
    interrupted = directory.begin_checkpoint(4)
    (interrupted / "state.json").write_text("{}")
    assert [path.name for path in sorted(directory.checkpoints.glob("*"))] == [
        "step-000002", "step-000003", "step-000004.partial",
    ]  # fmt: skip
    assert [path.name for path in directory.unusable_checkpoints()] == ["step-000004.partial"]
    newest = latest_checkpoint(directory.path)
    assert newest is not None and newest.name == "step-000003"
    assert read_state(newest) == RunState(step=3, cursor=Cursor(16, (3, 5)))
    directory.close()


def checkpointed(directory: RunDirectory, step: int, keep: int = 9) -> Path:
    return directory.commit_checkpoint(directory.begin_checkpoint(step), RunState(step=step), keep)


@given(at=st.integers(0, 400), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_state_is_none_and_the_checkpoint_before_is_gone_on_from(at: int, bit: int, cut: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = open_run_directory(*config(Path(folder)))
        older, newer = checkpointed(directory, 1), checkpointed(directory, 2)
        content = bytearray((newer / "state.json").read_bytes())
        at %= len(content)
        damaged = (
            bytes(content[:at]) if cut else bytes(content[:at]) + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        )
        (newer / "state.json").write_bytes(damaged)
        state = read_state(newer)
        assert state in (None, RunState(step=2))  # white space may change without harm
        assert latest_checkpoint(directory.path) == (older if state is None else newer)
        assert list(directory.unusable_checkpoints()) == ([newer] if state is None else [])
        directory.close()


def test_steps_beyond_six_digits_are_in_order(tmp_path: Path) -> None:
    directory = open_run_directory(*config(tmp_path))
    for step in (0, 999_999, 1_000_000, 1_000_001):
        newest = checkpointed(directory, step, keep=2)
        assert latest_checkpoint(directory.path) == newest
    assert [path.name for path in whole_checkpoints(directory.path)] == ["step-000000", "step-1000000", "step-1000001"]
    directory.close()


def test_a_checkpoint_that_was_being_replaced_comes_back(tmp_path: Path) -> None:
    first = open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run")))
    checkpointed(first, 3).rename(first.checkpoints / "step-000003.replaced")  # and killed there
    checkpointed(first, 2)
    (first.checkpoints / "step-000002.replaced").mkdir()  # killed when the new one was there
    first.close()
    again = open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto))
    assert sorted(path.name for path in again.checkpoints.iterdir()) == ["step-000002", "step-000003"]
    again.close()


def test_a_state_without_a_digest_is_that_of_an_older_version(tmp_path: Path) -> None:
    directory = open_run_directory(*config(tmp_path))
    written = checkpointed(directory, 7) / "state.json"
    write_json(written, {name: value for name, value in json.loads(written.read_text()).items() if name != "sha256"})
    assert read_state(written.parent) == RunState(step=7)
    directory.close()


def test_a_state_of_a_newer_version_says_so(tmp_path: Path) -> None:
    directory = open_run_directory(*config(tmp_path))
    written = checkpointed(directory, 1) / "state.json"
    state = json.loads(written.read_text()) | {"mood": "good"}
    del state["sha256"]
    state["sha256"] = hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
    write_json(written, state)
    with pytest.raises(ConfigError, match="newer version, whose mood"):
        latest_checkpoint(directory.path)
    directory.close()
    write_json(directory.path / "summary.json", {"status": "completed"})
    locate(config(tmp_path, resume=Resume.auto)[0])  # a neighbour's is nobody's business


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": 3}', "{}", "\udcff"])
def test_a_neighbour_with_a_damaged_summary_is_named_and_passed_over(
    text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = config(tmp_path, resume=Resume.auto)
    first = open_run_directory(*made)
    checkpointed(first, 1)
    first.close()
    (first.path / "summary.json").write_text(text, errors="surrogateescape")
    assert locate(made[0]) != first.path
    assert str(first.path) in caplog.text


def test_auto_resume_finds_the_newest_unfinished_run(tmp_path: Path) -> None:
    made = config(tmp_path, resume=Resume.auto)
    first = open_run_directory(*made)
    first.commit_checkpoint(first.begin_checkpoint(1), RunState(step=1), keep=1)
    first.close()
    assert locate(made[0]) == first.path
    write_json(first.path / "summary.json", {"status": "completed"})
    assert locate(made[0]) != first.path


def test_the_newest_unfinished_run_is_found_whatever_the_clock_said(tmp_path: Path) -> None:
    ahead = tmp_path / "test" / "2999-01-01_00-00-00"
    (ahead / "checkpoints").mkdir(parents=True)
    begun = [ahead]
    for _ in range(12):
        run = open_run_directory(*config(tmp_path, resume=Resume.never))
        checkpointed(run, 1)
        run.close()
        begun.append(run.path)
        assert locate(config(tmp_path, resume=Resume.auto)[0]) == run.path
    assert sorted(begun) == begun


def test_a_resumed_run_keeps_its_meaning(tmp_path: Path) -> None:
    open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run"))).close()
    changed, _ = config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto)
    changed.sampling.temperature = 0.5
    with pytest.raises(ConfigError, match=r"sampling\.temperature=0\.5: was 1\.0"):
        open_run_directory(changed, OmegaConf.structured(changed))
    longer, _ = config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto)
    longer.pipeline.steps = 1000
    open_run_directory(longer, OmegaConf.structured(longer)).close()


def test_all_that_differs_is_named(tmp_path: Path) -> None:
    open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run"))).close()
    changed, _ = config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto, seed=3)
    changed.learner.ranks, changed.student.lora.rank = 2, 8
    with pytest.raises(ConfigError) as caught:
        open_run_directory(changed, OmegaConf.structured(changed))
    assert [refusal.key for refusal in caught.value.refusals] == ["seed", "student.lora.rank", "learner.ranks"]


RESUMED = {
    "stage", "seed", "student", "teacher", "further_teachers",
    "data", "sampling", "objective", "pipeline.batch_size", "cold_start",
    "learner.ranks", "learner.zero_stage", "learner.dtype", "learner.learning_rate", "learner.schedule",
    "learner.warmup_steps", "learner.weight_decay", "learner.betas",
    "evaluation.prompts", "evaluation.temperature", "evaluation.max_tokens", "evaluation.seed",
}  # fmt: skip
FINISHED = {"pipeline", "learner", "evaluation", "recipe"}


@pytest.mark.parametrize("setting", ["learning_rate", "weight_decay", "warmup_steps"])
def test_what_the_optimiser_was_made_with_cannot_change(setting: str, tmp_path: Path) -> None:
    """A checkpoint restores it, so config.yaml would say what is not so."""
    open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run"))).close()
    changed, _ = config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto)
    setattr(changed.learner, setting, 3)
    with pytest.raises(ConfigError, match=rf"learner\.{setting}=3.*a resumed run keeps it"):
        open_run_directory(changed, OmegaConf.structured(changed))


def test_what_may_change_is_said(tmp_path: Path) -> None:
    open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run"))).close()
    changed, _ = config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto)
    changed.pipeline.steps, changed.rollout.max_num_seqs = 1000, 7
    directory = open_run_directory(changed, OmegaConf.structured(changed))
    assert directory.changes == [
        "rollout.max_num_seqs is 7 from here on, and was 64",
        "pipeline.steps is 1000 from here on, and was 25",
    ]
    directory.close()


@pytest.mark.parametrize("folder", ["file/below", "/proc/nothing/here"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is(folder: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for key, command in (("output_root", "output_root"), ("run_dir", "run_dir")):
        made, _ = config(tmp_path, **{key: str(tmp_path / folder)})
        with pytest.raises(ConfigError, match=f"{command}=.*(is a file|cannot be written)"):
            locate(made)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate(config(tmp_path, output_root="~/runs")[0]).parent == tmp_path / "runs" / "test"
    assert locate(config(tmp_path, run_dir="~/run")[0]) == tmp_path / "run"


def test_fields_say_until_when_they_may_change() -> None:
    assert set(kept_keys(RunConfig, "resume")) == RESUMED
    assert set(kept_keys(RunConfig, "finished")) == {key for key in RESUMED if "." not in key} | FINISHED


@pytest.mark.parametrize("old", ["states: {student_share: 1.0}", "realisation: direct", "averaging: tokens"])
def test_a_run_of_an_older_version_is_not_resumed(tmp_path: Path, old: str) -> None:
    (tmp_path / "run").mkdir()
    write_text(tmp_path / "run" / "config.yaml", f"objective: {{{old}}}\n")
    with pytest.raises(ConfigError, match=r"begun by an older version.*start anew in another run_dir"):
        open_run_directory(*config(tmp_path, run_dir=str(tmp_path / "run"), resume=Resume.auto))
    with pytest.raises(ConfigError, match="begun by an older version"):
        open_recipe_directory(tmp_path / "run", recipe(tmp_path)[1], [])


def test_a_resumed_run_keeps_its_prompts(tmp_path: Path) -> None:
    directory = open_run_directory(*config(tmp_path))
    directory.check_prompts("one")
    directory.check_prompts("one")
    with pytest.raises(ConfigError, match="PYTHONHASHSEED=0"):
        directory.check_prompts("other")
    directory.close()


def recipe(tmp_path: Path, **values: object) -> tuple[RunConfig, DictConfig]:
    return config(tmp_path, recipe=RecipeConfig(stages=[RecipeStage("a"), RecipeStage("b")]), **values)


def test_auto_resume_finds_the_newest_unfinished_recipe_and_no_plain_run(tmp_path: Path) -> None:
    plain = open_run_directory(*config(tmp_path))
    plain.commit_checkpoint(plain.begin_checkpoint(1), RunState(step=1), keep=1)
    made, composed = recipe(tmp_path, resume=Resume.auto)
    fresh = locate(made)
    assert fresh != plain.path
    directory = open_recipe_directory(fresh, composed, ["1-a", "2-b"])
    stage = config(tmp_path, run_dir=str(fresh / "1-a"))
    begun = open_run_directory(*stage)
    begun.commit_checkpoint(begun.begin_checkpoint(1), RunState(step=1), keep=1)
    for opened in (begun, directory, plain):
        opened.close()
    assert locate(made) == fresh
    assert locate(config(tmp_path, resume=Resume.auto)[0]) == plain.path
    write_json(fresh / "summary.json", {"status": "completed"})
    assert locate(made) != fresh


def test_a_recipe_and_a_plain_run_keep_apart(tmp_path: Path) -> None:
    path = tmp_path / "run"
    open_run_directory(*config(tmp_path, run_dir=str(path))).close()
    with pytest.raises(ConfigError, match="a recipe and a plain run"):
        open_recipe_directory(path, recipe(tmp_path)[1], ["1-a", "2-b"])
    other = tmp_path / "other"
    open_recipe_directory(other, recipe(tmp_path)[1], ["1-a", "2-b"]).close()
    with pytest.raises(ConfigError, match="a recipe and a plain run"):
        open_run_directory(*config(tmp_path, run_dir=str(other), resume=Resume.auto))


def test_the_stages_of_another_recipe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    open_recipe_directory(path, recipe(tmp_path)[1], ["1-a", "2-b"]).close()
    open_run_directory(*config(tmp_path, run_dir=str(path / "2-b"))).close()
    with pytest.raises(ConfigError, match="holds 2-b, which is no stage of this recipe"):
        open_recipe_directory(path, recipe(tmp_path)[1], ["1-a", "2-c"])


@pytest.mark.parametrize("content", ["name: [a\n", "name: \udcff", "- a\n- b\n", "", "a: ${b", "? {}\n: 1", "&a [*a]"])
def test_a_damaged_config_is_named(content: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    open_run_directory(*config(tmp_path, run_dir=run_dir)).close()
    (tmp_path / "run" / "config.yaml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError) as caught:
        open_run_directory(*config(tmp_path, run_dir=run_dir, resume=Resume.auto))
    assert "config.yaml" in str(caught.value)
