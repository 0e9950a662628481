"""From names to checkpoints, and one clear message for every way that can fail."""

import multiprocessing
import shutil
from pathlib import Path

import pytest

from orchestration.prepare.checkpoints import build_once, cache_directory, resolve_model


def write_slowly(directory: Path) -> None:
    for name in ("a", "b", "c"):
        (directory / name).write_text(str(multiprocessing.current_process().pid))


def race(target: str, barrier: object) -> None:
    barrier.wait()  # type: ignore[attr-defined]
    build_once(Path(target), write_slowly)


def test_two_processes_build_one_whole_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    target, barrier = tmp_path / "cache" / "model", context.Barrier(4)
    processes = [context.Process(target=race, args=(str(target), barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert len({path.read_text() for path in target.iterdir()}) == 1
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").touch()
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        build_once(tmp_path / "cache" / "model", fail)
    assert list((tmp_path / "cache").iterdir()) == []


def test_cache_directory_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("TUTELAGE_CACHE")
    assert cache_directory() == Path.home() / ".cache" / "tutelage"


def test_local_checkpoint(tiny_tied: Path) -> None:
    assert resolve_model(str(tiny_tied)) == str(tiny_tied)


@pytest.mark.parametrize(
    ("remove", "problem"),
    [
        ("config.json", "no config.json"),
        ("model.safetensors", "needs *.safetensors weights, found none"),
        ("tokenizer.json", "no tokenizer in it"),
    ],
)
def test_incomplete_checkpoints(remove: str, problem: str, tiny_tied: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_tied, tmp_path / "copy")
    (path / remove).unlink()
    with pytest.raises(ValueError) as caught:
        resolve_model(str(path), "student.model")
    assert str(caught.value).startswith(f"student.model={path}: ") and problem in str(caught.value)


def test_pickled_weights_are_refused(tiny_tied: Path, tmp_path: Path) -> None:
    path = shutil.copytree(tiny_tied, tmp_path / "copy")
    (path / "model.safetensors").rename(path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model.bin\), which are never loaded"):
        resolve_model(str(path))


def test_missing_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"teacher\.model='': is empty"):
        resolve_model("", "teacher.model")
    with pytest.raises(ValueError, match=r"teacher.model=.*nowhere: no such directory"):
        resolve_model("./nowhere", "teacher.model")
    with pytest.raises(ValueError, match=r"teacher.model=nobody/nothing: .*the hub cannot be reached"):
        resolve_model("nobody/nothing", "teacher.model")
    with pytest.raises(ValueError, match=r"teacher.model=nobody/not a name: no such directory"):
        resolve_model("nobody/not a name", "teacher.model")
