"""The page of a run, and of a recipe of several: outcome first, in plain words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from diagnostics.report.charts import BEFORE, NEUTRAL, STUDENT, TEACHER, Chart, Series
from diagnostics.report.diagnosis import models_of
from diagnostics.report.figures import ends, figure, interval, is_interval, statistic
from diagnostics.report.page import Figure, Folded, Headline, Page, Section, preflight_section, render
from diagnostics.report.tables import Cell, Table, of_groups, of_statistics
from diagnostics.report.tokens import token_view

X = "policy_version"
ROLES = {"student_before": "student before", "student_after": "student after", "teacher": "teacher"}
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
)
_BUCKET = re.compile(r"train/(\w+)/tokens_(\d+)_(\d+)")
_BY_POSITION = ("overlap_ratio", "overlap_token_advantage", "entropy_gap", "sampled_reverse_kl")
_SMOOTHED_FROM = 30  # steps: with fewer, every point is drawn
_ENDS = 10  # a tenth of the steps at either end is compared by position


@dataclass(frozen=True)
class RunRecord:
    """What the folder of a run holds; whatever is not there yet is empty."""

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, float]] = ()
    summary: Mapping[str, Any] | None = None  # None: the run is going on, or was killed
    samples: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # by step, as `token_view` reads
    preflight: Mapping[str, Any] | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


def render_run(record: RunRecord) -> str:
    """One HTML document."""
    steps = [row for row in record.metrics if "train/loss" in row]
    page = Page(
        title=str(record.settings.get("experiment") or record.name),
        subtitle=models_of(record.settings),
        facts=_facts(record),
        headline=_headline(record, steps),
        sections=[
            _held_out(record),
            _training(steps),
            _positions(steps),
            _tokens(record.samples),
            preflight_section(record.preflight),
            _time(record.summary or {}),
        ],
        settings=record.settings,
        versions=record.versions,
        machine=record.machine,
    )
    return render(page)


def _facts(record: RunRecord) -> list[str]:
    objective = (record.settings.get("objective") or {}).get("name")
    facts = [record.name, str(record.settings.get("stage") or ""), f"objective {objective}" if objective else ""]
    if record.summary:
        facts.append(f"{record.summary['wall_seconds']:.0f} s")
    return [fact for fact in facts if fact]


# The outcome


def _headline(record: RunRecord, steps: Sequence[Mapping[str, float]]) -> Headline:
    summary = record.summary
    planned = (record.settings.get("pipeline") or {}).get("steps")
    if summary is None:
        done = int(steps[-1][X]) if steps else 0
        return Headline("neutral", "Not finished", f"{_of(done, planned)} so far.")
    warnings = [
        (title, list(summary.get(key) or []))
        for key, title in (("alarms", "Alarms"), ("remedies", "Remedies taken"))
        if summary.get(key)
    ]
    evaluation = summary.get("evaluation") or {}
    tone, title, text = _outcome(summary, evaluation)
    if summary["status"] == "stopped":
        tone, text = "bad" if tone == "bad" else "careful", f"{title}. {text}"
        title = f"Stopped by an alarm, with the student of {_of(summary['steps'], planned)}"
    elif summary["status"] != "completed":
        tone = "bad" if summary["status"] == "failed" else "careful"
        title = f"{str(summary['status']).capitalize()} after {_of(summary['steps'], planned)}"
        text = "resume=auto continues it from its last checkpoint." if summary["status"] == "interrupted" else ""
    return Headline(tone, title, text, figures=_key_figures(summary, evaluation), warnings=warnings)


def _of(done: int, planned: int | None) -> str:
    return f"step {done} of {planned}" if planned else f"step {done}"


def _interval_of(evaluation: Mapping[str, Any], role: str, name: str) -> Mapping[str, Any] | None:
    found = ((evaluation.get(role) or {}).get("intervals") or {}).get(name)
    return found if is_interval(found) else None


def _outcome(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tone, title and sentence: of the accuracy, or without a verifier of the divergence from the teacher."""
    for name, called, wanted in (("accuracy", "Accuracy", 1), ("reverse_kl", "Divergence from the teacher", -1)):
        before, after = (_interval_of(evaluation, role, name) for role in ("student_before", "student_after"))
        if before is not None and after is not None:
            moved = (after["low"] > before["high"]) - (after["high"] < before["low"])
            unit = " nats a token" if name == "reverse_kl" else ""
            text = (
                f"Held-out {called.lower()}, 95 % intervals: {interval(before)} before, {interval(after)} after{unit}."
            )
            return _tone(moved * wanted), _change(called, moved, before, after), text + _recovered(summary, evaluation)
    return "neutral", f"Completed after {summary['steps']} steps", ""


def _tone(progress: int) -> str:
    return {1: "good", 0: "neutral", -1: "bad"}[progress]


