"""The lab's page: one self-contained HTML file with the claims, the runs and their curves."""

import itertools
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from diagnostics.report.charts import PALETTE, Chart, Series
from orchestration.lab.outcome import Outcome
from orchestration.lab.phenomena import PHENOMENA, Outcomes
from orchestration.results.tracker import X_AXIS

_PANELS = (
    ("eval/accuracy", "held-out accuracy", ""),
    ("train/overlap_ratio", "overlap ratio", ""),
    ("train/overlap_token_advantage", "overlap-token advantage", "nats"),
    ("train/entropy_gap", "entropy gap", "nats"),
    ("train/sampled_reverse_kl", "reverse KL on its own tokens", "nats"),
    ("train/grad_norm", "gradient norm", ""),
)
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; } h2 { font-size: 1.2em; margin-top: 2.2em; } small { color: #5b6b7a; }
h2 small { font-weight: 400; } code { overflow-wrap: anywhere; }
.table { overflow-x: auto; } table { border-collapse: collapse; margin: .6em 0; }
th, td { padding: .25em .6em; text-align: left; } .n { text-align: right; } td.n { white-space: nowrap; }
th { border-bottom: 2px solid #c9d3dc; } td { border-bottom: 1px solid #e6ebf0; }
.holds { color: #1d7a46; font-weight: 600; } .does { color: #b3261e; font-weight: 600; } .open { color: #8a6d1a; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)); gap: 14px 24px; }
.legend span { margin-right: 1.4em; white-space: nowrap; }
.legend i { display: inline-block; width: 18px; height: 3px; margin-right: 6px; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: #3d4b59; }
svg .title { font-size: 14px; font-weight: 600; } svg .unit { font-weight: 400; fill: #5b6b7a; }
svg .grid { stroke: #e3e9ee; } svg .axis { stroke: #8b98a5; }
@media (max-width: 720px) { td.n small { display: block; } }
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
            "<meta name=viewport content='width=device-width, initial-scale=1'>",
            f"<style>{_STYLE}</style><h1>The lab</h1>",
            f"<p>Seeds {', '.join(map(str, content['seeds']))}; intervals of 95 % over seeds (Student's t); "
            f"{machine['cores']} cores, {machine['memory_gib']} GiB.<br><code>{escape(content['command'])}</code></p>",
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
    return f"<div class=table><table><tr><th>claim<th><th class=n>by how much{''.join(rows)}</table></div>"


def _runs(runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    head = "<th>" + "".join(f"<th class=n>{name}" for name in _RUN_COLUMNS)
    rows = [
        f"<tr><td>{escape(name)}" + "".join(f"<td class=n>{_cell(figures.get(column))}" for column in _RUN_COLUMNS)
        for name, figures in runs.items()
    ]
    return f"<div class=table><table><tr>{head}{''.join(rows)}</table></div>"


def _cell(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "–"
    digits = 0 if abs(interval["mean"]) >= 10 else 3
    mean, low, high = (f"{interval[end]:.{digits}f}".replace("-", "−") for end in ("mean", "low", "high"))
    return f"{mean} <small>[{low}, {high}]</small>"


def _figure(curves: Mapping[str, Sequence[Outcome]]) -> str:
    """Mean over the seeds, each seed faintly behind it; one legend for all charts."""
    colours = dict(zip(curves, itertools.cycle(PALETTE), strict=False))
    charts = []
    for name, title, unit in _PANELS:
        series = [
            curve
            for label, outcomes in curves.items()
            for curve in _curves(label, [_series(outcome, name) for outcome in outcomes], colours[label])
        ]
        charts.append(Chart(title, series, "step", unit, zero=False, legend=False).svg())
    legend = "".join(f"<span><i style='background:{colours[label]}'></i>{escape(label)}</span>" for label in curves)
    return f"<p class=legend>{legend}</p><div class=charts>{''.join(charts)}</div>"


def _series(outcome: Outcome, name: str) -> tuple[list[float], list[float]]:
    rows = [row for row in (*outcome.evaluations, *outcome.steps) if name in row and math.isfinite(row[name])]
    return [row[X_AXIS] for row in rows], [row[name] for row in rows]


def _curves(label: str, found: Sequence[tuple[list[float], list[float]]], colour: str) -> list[Series]:
    curves = [Series(label, steps, values, colour=colour, faint=True) for steps, values in found]
    lengths = {len(steps) for steps, _values in found}
    if lengths != {0} and len(lengths) == 1:
        mean = np.mean([values for _steps, values in found], axis=0).tolist()
        curves.append(Series(label, found[0][0], mean, colour=colour, marked=False))
    return curves
