"""The main curves of a run as one picture, drawn from metrics.jsonl and the kept evaluations."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestration.results.summary import Evaluation
from orchestration.results.tracker import X_AXIS, read_metrics

matplotlib.use("Agg")
COLOURS = {"line": "#2c5f8a", "teacher": "#c2571a", "student": "#1d7a46"}


def draw_curves(run_dir: Path, evaluations: Mapping[str, Evaluation | None]) -> Path | None:
    """Write curves.png; returns its path, or None when no step was trained."""
    rows = read_metrics(run_dir)
    steps = [row for row in rows if "train/loss" in row]
    if not steps:
        return None
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    has_divergence = any("train/sampled_reverse_kl" in row for row in steps)
    panels = [
        ("train/sampled_reverse_kl", "reverse KL on its own tokens", "nats a token")
        if has_divergence
        else ("train/loss", "loss", ""),
        ("rollout/mean_response_tokens", "response length in training", "tokens"),
        ("train/grad_norm", "gradient norm", ""),
    ]
    for axis, (name, title, unit) in zip(axes[0], panels, strict=True):
        _curve(axis, steps, name, title, unit)
    evaluated = [row for row in rows if "eval/reverse_kl" in row]
    _evaluated(axes[1][0], evaluated, "eval/reverse_kl", "held-out reverse KL, exact", "nats a token", None)
    teacher = evaluations.get("teacher")
    _evaluated(
        axes[1][1],
        evaluated,
        "eval/mean_response_tokens",
        "held-out answer length",
        "tokens",
        teacher.mean_response_tokens if teacher else None,
    )
    if any("eval/accuracy" in row for row in evaluated):
        _evaluated(
            axes[1][2],
            evaluated,
            "eval/accuracy",
            "held-out accuracy",
            "",
            teacher.accuracy if teacher else None,
        )
    else:
        _curve(axes[1][2], steps, "health/rollout_logprob_gap_mean", "rollout / learner log-prob gap", "nats")
    path = run_dir / "curves.png"
    figure.savefig(path.with_suffix(".partial"), dpi=110, format="png")
    os.replace(path.with_suffix(".partial"), path)
    return path


def _curve(axis: Axes, rows: Sequence[Mapping[str, float]], name: str, title: str, unit: str) -> None:
    rows = [row for row in rows if name in row]
    axis.plot([r[X_AXIS] for r in rows], [r[name] for r in rows], color=COLOURS["line"], marker=".", markersize=4)
    _label(axis, title, unit)


def _evaluated(
    axis: Axes, rows: Sequence[Mapping[str, float]], name: str, title: str, unit: str, teacher: float | None
) -> None:
    axis.plot(
        [r[X_AXIS] for r in rows],
        [r[name] for r in rows],
        color=COLOURS["student"],
        marker="o",
        label="student",
    )
    if teacher is not None:
        axis.axhline(teacher, color=COLOURS["teacher"], linestyle="--", label="teacher")
        axis.legend(frameon=False)
    _label(axis, title, unit)


def _label(axis: Axes, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("policy version", fontsize=8)
    axis.set_ylabel(unit, fontsize=8)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
