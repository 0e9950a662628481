"""The curves of a run's page: on held-out prompts, through training, and by position in the response."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from diagnostics.report.charts import BEFORE, NEUTRAL, STUDENT, TEACHER, Chart, Series
from diagnostics.report.figures import ROLES, describe, interval_of
from diagnostics.report.page import Folded, Section
from diagnostics.report.tables import Table, of_groups, of_statistics, span

X, X_LABEL = "policy_version", "policy version"
HELD_OUT = (
    "accuracy",
    "reverse_kl",
    "forward_kl",
    "overlap_ratio",
    "base_reverse_kl",
    "mean_response_tokens",
    "truncated_share",
)
TRAINING = (
    "train/sampled_reverse_kl",
    "train/overlap_ratio",
    "train/overlap_token_advantage",
    "train/entropy_gap",
    "rollout/accuracy",
    "rollout/mean_response_tokens",
    "train/loss",
    "train/grad_norm",
    "health/rollout_logprob_gap_mean",
)
_BUCKET = re.compile(r"train/(\w+)/tokens_(\d+)_(\d+)")
_BY_POSITION = ("overlap_ratio", "overlap_token_advantage", "entropy_gap", "sampled_reverse_kl")
_SMOOTHED_FROM = 30  # steps: with fewer, every point is drawn
_ENDS = 10  # a tenth of the steps at either end is compared by position


def held_out_section(metrics: Sequence[Mapping[str, float]], evaluation: Mapping[str, Any]) -> Section:
    """Show how the student did on held-out prompts as it was trained, beside the teacher.

    Args:
        metrics: the rows of metrics.jsonl.
        evaluation: of summary.json, by role.
    """
    rows = [row for row in metrics if any(f"eval/{name}" in row for name in HELD_OUT)]
    charts = []
    for name in HELD_OUT:
        measured = [row for row in rows if f"eval/{name}" in row]
        if not measured or (name == "truncated_share" and not any(row[f"eval/{name}"] for row in measured)):
            continue
        versions = [row[X] for row in measured]
        mean, low, high = ([row.get(f"eval/{name}{end}") for row in measured] for end in ("", "/low", "/high"))
        student = Series("student", versions, mean, low, high, colour=STUDENT)
        teacher = _teacher(evaluation, name, versions)
        wording = describe(name)
        charts.append(Chart(wording.label, [student, *teacher], X_LABEL, wording.unit).svg())
    known = [name for name in HELD_OUT if any(interval_of(evaluation, role, name) for role in ROLES)]
    groups = {
        label: {name: interval_of(evaluation, role, name) for name in known}
        for role, label in ROLES.items()
        if evaluation.get(role)
    }
    prompts = {role["n_prompts"] for role in evaluation.values() if role and "n_prompts" in role}
    text = (
        f"On {max(prompts)} prompts that are not trained on; bands and brackets are 95 % intervals." if prompts else ""
    )
    return Section("held-out", "Held-out prompts", text, charts, [of_statistics("", groups)] if groups else [])


def _teacher(evaluation: Mapping[str, Any], name: str, versions: Sequence[float]) -> list[Series]:
    value = interval_of(evaluation, "teacher", name)
    if value is None or name == "truncated_share":
        return []
    mean, low, high = ([value[key]] * 2 for key in ("mean", "low", "high"))
    return [
        Series("teacher", [min(versions), max(versions)], mean, low, high, colour=TEACHER, dashed=True, marked=False)
    ]


def training_section(steps: Sequence[Mapping[str, float]]) -> Section:
    """Show what every step measured: the main curves, and all others on demand."""
    names = list(dict.fromkeys(name for row in steps for name in row if name != X))
    first = [name for name in TRAINING if name in names]
    others = [name for name in names if name not in TRAINING and not _BUCKET.match(name)]
    rest = [name for name in others if len({row[name] for row in steps if name in row}) > 1]  # what stays tells nothing
    text = ""
    if len(steps) >= _SMOOTHED_FROM:
        text = f"Thick: the mean over {_window(steps)} steps around each, with the range of the same as a band."
    more: list[Folded] = [("More curves", [_curve(steps, name, name) for name in rest], [])] if rest else []
    return Section(
        "training",
        "Training",
        text if steps else "",
        charts=[_curve(steps, name, describe(name.partition("/")[2]).label) for name in first],
        folded=more,
    )


def _window(steps: Sequence[Mapping[str, float]]) -> int:
    return max(3, len(steps) // 20) | 1


def _curve(steps: Sequence[Mapping[str, float]], name: str, title: str) -> Markup:
    rows = [row for row in steps if name in row]
    x, y = [row[X] for row in rows], [row[name] for row in rows]
    unit = describe(name.partition("/")[2]).unit
    if len(rows) < _SMOOTHED_FROM:
        return Chart(title, [Series("", x, y, colour=NEUTRAL, marked=len(rows) < 2)], X_LABEL, unit).svg()
    half = _window(rows) // 2
    around = [np.asarray(y[max(0, index - half) : index + half + 1]) for index in range(len(y))]
    mean, low, high = ([float(reduce(part)) for part in around] for reduce in (np.mean, np.min, np.max))
    return Chart(title, [Series("", x, mean, low, high, colour=NEUTRAL, marked=False)], X_LABEL, unit).svg()


def position_section(steps: Sequence[Mapping[str, float]]) -> Section:
    """Compare the first steps with the last, by position in the response."""
    buckets: dict[str, list[tuple[int, int]]] = {}
    for name, first, last in _buckets(steps):
        buckets.setdefault(name, []).append((first, last))
    count = max(1, len(steps) // _ENDS)
    compared = {"first steps": steps[:count], "last steps": steps[-count:]}
    charts = []
    for name in (name for name in _BY_POSITION if name in buckets):
        places = sorted(buckets[name])
        curves = [
            Series(label, list(range(len(places))), _means(rows, name, places), colour=colour)
            for (label, rows), colour in zip(compared.items(), (BEFORE, STUDENT), strict=True)
        ]
        names, known = [span(*place) for place in places], describe(name)
        charts.append(Chart(known.label, curves, "token of the response", known.unit, x_names=names).svg())
    compares = "The first step and the last" if count == 1 else f"The first {count} steps and the last {count}"
    text = f"{compares}, of {len(steps)}." if charts else ""
    folded: list[Folded] = (
        [("The figures of the last steps", [], [_position_table(compared["last steps"], buckets)])] if buckets else []
    )
    return Section("position", "By position in the response", text, charts=charts, folded=folded)


def _buckets(steps: Sequence[Mapping[str, float]]) -> Iterator[tuple[str, int, int]]:
    for key in dict.fromkeys(key for row in steps for key in row):
        match = _BUCKET.fullmatch(key)
        if match:
            yield match[1], int(match[2]), int(match[3])


def _means(rows: Sequence[Mapping[str, float]], name: str, places: Sequence[tuple[int, int]]) -> list[float | None]:
    keys = [f"train/{name}/tokens_{first}_{last}" for first, last in places]
    columns = [[row[key] for row in rows if key in row] for key in keys]
    return [float(np.mean(values)) if values else None for values in columns]


def _position_table(rows: Sequence[Mapping[str, float]], buckets: Mapping[str, Sequence[tuple[int, int]]]) -> Table:
    places = sorted({place for ranges in buckets.values() for place in ranges})
    groups: dict[str, dict[str, Any]] = {span(*place): {} for place in places}
    for name in buckets:
        for place, value in zip(places, _means(rows, name, places), strict=True):
            groups[span(*place)][name] = value
    return of_groups("", groups)
