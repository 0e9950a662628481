"""python -m benchmarks.architectures: which of transformers' causal language models run on packed sequences.

A small copy of each architecture's default configuration is run on packed sequences and on each of them alone, as a
launch does with the models that it is given (tutelage/lm/packable.py); what comes out is docs/architectures.md.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tutelage.lm.packable import PackingTrial, try_packing
from tutelage.lm.packed import unpackable_layers

PAGE = Path(__file__).parents[1] / "docs" / "architectures.md"


def trials() -> Iterator[tuple[str, str, PackingTrial]]:
    """Model type, class of the model, and what became of its small copy."""
    for kind, model in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()):
        name = model if isinstance(model, str) else model[0]
        try:
            config = CONFIG_MAPPING[kind]()
        except Exception as error:  # defaults that the type itself refuses
            yield kind, name, PackingTrial(untried=f"no default configuration ({type(error).__name__})")
            continue
        layers = unpackable_layers(config)
        yield kind, name, PackingTrial(problem=f"layers: {', '.join(layers)}") if layers else try_packing(config)


def page(rows: list[tuple[str, str, PackingTrial]]) -> str:
    """The table as Markdown."""
    agreeing = [row for row in rows if not row[2].refused and row[2].difference is not None]
    refused = [row for row in rows if row[2].refused]
    untried = [row for row in rows if row[2].untried]
    lines = [
        "# Architectures",
        "",
        "Teachers (`backend=transformers`) and the learner run on packed sequences: several laid end to end, without "
        "padding, each seeing itself alone. A launch tries the architecture of every model on a small copy with random "
        "weights, and refuses it with the model's key where packed and alone differ or packed attention cannot run it. "
        "This page is written by `python -m benchmarks.architectures`, on a CPU with transformers "
        f"{transformers.__version__}, from the default configuration of each type; a checkpoint's own is what a launch "
        "tries, and may differ (soft caps, kinds of layers). Agreement says that packing changes nothing, not that an "
        "engine has the architecture too: vLLM's own list says that.",
        "",
        f"## {len(agreeing)} agree",
        "",
        "The largest difference of a final state, relative to the largest state, float32.",
        "",
        "| type | model | difference |",
        "|---|---|---|",
        *(f"| {kind} | {name} | {trial.difference:.0e} |" for kind, name, trial in agreeing),
        "",
        f"## {len(refused)} are refused",
        "",
        "A teacher among them may still be asked with `teacher.backend=vllm` or `server`. Soft caps alone: "
        "`learner.attention=flash_attention_2` and `scoring.attention=flash_attention_2` on GPUs.",
        "",
        "| type | model | why |",
        "|---|---|---|",
        *(f"| {kind} | {name} | {_cell(trial.refused)} |" for kind, name, trial in refused),
        "",
        f"## {len(untried)} could not be tried",
        "",
        "Their default configuration makes no small model. A checkpoint of such a type is tried with its own; where "
        "that fails too, the worker compares packed and alone on the model itself once it is loaded.",
        "",
        "| type | model | why |",
        "|---|---|---|",
        *(f"| {kind} | {name} | {_cell(trial.untried)} |" for kind, name, trial in untried),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    short = text if len(text) <= 120 else f"{text[:117]}..."
    return short.replace("|", "\\|").replace("<", "&lt;")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, default=PAGE)
    path: Path = parser.parse_args().page
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    path.write_text(page(list(trials())), encoding="utf-8")


if __name__ == "__main__":
    main()
