"""The pages of a run and of a recipe: outcome first, in plain words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diagnostics.report.curves import X, held_out_section, position_section, training_section
from diagnostics.report.figures import ROLES, describe, figure, interval, interval_of
from diagnostics.report.page import Figure, Headline, Page, Section, models_of, preflight_section, render, token_section
from diagnostics.report.tables import Cell, Table


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
    """Write one HTML document."""
    steps = [row for row in record.metrics if "train/loss" in row]
    page = Page(
        title=str(record.settings.get("name") or record.name),
        subtitle=models_of(record.settings),
        facts=_facts(record),
        headline=_headline(record, steps),
        sections=[
            held_out_section(record.metrics, (record.summary or {}).get("evaluation") or {}),
            training_section(steps),
            position_section(steps),
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


def _outcome(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> tuple[str, str, str]:
    """Tone, title and sentence: of the accuracy, or without a verifier of the divergence from the teacher."""
    for name, called, wanted in (("accuracy", "Accuracy", 1), ("reverse_kl", "Divergence from the teacher", -1)):
        before, after = (interval_of(evaluation, role, name) for role in ("student_before", "student_after"))
        if before is not None and after is not None:
            moved = (after["low"] > before["high"]) - (after["high"] < before["low"])
            unit = " nats a token" if name == "reverse_kl" else ""
            text = (
                f"Held-out {called.lower()}, 95 % intervals: {interval(before)} before, {interval(after)} after{unit}."
            )
            tone = ("neutral", "good", "bad")[moved * wanted]
            return tone, _change(called, moved, before, after), text + _recovered(summary, evaluation)
    return "neutral", f"Completed after {summary['steps']} steps", ""


def _change(called: str, moved: int, before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    if not moved:
        return f"{called} shows no clear change"
    verb = "rose" if moved > 0 else "fell"
    return f"{called} {verb} from {figure(before['mean'])} to {figure(after['mean'])}"


def _recovered(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    recovery, teacher = summary.get("gap_recovery"), interval_of(evaluation, "teacher", "accuracy")
    if recovery is None or teacher is None:
        return " The intervals are of each alone."
    share = f"{recovery:.0%}".replace("-", "−")
    return f" {share} of the gap to the teacher ({interval(teacher)}) is recovered."


def _key_figures(summary: Mapping[str, Any], evaluation: Mapping[str, Any]) -> list[Figure]:
    name = "accuracy" if any(interval_of(evaluation, role, "accuracy") for role in ROLES) else "reverse_kl"
    figures = []
    for role, label in ROLES.items():
        value = interval_of(evaluation, role, name)
        if value is not None:
            figures.append(Figure.of(f"{describe(name).label}, {label}", value))
    recovery = summary.get("gap_recovery")
    if recovery is not None:
        figures.append(Figure("gap recovery", f"{recovery:.0%}".replace("-", "−")))
    return figures


# Tokens and time


def _tokens(samples: Mapping[int, Sequence[Mapping[str, Any]]]) -> Section:
    """The last trajectories that were kept, and the first to compare them with."""
    steps = sorted({min(samples), max(samples)}, reverse=True) if samples else []
    trajectories = [
        {**_tokens_of(sample), "prompt_id": f"step {step}: {sample['prompt_id']}"}
        for step in steps
        for sample in samples[step]
    ]
    text = f"Samples of {' and '.join(f'step {step}' for step in reversed(steps))}." if steps else ""
    return token_section(trajectories, text)


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


# Several stages


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
                *(Cell(interval(interval_of(evaluation, role, "accuracy")), number=True) for role in ROLES),
                *(Cell(interval(interval_of(evaluation, role, "reverse_kl")), number=True) for role in list(ROLES)[:2]),
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
        title=str(settings.get("name") or name),
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
