"""What a stage hands to the next one: a checkpoint directory, and the manifest that says what it is.

<stage's folder>/final/           a Hugging Face checkpoint
<stage's folder>/artifact.json    written last: where it lies, the stage is over and its model is whole
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tutelage.files import differences, hashes_of, sha256, write_json
from tutelage.settings import ConfigError, Refusal

CHECKPOINT = "final"
MANIFEST = "artifact.json"
_CONFIG = "config.yaml"


@dataclass(frozen=True)
class Artifact:
    """What a completed stage left behind, and from what it was made."""

    stage: str  # its name in the recipe
    kind: str  # what the stage does
    base_model: str  # the model that the first of the stages behind this one began with, as configured
    config_sha256: str  # of the stage's config.yaml
    files: dict[str, str]  # path within the stage's folder -> SHA-256


def seal(folder: Path, stage: str, kind: str, base_model: str) -> Artifact:
    """Write the manifest of a stage that is completed."""
    artifact = Artifact(stage, kind, base_model, sha256(folder / _CONFIG), _hashes(folder))
    write_json(folder / MANIFEST, asdict(artifact))
    return artifact


def is_sealed(folder: Path) -> bool:
    return (folder / MANIFEST).is_file()


def verify(folder: Path) -> Artifact:
    """Read the manifest of a completed stage, once every file is known to be as it was then.

    Raises:
        ConfigError: a file is missing, new or altered.
    """
    artifact = Artifact(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
    expected = artifact.files | {_CONFIG: artifact.config_sha256}
    config = folder / _CONFIG
    actual = _hashes(folder) | ({_CONFIG: sha256(config)} if config.is_file() else {})
    problems = differences(expected, actual)
    if problems:
        fix = (
            f"not what the stage {artifact.stage!r} left behind: {', '.join(problems)}; restore the files, or start "
            "anew in another run_dir"
        )
        raise ConfigError(Refusal("run_dir", folder, fix))
    return artifact


def _hashes(folder: Path) -> dict[str, str]:
    return {f"{CHECKPOINT}/{name}": digest for name, digest in hashes_of(folder / CHECKPOINT).items()}
