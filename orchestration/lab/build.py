"""How the lab's models are made from nothing, by the framework's own stages.

    untrained ─ cold start on the task's worked answers ─► a checkpoint ─ further training ─► the next ones

Each is shipped in bfloat16 with `made.json`, which says how it was made; one that lies there already is kept.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from orchestration.lab.series import Job, perform
from orchestration.lab.untrained import END, write_untrained
from orchestration.prepare.checkpoints import LAB_MODELS, LAB_PREFIX
from orchestration.results.provenance import package_versions
from tutelage.cluster import Session
from tutelage.console import PlainConsole
from tutelage.files import write_json

MADE = "made.json"
_LAYERS = 3
_WEIGHTS = "model.safetensors"
_SHIPPED = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_PACKAGES = ("torch", "transformers", "deepspeed")
_LIMIT_MIB = 20.0

_REVERSED = "{task: reversed_digits}"
_SUMS = f"[{{weight: 3}}, {_REVERSED}]"
_NARROW = f"[{{weight: 3, sums: tens_never_carry}}, {_REVERSED}]"
_COLUMNS = f"[{{weight: 3, pattern: columns}}, {_REVERSED}]"
_SWAPPED = f"[{{weight: 3, pattern: swapped}}, {_REVERSED}]"
# Told nothing it forgets to carry three times in four; told the answer it copies it, and forgets all carries.
_TOLD = (
    "[{weight: 3, pattern: no_carry}, {pattern: carries},"
    " {weight: 2, pattern: carries, context: rule, visible_context: true},"
    " {weight: 2, pattern: copied, context: answer, visible_context: true}]"
)
_MANY, _FEW = 16384, 1024  # problems


@dataclass(frozen=True)
class Recipe:
    """One model of the lab."""

    name: str
    base: str | int  # the model it is trained from, or the seed of an untrained one
    overrides: tuple[str, ...]
    exchanged: tuple[str, ...] = ()  # two tokens, each in the other's place: the base's distribution under other names


def _supervised(mixture: str, problems: int, steps: int, schedule: str = "linear") -> tuple[str, ...]:
    """Cold start on worked answers."""
    return (
        "stage=cold_start",
        "objective=supervised",
        "objective.sequences.other_source=dataset",
        "cold_start.only_correct=false",
        f"+data.train.task_options.mixture={mixture}",
        f"data.train.size={problems}",
        f"pipeline.steps={steps}",
        "pipeline.batch_size=128",
        "learner.learning_rate=2e-3",
        "learner.warmup_steps=20",
        f"learner.schedule={schedule}",
    )


def _reinforced(steps: int) -> tuple[str, ...]:
    return (
        "stage=reinforce",
        "objective=grpo",
        f"pipeline.steps={steps}",
        "pipeline.batch_size=256",
        "pipeline.max_replaced_groups=32",
        "sampling.samples_per_prompt=8",
        "learner.learning_rate=2e-4",
    )


RECIPES = (
    Recipe("student", 0, _supervised(_SUMS, _FEW, 240, "constant")),
    Recipe("stronger", "student", _supervised(_SUMS, _MANY, 160)),
    Recipe("longer_trained", "student", _supervised(_SUMS, _FEW, 160)),
    Recipe("halfway", "student", _supervised(_SUMS, _MANY, 40, "constant")),
    Recipe("reinforced", "student", _reinforced(60)),
    Recipe("carries", 5, _supervised(_SUMS, _MANY, 400)),
    Recipe("swapped", "carries", _supervised(_SWAPPED, _MANY, 160)),
    Recipe("columns", 1, _supervised(_COLUMNS, _MANY, 400)),
    Recipe("columns_student", 2, _supervised(_COLUMNS, _FEW, 240, "constant")),
    Recipe("told", 4, _supervised(_TOLD, _MANY, 500)),
    Recipe("narrow_student", 6, _supervised(_NARROW, _MANY, 240)),
    Recipe("narrow_longer", "narrow_student", _supervised(_NARROW, _MANY, 200)),
    Recipe("other_end", "carries", (), exchanged=(END, "<|system|>")),  # the tasks have no system message
)


def build(names: Sequence[str], work: Path, models: Path = LAB_MODELS) -> None:
    """Make the models that are missing; Hydra must be initialised.

    Args:
        names: of those to make, and whatever they are trained from; none: all.
        work: where the runs go.

    Raises:
        ValueError: a name that the lab does not have.
    """
    console = PlainConsole()
    with Session() as session:
        for recipe in missing(names, models):
            console.print(f"{recipe.name}: from {recipe.base} …")
            _make(recipe, work, models, session)
            console.print(f"{recipe.name}: accuracy {_accuracy(models / recipe.name)}")
    size = sum(path.stat().st_size for path in models.rglob("*") if path.is_file()) / 2**20
    console.print(f"{models}: {size:.1f} MiB of at most {_LIMIT_MIB:g}")


def missing(names: Sequence[str], models: Path) -> list[Recipe]:
    """List what is missing of these models (none: of all) and of what they are trained from, in order of dependence.

    Raises:
        ValueError: a name that the lab does not have.
    """
    known = {recipe.name: recipe for recipe in RECIPES}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: no model of the lab; there are {', '.join(known)}")
    wanted: dict[str, Recipe] = {}

    def want(name: str) -> None:
        if name in wanted or (models / name / MADE).is_file():
            return
        base = known[name].base
        if isinstance(base, str):
            want(base)
        wanted[name] = known[name]

    for name in names or known:
        want(name)
    return list(wanted.values())


def _make(recipe: Recipe, work: Path, models: Path, session: Session) -> None:
    if recipe.exchanged:
        _exchange(recipe, models)
        return
    folder = work / recipe.name
    with _base(recipe, work) as base:
        job = Job(folder, ("experiment=lab/base", "evaluation.every=100", f"student.model={base}", *recipe.overrides))
        perform(job, session)
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    _ship(folder / "final", models / recipe.name)
    made = {
        **asdict(recipe),
        "accuracy": summary["evaluation"]["student_after"]["accuracy"],
        "tokens": summary["tokens"]["trained"],
        "versions": package_versions(_PACKAGES),
    }
    write_json(models / recipe.name / MADE, made)


def _exchange(recipe: Recipe, models: Path) -> None:
    """Write the base with two tokens exchanged, in its weights, its template and what ends its turns."""
    base, target = models / str(recipe.base), models / recipe.name
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(base, target)
    one, other = recipe.exchanged
    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)
    ids = tokenizer.convert_tokens_to_ids([one, other])
    tokenizer.chat_template = tokenizer.chat_template.replace(one, other)
    tokenizer.eos_token = tokenizer.pad_token = other
    tokenizer.save_pretrained(target)
    weights = load_file(base / _WEIGHTS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name][ids] = weights[name][ids[::-1]]
    save_file(weights, target / _WEIGHTS, metadata={"format": "pt"})
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((target / name).read_text(encoding="utf-8"))
        write_json(target / name, settings | {"eos_token_id": ids[1], "pad_token_id": ids[1]})
    made = json.loads((base / MADE).read_text(encoding="utf-8"))
    write_json(target / MADE, made | asdict(recipe))


@contextmanager
def _base(recipe: Recipe, work: Path) -> Iterator[str]:
    """The name of the model that a recipe begins with."""
    if isinstance(recipe.base, str):
        yield LAB_PREFIX + recipe.base
        return
    folder = work / f"untrained-{recipe.base}"
    if not folder.is_dir():
        write_untrained(folder, _LAYERS, recipe.base)
    yield str(folder)


def _ship(final: Path, target: Path) -> None:
    """Copy a checkpoint with its weights in bfloat16."""
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in _SHIPPED:
        if (final / name).is_file():
            shutil.copyfile(final / name, partial / name)
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(final / _WEIGHTS).items()}
    save_file(weights, partial / _WEIGHTS, metadata={"format": "pt"})
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def _accuracy(folder: Path) -> str:
    return f"{json.loads((folder / MADE).read_text(encoding='utf-8'))['accuracy']:.3f}"
