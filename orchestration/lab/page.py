"""The lab's page: one self-contained HTML file with the claims, the runs and their curves."""

import io
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestration.lab.outcome import Outcome
from orchestration.lab.phenomena import PHENOMENA, Outcomes
from orchestration.tracking import X_AXIS

matplotlib.use("Agg")
_PANELS = (
    ("eval/accuracy", "held-out accuracy"),
    ("train/overlap_ratio", "overlap ratio"),
    ("train/overlap_token_advantage", "overlap-token advantage (nats)"),
    ("train/entropy_gap", "entropy gap (nats)"),
    ("train/sampled_reverse_kl", "reverse KL on its own tokens (nats)"),
    ("train/grad_norm", "gradient norm"),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2.2em; } small { color: #5b6b7a; }
table { border-collapse: collapse; margin: .6em 0; } th, td { padding: .25em .8em; text-align: left; }
th { border-bottom: 2px solid #c9d3dc; } td { border-bottom: 1px solid #e6ebf0; } td.n { text-align: right; }
.holds { color: #1d7a46; font-weight: 600; } .does { color: #b3261e; font-weight: 600; } .open { color: #8a6d1a; }
svg { width: 100%; height: auto; }
"""
_RUN_COLUMNS = ("accuracy before", "accuracy after", "accuracy of the teacher", "gain", "gap recovery", "seconds")


def render(content: Mapping[str, Any], outcomes: Mapping[int, Outcomes]) -> str:
    """The page of what lab.json holds, with the curves of the runs by seed and variant."""
    sections = []
    for phenomenon in PHENOMENA:
        findings = [found for found in content["findings"] if found["phenomenon"] == phenomenon.name]
        if not findings:
            continue
        curves = {
            variant.name: [by_variant[variant.name] for by_variant in outcomes.values()]
            for variant in phenomenon.variants
        }
        sections += [
            f"<h2>{escape(phenomenon.name)} <small>{escape(phenomenon.source)}</small></h2>",
            _findings(findings),
            _figure(curves),
        ]
    machine = content["machine"]
    return "\n".join(
        [
            "<!doctype html><html lang=en><meta charset=utf-8><title>The lab</title>",
            f"<style>{_STYLE}</style><h1>The lab</h1>",
            f"<p>Seeds {', '.join(map(str, content['seeds']))}; intervals of 95 % over seeds (Student's t); "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB. <code>{escape(content['command'])}</code></p>",
            *sections,
            "<h2>All runs</h2>",
            _runs(content["runs"]),
            "</html>",
        ]
    )


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"<tr><td>{escape(found['claim'])}<td class='{found['verdict'].split()[0]}'>{found['verdict']}"
        f"<td class=n>{_cell(found['interval'])} {found['unit']}"
        for found in findings
    ]
    return f"<table><tr><th>claim<th><th>by how much{''.join(rows)}</table>"


def _runs(runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    head = "".join(f"<th>{name}" for name in ("", *_RUN_COLUMNS))
    rows = [
        f"<tr><td>{escape(name)}" + "".join(f"<td class=n>{_cell(figures.get(column))}" for column in _RUN_COLUMNS)
        for name, figures in runs.items()
    ]
    return f"<table><tr>{head}{''.join(rows)}</table>"


def _cell(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    digits = 0 if abs(interval["mean"]) >= 10 else 3
    low, high = (f"{interval[end]:.{digits}f}" for end in ("low", "high"))
    return f"{interval['mean']:.{digits}f} <small>[{low}, {high}]</small>"


def _figure(curves: Mapping[str, Sequence[Outcome]]) -> str:
    """Mean over the seeds, each seed faintly behind it, as SVG."""
    figure = Figure(figsize=(12, 6.6), layout="constrained")
    axes = figure.subplots(2, 3).flat
    for axis, (name, title) in zip(axes, _PANELS, strict=True):
        for index, (label, outcomes) in enumerate(curves.items()):
            _curve(axis, [_series(outcome, name) for outcome in outcomes], label, f"C{index}")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return buffer.getvalue().partition("<!DOCTYPE")[2].partition(">")[2]


def _series(outcome: Outcome, name: str) -> tuple[list[float], list[float]]:
    rows = [row for row in (*outcome.evaluations, *outcome.steps) if name in row and math.isfinite(row[name])]
    return [row[X_AXIS] for row in rows], [row[name] for row in rows]


def _curve(axis: Axes, series: Sequence[tuple[list[float], list[float]]], label: str, colour: str) -> None:
    for steps, values in series:
        axis.plot(steps, values, color=colour, alpha=0.2, linewidth=0.8)
    lengths = {len(steps) for steps, _values in series}
    if lengths != {0} and len(lengths) == 1:
        axis.plot(series[0][0], np.mean([values for _steps, values in series], axis=0), color=colour, label=label)
