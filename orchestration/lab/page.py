"""The lab's page: the claims and what became of them, the runs, and their curves."""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diagnostics.report.charts import PALETTE, Chart, Series
from diagnostics.report.figures import interval
from diagnostics.report.page import Headline, Page, Section, render
from diagnostics.report.tables import Cell, Table, of_value
from orchestration.lab.outcome import Outcome
from orchestration.lab.phenomena import PHENOMENA, Outcomes, Phenomenon
from orchestration.results.tracker import X_AXIS

_PANELS = (
    ("eval/accuracy", "held-out accuracy", ""),
    ("train/overlap_ratio", "overlap ratio", ""),
    ("train/overlap_token_advantage", "overlap-token advantage", "nats"),
    ("train/entropy_gap", "entropy gap", "nats"),
    ("train/sampled_reverse_kl", "reverse KL on its own tokens", "nats"),
    ("train/grad_norm", "gradient norm", ""),
)
_RUN_COLUMNS = ("accuracy before", "accuracy after", "accuracy of the teacher", "gain", "gap recovery", "seconds")
_KINDS = {"holds": "status pass", "does not hold": "status fail", "open": "status warn"}


def render_lab(content: Mapping[str, Any], outcomes: Mapping[int, Outcomes]) -> str:
    """Write one HTML document.

    Args:
        content: as lab.json has it.
        outcomes: the runs by seed and variant, for their curves.
    """
    findings = content["findings"]
    counts = {verdict: sum(finding["verdict"] == verdict for finding in findings) for verdict in _KINDS}
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    runs = content["runs"].items()
    rows = [[Cell(name), *(of_value(figures.get(key)) for key in _RUN_COLUMNS)] for name, figures in runs]
    page = Page(
        title="The lab",
        subtitle="phenomena of on-policy distillation, each a few small runs",
        facts=[f"seeds {', '.join(map(str, content['seeds']))}", content["command"]],
        headline=Headline(
            "neutral",
            f"{counts['holds']} of {len(findings)} claims hold",
            f"{said}. Intervals are of 95 % over seeds (Student's t); a claim holds if its interval is above zero.",
        ),
        sections=[
            *(_section(phenomenon, findings, outcomes) for phenomenon in PHENOMENA),
            Section("runs", "All runs", tables=[Table("", ["", *_RUN_COLUMNS], rows)]),
        ],
        versions=content["versions"],
        machine=content["machine"],
    )
    return render(page)


def _section(
    phenomenon: Phenomenon, findings: Sequence[Mapping[str, Any]], outcomes: Mapping[int, Outcomes]
) -> Section:
    """Claims and curves of a phenomenon; empty where the table was made without it."""
    anchor = re.sub(r"\W+", "-", phenomenon.name)
    own = [finding for finding in findings if finding["phenomenon"] == phenomenon.name]
    if not own:
        return Section(anchor, phenomenon.name)
    curves = {
        variant.name: [by_variant[variant.name] for by_variant in outcomes.values()] for variant in phenomenon.variants
    }
    colours = dict(zip(curves, itertools.cycle(PALETTE), strict=False))
    charts = [
        Chart(title, _panel(curves, name, colours), "step", unit, zero=False, legend=False).svg()
        for name, title, unit in _PANELS
    ]
    rows = [
        [
            Cell(finding["claim"]),
            Cell(finding["verdict"], kind=_KINDS[finding["verdict"]]),
            Cell(f"{interval(finding['interval'])} {finding['unit']}".strip(), number=True),
        ]
        for finding in own
    ]
    return Section(
        anchor,
        phenomenon.name.capitalize(),
        phenomenon.source,
        charts=charts,
        tables=[Table("", ["claim", "", "by how much"], rows)],
        legend=list(colours.items()),
    )


def _panel(curves: Mapping[str, Sequence[Outcome]], name: str, colours: Mapping[str, str]) -> list[Series]:
    """Curves of one metric: the mean over seeds where they have the same steps, and each seed faintly behind it."""
    series = []
    for label, outcomes in curves.items():
        rows_of = [[*outcome.evaluations, *outcome.steps] for outcome in outcomes]
        known = [[row for row in rows if math.isfinite(row.get(name, math.nan))] for rows in rows_of]
        points = [([row[X_AXIS] for row in rows], [row[name] for row in rows]) for rows in known]
        series += [Series(label, steps, values, colour=colours[label], faint=True) for steps, values in points]
        steps = points[0][0]
        if steps and all(len(other) == len(steps) for other, _values in points):
            mean = np.mean([values for _steps, values in points], axis=0).tolist()
            series.append(Series(label, steps, mean, colour=colours[label], marked=False))
    return series
