"""A recipe from its plan to its exit code: all stages are checked first, and then each one runs.

finished? ─ yes ─► its manifest is checked, and it is skipped
          └ no ──► a run of its own: start or resume, train ─► artifact.json ─► the next stage
"""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from orchestration.cli import refusing_wrong_settings
from orchestration.config.compose import build
from orchestration.prepare.checkpoints import resolve_model
from orchestration.prepare.inputs import Prepared, prepare
from orchestration.prepare.plan import check_local_resources, print_plan
from orchestration.prepare.teachers import check_endpoints
from orchestration.results.directory import RunDirectory, check_identity, is_finished, locate, open_run_directory
from orchestration.results.pages import write_recipe_report
from orchestration.runs.artifact import MANIFEST, is_sealed, seal, verify
from orchestration.runs.recipe import MODEL_KEYS, PlannedStage, naming_stage
from orchestration.runs.run import EXIT_CODES, execute
from tutelage.cluster import Session
from tutelage.console import PlainConsole, display_only
from tutelage.files import write_json
from tutelage.settings import ConfigError, Refusal

NOT_STARTED = "not started"


def plan(stages: Sequence[PlannedStage]) -> None:
    """Resolve, check and print what every stage is going to do; those that are finished must be intact.

    Raises:
        ConfigError: naming the stage, the key, the value and the fix.
    """
    to_run = _unfinished(stages)
    for stage in stages[: len(stages) - len(to_run)]:
        with _introducing(stage):
            _check_finished(stage)
    with TemporaryDirectory() as scratch:
        stand_ins = _stand_ins(to_run, Path(scratch))
        for stage in to_run:
            with _introducing(stage):
                check_identity(stage.folder, stage.composed)
                prepared = _prepare_with(stage, stand_ins)
                check_local_resources(stage.config, prepared.roles)
                print_plan(stage.config, prepared, locate(stage.config))


@contextmanager
def _introducing(stage: PlannedStage) -> Iterator[None]:
    PlainConsole().rule(f"stage {stage.folder.name}", align="left")
    with naming_stage(stage.name):
        yield


def _check_finished(stage: PlannedStage) -> None:
    check_identity(stage.folder, stage.composed, "finished")
    if is_sealed(stage.folder):
        verify(stage.folder)
    PlainConsole().print(f"finished: {stage.model}", soft_wrap=True)


def _unfinished(stages: Sequence[PlannedStage]) -> list[PlannedStage]:
    """The stages that are still to run, which are the last ones."""
    first = next((i for i, stage in enumerate(stages) if not is_finished(stage.folder)), len(stages))
    for stage in stages[first:]:
        if is_finished(stage.folder):
            fix = (
                f"{stage.folder.name} is finished, though {stages[first].folder.name}, which comes before it, is not; "
                "restore that folder, or start anew in another run_dir"
            )
            raise ConfigError(Refusal("run_dir", stage.folder.parent, fix))
    return list(stages[first:])


def _stand_ins(stages: Sequence[PlannedStage], scratch: Path) -> dict[str, str]:
    """For every model that is still to be trained, another name of the model that it is trained from.

    Its architecture and its tokenizer are the same, and its path is not: the base model itself is another model.
    """
    links = {}
    for stage in stages:
        link = scratch / stage.folder.name
        with naming_stage(stage.name):
            link.symlink_to(Path(resolve_model(stage.base_model, "student.model")).resolve())
        links[stage.model] = str(link)
    return links


def _prepare_with(stage: PlannedStage, stand_ins: Mapping[str, str]) -> Prepared:
    composed = stage.composed.copy()
    for key in MODEL_KEYS:
        model = OmegaConf.select(composed, key)
        if model in stand_ins:
            OmegaConf.update(composed, key, stand_ins[model])
    return prepare(build(composed, stage.preset))


def carry_out(stages: Sequence[PlannedStage], directory: RunDirectory, session: Session) -> int:
    """Run the stages that are not finished; returns the exit code of the process."""
    outcomes = {stage.name: NOT_STARTED for stage in stages}
    try:
        for stage in stages:
            outcomes[stage.name] = "failed"  # unless it gets further
            outcomes[stage.name] = _run(stage, session)
            if outcomes[stage.name] != "completed":
                break
    except KeyboardInterrupt:
        outcomes[stage.name] = "interrupted"
    finally:
        status = _conclude(stages, outcomes, directory.path)
        directory.close()
    return EXIT_CODES[status]


def _run(stage: PlannedStage, session: Session) -> str:
    """Run or resume one stage unless it is finished; returns its status."""
    if not is_finished(stage.folder):
        with refusing_wrong_settings(), _introducing(stage):
            prepared = prepare(stage.config)
            check_endpoints(stage.config, prepared)
            directory = open_run_directory(stage.config, stage.composed)
            directory.check_prompts(prepared.prompts_digest)
        exit_code = asyncio.run(execute(stage.config, prepared, directory, session))
        if exit_code:
            return next(status for status, code in EXIT_CODES.items() if code == exit_code)
    if not is_sealed(stage.folder):
        seal(stage.folder, stage.name, stage.config.stage, stage.base_model)
    return "completed"


def _conclude(stages: Sequence[PlannedStage], outcomes: Mapping[str, str], folder: Path) -> str:
    """summary.json of the whole recipe, and what people read; returns its status."""
    status = next((one for one in outcomes.values() if one not in ("completed", NOT_STARTED)), "completed")
    rows = [_outcome(stage, outcomes[stage.name]) for stage in stages]
    seconds = sum(row["summary"]["wall_seconds"] for row in rows if row["summary"])
    write_json(folder / "summary.json", {"status": status, "wall_seconds": seconds, "stages": rows})
    with display_only():
        write_recipe_report(folder)
    _print_outcome(rows, status, folder)
    return status


def _outcome(stage: PlannedStage, status: str) -> dict[str, Any]:
    summary = stage.folder / "summary.json"
    begun = status != NOT_STARTED and summary.is_file()
    return {
        "name": stage.name,
        "stage": stage.config.stage,
        "status": status,
        "folder": stage.folder.name,
        "artifact": f"{stage.folder.name}/{MANIFEST}" if is_sealed(stage.folder) else None,
        "summary": json.loads(summary.read_text(encoding="utf-8")) if begun else None,
    }


def _print_outcome(rows: Sequence[Mapping[str, Any]], status: str, folder: Path) -> None:
    table = Table(title="stages", title_justify="left")
    for column in ("", "status", "steps", "seconds", "accuracy before", "accuracy after"):
        table.add_column(column, justify="left" if column in ("", "status") else "right")
    for row in rows:
        summary = row["summary"] or {}
        cells = [_cell(summary.get("steps"), ".0f"), _cell(summary.get("wall_seconds"), ".0f")]
        evaluation = summary.get("evaluation", {})
        accuracies = [
            _cell((evaluation.get(role) or {}).get("accuracy"), ".3g") for role in ("student_before", "student_after")
        ]
        table.add_row(row["folder"], row["status"], *cells, *accuracies)
    console = PlainConsole()
    console.print(table)
    console.print(f"{status}; {folder / 'summary.json'}; {folder / 'report.html'}", soft_wrap=True)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
