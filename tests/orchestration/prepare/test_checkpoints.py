"""From names to checkpoints, and one clear message for every way that can fail."""

import ast
import json
import multiprocessing
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import peft
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from orchestration.prepare.checkpoints import build_once, cache_directory, read_config, read_tokenizer, resolve_model
from rollout.group import engine_fingerprint
from tutelage.settings import ConfigError
from tutelage.stops import generation_ends


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


def test_an_adapter_is_named_with_how_to_merge_it(tiny_untied: Path, tmp_path: Path) -> None:
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_untied),
        peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    folder = tmp_path / "it's an adapter"
    model.save_pretrained(folder)
    with pytest.raises(ConfigError) as caught:
        resolve_model(str(folder), "teacher.model")
    message = str(caught.value)
    assert message.startswith(f"teacher.model={folder}: is a PEFT adapter over {tiny_untied}, not a model")
    command = message[message.index("python -c") : message.rindex(" and give ")]
    subprocess.run([sys.executable, *shlex.split(command)[1:]], check=True, capture_output=True)
    merged = resolve_model(message[message.rindex(" and give ") + len(" and give ") :])
    weight = "model.layers.0.self_attn.q_proj.weight"
    assert not load_file(Path(merged) / "model.safetensors")[weight].equal(
        load_file(tiny_untied / "model.safetensors")[weight]
    )


def test_an_adapter_beside_a_whole_model_is_refused(tiny_untied: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_untied, tmp_path / "copy"))
    (path / "adapter_config.json").write_text('{"base_model_name_or_path": "other/base"}')
    with pytest.raises(ConfigError, match="which are two models"):
        resolve_model(str(path))


@pytest.mark.parametrize("text", ["{}", "{", "[]"])
def test_an_adapter_that_does_not_name_its_base_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ConfigError, match="does not say over which model"):
        resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "not a JSON object"),
        ("version https://git-lfs.github.com/spec/v1", "cannot be read as JSON"),
        ('{"model_type": "no_such_type"}', "no model that the installed transformers knows"),
        ('{"model_type": ["llama"]}', "no model that the installed transformers knows"),
        ('{"model_type": "llama", "num_hidden_layers": "many"}', "no model that the installed transformers knows"),
        ('{"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}', "set teacher.trust_remote_code=true"),
    ],
)
def test_a_config_that_cannot_be_read_is_named(text: str, problem: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(str(tmp_path), "teacher.model", "teacher.trust_remote_code", False)
    assert str(caught.value).startswith(f"teacher.model={tmp_path}") and problem in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"model": {"type": "none"}}', "\x00"])
def test_a_tokenizer_that_cannot_be_loaded_is_named(text: str, tiny_tied: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_tied, tmp_path / "copy"))
    (path / "tokenizer.json").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_tokenizer(str(path), "student.model", "student.trust_remote_code", False)
    assert str(caught.value).startswith(f"student.model={path}: its tokenizer cannot be loaded")


def test_code_that_comes_with_a_model_is_refused_without_a_question(
    tiny_tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(*_: object) -> str:
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", answered)
    path = Path(shutil.copytree(tiny_tied, tmp_path / "copy"))
    ran = tmp_path / "ran"
    (path / "own.py").write_text(
        f"from transformers import PretrainedConfig\nopen({str(ran)!r}, 'w').close()\n"
        "class Own(PretrainedConfig):\n    model_type = 'own'\n"
    )
    settings = json.loads((path / "config.json").read_text())
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.Own"}}
    (path / "config.json").write_text(json.dumps(settings | own))
    with pytest.raises(ConfigError, match=r"set student.trust_remote_code=true"):
        read_config(str(path), "student.model", "student.trust_remote_code", False)
    assert not ran.exists()
    assert generation_ends(str(path)) and engine_fingerprint(str(path)) and not ran.exists()


_LOADERS = {"from_pretrained", "from_config", "AsyncEngineArgs", "EngineArgs", "LLM"}
_NEEDS_NO_CODE = {"GenerationConfig"}  # reads JSON
_ROOMS = ("benchmarks", "diagnostics", "learner", "orchestration", "rollout", "scoring", "tutelage")


def test_whatever_loads_a_model_says_whether_its_code_is_run() -> None:
    root, silent = Path(__file__).parents[3], []
    for path in sorted(file for room in _ROOMS for file in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            said = any(word.arg == "trust_remote_code" for word in node.keywords)
            if called in _LOADERS and getattr(owner, "id", "") not in _NEEDS_NO_CODE and not said:
                silent.append(f"{path.relative_to(root)}:{node.lineno}")
    assert not silent, f"transformers asks on the terminal where trust_remote_code is not given: {silent}"
