"""Where the numbers and samples of a run go: its folder and Weights & Biases, under the same names."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb

from orchestration.config.schema import TrackingConfig, WandbMode
from orchestration.results.samples import TABLE_COLUMNS, Sample
from tutelage.files import write_text
from tutelage.settings import ConfigError, Refusal

X_AXIS = "policy_version"
log = logging.getLogger("tutelage")


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
        self._run_dir = run_dir
        (run_dir / "samples").mkdir(exist_ok=True)
        _forget_after(run_dir, from_version)
        self._metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._wandb = _start_wandb(run_dir, config, settings, wandb_id)

    @property
    def wandb_id(self) -> str | None:
        return self._wandb.id if self._wandb is not None else None

    def log(self, policy_version: int, metrics: Mapping[str, float]) -> None:
        """Add the numbers of one step, or of an evaluation after it."""
        row = {X_AXIS: policy_version, **metrics}
        self._metrics.write(json.dumps(row, allow_nan=False) + "\n")
        self._metrics.flush()
        if self._wandb is not None:
            self._wandb.log(row)

    def log_samples(self, policy_version: int, samples: Sequence[Sample]) -> None:
        """Keep trajectories with their per-token signal, for people."""
        lines = [json.dumps(sample.__dict__, ensure_ascii=False) + "\n" for sample in samples]
        write_text(self._run_dir / "samples" / f"step-{policy_version:06d}.jsonl", "".join(lines))
        if self._wandb is not None:
            rows = [[getattr(sample, name) for name in TABLE_COLUMNS] for sample in samples]
            # What has a value a token is JSON.
            data = [[json.dumps(x, ensure_ascii=False) if isinstance(x, tuple) else x for x in row] for row in rows]
            self._wandb.log({X_AXIS: policy_version, "samples": wandb.Table(columns=TABLE_COLUMNS, data=data)})

    def log_report(self, page: Path) -> None:
        """Show the run's page among the panels of Weights & Biases."""
        if self._wandb is not None:
            self._wandb.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False)})

    def alert(self, title: str, text: str) -> None:
        """Tell whoever follows the run on Weights & Biases; nothing is sent from elsewhere."""
        if self._wandb is not None:
            self._wandb.alert(title=title, text=text, level="WARN")

    def close(self, succeeded: bool) -> None:
        """Write out what is left; nothing can be logged after it."""
        self._metrics.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if succeeded else 1)


def check_login(config: TrackingConfig) -> None:
    """Let Weights & Biases verify the key before anything is started; of runs that send nothing, nothing is asked.

    Raises:
        ConfigError: it does not take the key, or cannot be reached.
    """
    if config.wandb is not WandbMode.online:
        return
    try:
        wandb.login(verify=True, prompt=False)
    except (wandb.errors.Error, ValueError) as error:  # refused; of a form that no key has
        raise ConfigError(_not_let_in(config, error)) from error


def _not_let_in(config: TrackingConfig, error: Exception) -> Refusal:
    fix = f"Weights & Biases does not let this run in ({' '.join(str(error).split())}); set WANDB_API_KEY, "
    return Refusal("tracking.wandb", config.wandb, f"{fix}tracking.entity and tracking.project right, or use offline")


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """Return every whole row of metrics.jsonl."""
    return [row for row in _whole_rows(run_dir / "metrics.jsonl") if isinstance(row.get(X_AXIS), int)]


def read_samples(run_dir: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the kept trajectories by the step that learned from them."""
    return {step: list(_whole_rows(path)) for step, path in sorted(_sample_files(run_dir))}


def _whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the objects of a file, a line each: a kill may have cut one short, or a disk have damaged it."""
    for line in path.read_bytes().splitlines():  # of bytes: what a model writes may hold other ends of lines
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _sample_files(run_dir: Path) -> list[tuple[int, Path]]:
    """The files of samples with their steps."""
    return [(int(path.stem.removeprefix("step-")), path) for path in (run_dir / "samples").glob("step-*.jsonl")]


def _forget_after(run_dir: Path, version: int) -> None:
    """Drop rows and samples of steps that a resumed run will do again (and lines that are damaged)."""
    for step, path in _sample_files(run_dir):
        if step > version:
            path.unlink()
    path = run_dir / "metrics.jsonl"
    if not path.is_file():
        return
    kept = [row for row in read_metrics(run_dir) if row[X_AXIS] <= version]
    steps = {row[X_AXIS] for row in kept if any(name.startswith("train/") for name in row)}
    if lost := set(range(1, version + 1)) - steps:
        shown = ", ".join(map(str, sorted(lost)[:5])) + (", …" if len(lost) > 5 else "")
        log.warning("%s is damaged: the rows of %d steps are lost (%s)", path, len(lost), shown)
    write_text(path, "".join(f"{json.dumps(row)}\n" for row in kept))


def _start_wandb(
    run_dir: Path, config: TrackingConfig, settings: Mapping[str, Any], wandb_id: str | None
) -> Any | None:
    if config.wandb is WandbMode.disabled:
        return None
    logging.getLogger("wandb").setLevel(logging.ERROR)
    if wandb_id is None:  # begun again before its first checkpoint: its folders there end with it
        begun = sorted((run_dir / "wandb").glob("*run-*_*-*"))
        wandb_id = begun[-1].name.rpartition("-")[2] if begun else None
    try:
        run = wandb.init(
            project=config.project,
            entity=config.entity,
            name=f"{settings['name']}/{run_dir.name}",
            dir=str(run_dir),
            mode=config.wandb.value,
            id=wandb_id,
            resume="allow" if wandb_id else None,
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
    except wandb.errors.Error as error:
        raise ConfigError(_not_let_in(config, error)) from error
    run.define_metric(X_AXIS)
    run.define_metric("*", step_metric=X_AXIS)
    return run