def _change(called: str, moved: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if not moved:
        return f"{called} shows no clear change"
    verb = "rose" if moved > 0 else "fell"
    return f"{called} {verb} from {figure(before['mean'])} to {figure(after['mean'])}"


def _recovered(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    recovery, teacher = summary.get("gap_recovery"), _interval_of(evaluation, "teacher", "accuracy")
    if recovery is None or teacher is None:
        return " The intervals are of each alone."
    share = f"{recovery:.0%}".replace("-", "−")
    return f" {share} of the gap to the teacher ({interval(teacher)}) is recovered."


def _key_figures(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[Figure]:
    name = "accuracy" if any(_interval_of(evaluation, role, "accuracy") for role in ROLES) else "reverse_kl"
    figures = []
    for role, label in ROLES.items():
        found = _interval_of(evaluation, role, name)
        if found is not None:
            figures.append(Figure(f"{statistic(name).label}, {label}", figure(found["mean"]), ends(found)))
    recovery = summary.get("gap_recovery")
    if recovery is not None:
        figures.append(Figure("gap recovery", f"{recovery:.0%}".replace("-", "−")))
    return figures


# Curves


def _held_out(record: RunRecord) -> Section:
    rows = [row for row in record.metrics if any(f"eval/{name}" in row for name in HELD_OUT)]
    evaluation = (record.summary or {}).get("evaluation") or {}
    charts = []
    for name in HELD_OUT:
        found = [row for row in rows if f"eval/{name}" in row]
        if not found or (name == "truncated_share" and not any(row[f"eval/{name}"] for row in found)):
            continue
        versions = [row[X] for row in found]
        student = Series("student", versions, *_ends_of(found, f"eval/{name}"), colour=STUDENT)
        teacher = _teacher(evaluation, name, versions)
        known = statistic(name)
        charts.append(Chart(known.label, [student, *teacher], "policy version", known.unit).svg())
    groups = {
        label: {name: _interval_of(evaluation, role, name) for name in HELD_OUT if _is_known(evaluation, name)}
        for role, label in ROLES.items()
        if evaluation.get(role)
    }
    prompts = {found["n_prompts"] for found in evaluation.values() if found and "n_prompts" in found}
    text = (
        f"On {max(prompts)} prompts that are not trained on; bands and brackets are 95 % intervals." if prompts else ""
    )
    return Section("held-out", "Held-out prompts", text, charts, [of_statistics("", groups)] if groups else [])


def _is_known(evaluation: Mapping[str, Any], name: str) -> bool:
    return any(_interval_of(evaluation, role, name) for role in ROLES)


def _ends_of(
    rows: Sequence[Mapping[str, float]], name: str
) -> tuple[list[float | None], list[float | None], list[float | None]]:
    mean, low, high = ([row.get(key) for row in rows] for key in (name, f"{name}/low", f"{name}/high"))
    return mean, low, high


def _teacher(evaluation: Mapping[str, Any], name: str, versions: Sequence[float]) -> list[Series]:
    found = _interval_of(evaluation, "teacher", name)
    if found is None or name == "truncated_share":
        return []
    mean, low, high = ([found[key]] * 2 for key in ("mean", "low", "high"))
    return [
        Series("teacher", [min(versions), max(versions)], mean, low, high, colour=TEACHER, dashed=True, marked=False)
    ]


def _training(steps: Sequence[Mapping[str, float]]) -> Section:
    names = list(dict.fromkeys(name for row in steps for name in row if name != X))
    first = [name for name in TRAINING if name in names]
    rest = [name for name in names if name not in TRAINING and not _BUCKET.match(name) and _moves(steps, name)]
    text = ""
    if len(steps) >= _SMOOTHED_FROM:
        text = f"Thick: the mean over {_window(steps)} steps around each, with the range of the same as a band."
    more: list[Folded] = [("More curves", [_curve(steps, name, name) for name in rest], [])] if rest else []
    return Section(
        "training",
        "Training",
        text if steps else "",
        charts=[_curve(steps, name, statistic(name.partition("/")[2]).label) for name in first],
        folded=more,
    )


def _moves(steps: Sequence[Mapping[str, float]], name: str) -> bool:
    return len({row[name] for row in steps if name in row}) > 1


def _window(steps: Sequence[Mapping[str, float]]) -> int:
    return max(3, len(steps) // 20) | 1


def _curve(steps: Sequence[Mapping[str, float]], name: str, title: str) -> Markup:
    rows = [row for row in steps if name in row]
    x, y = [row[X] for row in rows], [row[name] for row in rows]
    unit = statistic(name.partition("/")[2]).unit
    if len(rows) < _SMOOTHED_FROM:
        return Chart(title, [Series("", x, y, colour=NEUTRAL, marked=len(rows) < 2)], X_LABEL, unit).svg()
    half = _window(rows) // 2
    around = [np.asarray(y[max(0, index - half) : index + half + 1]) for index in range(len(y))]
    mean, low, high = ([float(reduce(part)) for part in around] for reduce in (np.mean, np.min, np.max))
    return Chart(title, [Series("", x, mean, low, high, colour=NEUTRAL, marked=False)], X_LABEL, unit).svg()


X_LABEL = "policy version"


# By position


def _positions(steps: Sequence[Mapping[str, float]]) -> Section:
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
        names, known = [_place(*place) for place in places], statistic(name)
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


def _place(first: int, last: int) -> str:
    return str(last) if last == first + 1 else f"{first + 1}–{last}"


def _means(rows: Sequence[Mapping[str, float]], name: str, places: Sequence[tuple[int, int]]) -> list[float | None]:
    keys = [f"train/{name}/tokens_{first}_{last}" for first, last in places]
    found = [[row[key] for row in rows if key in row] for key in keys]
    return [float(np.mean(values)) if values else None for values in found]


def _position_table(rows: Sequence[Mapping[str, float]], buckets: Mapping[str, Sequence[tuple[int, int]]]) -> Table:
    places = sorted({place for found in buckets.values() for place in found})
    groups: dict[str, dict[str, Any]] = {_place(*place): {} for place in places}
    for name in buckets:
        for place, value in zip(places, _means(rows, name, places), strict=True):
            groups[_place(*place)][name] = value
    return of_groups("", groups)


# Tokens and time


def _tokens(samples: Mapping[int, Sequence[Mapping[str, Any]]]) -> Section:
    """The last trajectories that were kept, and the first to compare them with."""
    steps = sorted({min(samples), max(samples)}, reverse=True) if samples else []
    trajectories = [
        {**_tokens_of(sample), "prompt_id": f"step {step}: {sample['prompt_id']}"}
        for step in steps
        for sample in samples[step]
    ]
    view = token_view(trajectories)
    text = f"Samples of {' and '.join(f'step {step}' for step in reversed(steps))}." if steps else ""
    return Section("tokens", "Token by token", text, tokens=view, tables=view.worst if view else [])


def _tokens_of(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A line of samples/step-*.jsonl, which has a list of each signal, with a mapping a token."""
    columns = {
        "student_logprob": sample.get("student_logprobs"),
        "teacher_logprob": sample.get("teacher_logprobs"),
        "student_top": sample.get("student_top"),
        "teacher_top": sample.get("teacher_top"),
    }
    known = {name: values for name, values in columns.items() if values is not None}
    tokens = [
        {"text": text, **{name: values[index] for name, values in known.items() if index < len(values)}}
        for index, text in enumerate(sample["tokens"])
    ]
    return {**sample, "tokens": tokens}


def _time(summary: Mapping[str, Any]) -> Section:
    seconds = {name: value for name, value in (summary.get("stage_seconds") or {}).items() if value}
    if not seconds:
        return Section("time", "Time")
    rows = [[Cell(name.replace("_", " ")), Cell(figure(value), number=True)] for name, value in seconds.items()]
    tokens = summary.get("tokens") or {}
    counted = ", ".join(f"{count:,} {what}" for what, count in tokens.items())
    text = f"{summary['wall_seconds']:.0f} s in all; the stages overlap. Tokens: {counted}."
    left_out = [
        [Cell(name.replace("_", " ")), Cell(str(n), number=True)] for name, n in (summary.get("counts") or {}).items()
    ]
    tables = [Table("", ["stage", "seconds"], rows)]
    if left_out:
        tables.append(Table("Left out", ["reason", "number"], left_out))
    return Section("time", "Time", text, tables=tables)


# A recipe


def render_recipe(name: str, settings: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The page of several stages, each with a page of its own in its folder.

    Args:
        summary: of the recipe: "status", "wall_seconds" and "stages", each of which has "name", "stage", "status",
            "folder" and "summary", the stage's own or None.
    """
    rows = []
    for stage in summary["stages"]:
        own = stage.get("summary") or {}
        evaluation = own.get("evaluation") or {}
        rows.append(
            [
                Cell(stage["folder"], href=f"{stage['folder']}/report.html" if own else ""),
                Cell(str(stage["stage"]).replace("_", " ")),
                Cell(stage["status"]),
                Cell(figure(own.get("wall_seconds")), number=True),
                *(Cell(interval(_interval_of(evaluation, role, "accuracy")), number=True) for role in ROLES),
                *(
                    Cell(interval(_interval_of(evaluation, role, "reverse_kl")), number=True)
                    for role in list(ROLES)[:2]
                ),
            ]
        )
    columns = ["stage", "what it does", "status", "seconds", *(f"accuracy, {label}" for label in ROLES.values())]
    columns += ["reverse KL before", "reverse KL after"]
    alarms = [
        f"{stage['name']}: {line}"
        for stage in summary["stages"]
        for line in (stage.get("summary") or {}).get("alarms") or []
    ]
    tone = {"completed": "good", "failed": "bad"}.get(summary["status"], "careful")
    page = Page(
        title=str(settings.get("experiment") or name),
        subtitle=models_of(settings),
        facts=[name, f"{summary['wall_seconds']:.0f} s"],
        headline=Headline(
            tone,
            f"Recipe {summary['status']}",
            f"{len(rows)} stages; each has a page of its own.",
            warnings=[("Alarms", alarms)] if alarms else [],
        ),
        sections=[Section("stages", "Stages", tables=[Table("", columns, rows)])],
        settings=settings,
    )
    return render(page)
