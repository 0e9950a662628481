"""Where the numbers of a run go: metrics.jsonl, sample tables, and Weights & Biases, under the same names."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import wandb

from orchestration.config.schema import TrackingConfig, WandbMode
from tutelage.files import write_text

X_AXIS = "policy_version"
Candidate = tuple[str, float | None, float | None]


@dataclass(frozen=True)
class Sample:
    """One trajectory with its per-token signal, for people."""

    prompt_id: str
    sample_index: int
    origin: str  # "student", "teacher" or "dataset"
    prompt: str
    response: str
    reward: float | None
    tokens: tuple[str, ...]
    # None at tokens that others wrote, or that a teacher with another tokenizer could not score.
    student_logprobs: tuple[float | None, ...] | None  # under the sampling distribution; None if it did not sample them
    teacher_logprobs: tuple[float | None, ...] | None  # None without a teacher
    mean_log_ratio: float | None  # teacher minus student, nats a token
    # Of each token the most likely others: their text, the student's and the teacher's log-prob of it where known.
    student_top: tuple[tuple[Candidate, ...], ...] | None = None  # None where the engine was not asked for them
    teacher_top: tuple[tuple[Candidate, ...], ...] | None = None


class Tracker:
    """Writes every number twice, to the run's folder and to Weights & Biases, and continues both after a resume."""

    def __init__(
        self,
        run_dir: Path,
        config: TrackingConfig,
        settings: Mapping[str, Any],
        wandb_id: str | None = None,
        from_version: int = 0,
    ) -> None:
        self._samples = run_dir / "samples"
        self._samples.mkdir(exist_ok=True)
        _forget_after(run_dir, from_version)
        self._metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._wandb = _start_wandb(run_dir, config, settings, wandb_id)

    @property
    def wandb_id(self) -> str | None:
        return self._wandb.id if self._wandb is not None else None

    def log(self, policy_version: int, metrics: Mapping[str, float]) -> None:
        row = {X_AXIS: policy_version, **metrics}
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._wandb is not None:
            self._wandb.log(row)

    def log_samples(self, policy_version: int, samples: Sequence[Sample]) -> None:
        path = self._samples / f"step-{policy_version:06d}.jsonl"
        with path.with_suffix(".partial").open("w", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps(sample.__dict__, ensure_ascii=False) + "\n")
        os.replace(path.with_suffix(".partial"), path)
        if self._wandb is not None:
            self._wandb.log({X_AXIS: policy_version, "samples": _table(samples)})

    def log_report(self, page: Path) -> None:
        """Show the run's page among the panels of Weights & Biases."""
        if self._wandb is not None:
            self._wandb.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})

    def alert(self, title: str, text: str) -> None:
        """Tell whoever follows the run on Weights & Biases; nothing is sent from elsewhere."""
        if self._wandb is not None:
            self._wandb.alert(title=title, text=text, level="WARN")

    def close(self, succeeded: bool) -> None:
        self._metrics.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if succeeded else 1)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Every whole row of metrics.jsonl: a kill may have cut the last one short."""
    rows = []
    for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def read_samples(run_dir: Path) -> dict[int, list[dict[str, Any]]]:
    """The kept trajectories by the step that learned from them."""
    files = sorted((run_dir / "samples").glob("step-*.jsonl"))
    return {
        int(path.stem.removeprefix("step-")): [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        for path in files
    }


def _forget_after(run_dir: Path, version: int) -> None:
    """Drop rows of steps that a resumed run will do again (and a last line that a kill cut short)."""
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return
    kept = [json.dumps(row) for row in read_metrics(run_dir) if row[X_AXIS] <= version]
    write_text(path, "".join(f"{line}\n" for line in kept))


def _start_wandb(
    run_dir: Path, config: TrackingConfig, settings: Mapping[str, Any], wandb_id: str | None
) -> Any | None:
    if config.wandb is WandbMode.disabled:
        return None
    logging.getLogger("wandb").setLevel(logging.ERROR)
    run = wandb.init(
        project=config.project,
        entity=config.entity,
        name=f"{settings['experiment']}/{run_dir.name}",
        dir=str(run_dir),
        mode=config.wandb.value,
        id=wandb_id,
        resume="allow" if wandb_id else None,
        config=dict(settings),
        settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
    )
    run.define_metric(X_AXIS)
    run.define_metric("*", step_metric=X_AXIS)
    return run


def _table(samples: Sequence[Sample]) -> wandb.Table:
    columns = [
        "prompt",
        "response",
        "reward",
        "mean_log_ratio",
        "tokens",
        "student_logprobs",
        "teacher_logprobs",
    ]
    rows = [[_cell(getattr(sample, name)) for name in columns] for sample in samples]
    return wandb.Table(columns=columns, data=rows)


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, tuple) else value
