"""The page of a diagnosis: what diagnosis.json holds, verdict first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from diagnostics.report.charts import NEUTRAL, STUDENT, TEACHER, Chart, Series, interval_bar
from diagnostics.report.figures import describe, interval, is_interval
from diagnostics.report.page import (
    Figure,
    Folded,
    Headline,
    Page,
    Section,
    models_of,
    preflight_section,
    render,
    token_section,
)
from diagnostics.report.tables import Table, of_buckets, of_groups, of_records, of_statistics, span, with_intervals

_VERDICTS = {
    "go": ("good", "Go", "This teacher is expected to help this student."),
    "go_with_cold_start": (
        "careful",
        "Go, after a cold start",
        "The teacher has something to teach, but thinks too differently: first fine-tune the student on its answers.",
    ),
    "choose_another_teacher": ("bad", "Choose another teacher", "This teacher is not expected to help this student."),
    "nothing_to_learn": ("neutral", "Nothing to learn", "The student already does what this teacher would teach it."),
    "cannot_tell": ("neutral", "Cannot tell", "Nothing that was measured says whether this teacher would help."),
}
_SIDE_BY_SIDE = 5  # groups that fit beside each other
_BY_POSITION = ("overlap_ratio", "overlap_token_advantage", "entropy_gap", "reverse_kl")


def render_diagnosis(diagnosis: Mapping[str, Any]) -> str:
    """Write one HTML document.

    Args:
        diagnosis: as diagnosis.json has it; parts that were not done are None or left out.
    """
    config = diagnosis.get("config") or {}
    probe = diagnosis.get("probe") or {}
    page = Page(
        title="Diagnosis",
        subtitle=models_of(config),
        facts=_facts(diagnosis, probe),
        headline=_headline(diagnosis),
        sections=[
            preflight_section(diagnosis.get("preflight")),
            _agreement(probe),
            _prefix_depth(probe),
            _positions(probe),
            _groups(probe),
            _knowledge(probe),
            _representation(probe),
            *_alignment(diagnosis.get("alignment")),
            token_section(diagnosis.get("trajectories") or []),
        ],
        settings=config,
        versions=diagnosis.get("versions") or {},
        machine=diagnosis.get("machine") or {},
    )
    return render(page)


def _facts(diagnosis: Mapping[str, Any], probe: Mapping[str, Any]) -> list[str]:
    facts = [str(diagnosis["created"])] if diagnosis.get("created") else []
    if probe.get("prompts"):
        facts.append(f"{probe['prompts']} prompts, {probe.get('samples_per_prompt') or 1} samples of each")
    if diagnosis.get("seconds") is not None:
        facts.append(f"{diagnosis['seconds']:.0f} s")
    return [*facts, str(diagnosis["command"])] if diagnosis.get("command") else facts


def _headline(diagnosis: Mapping[str, Any]) -> Headline:
    verdict = diagnosis.get("verdict")
    if not verdict:
        return _without_verdict(diagnosis)
    name = str(verdict["verdict"])
    tone, title, text = _VERDICTS.get(name, ("neutral", name.replace("_", " "), ""))
    change = verdict.get("predicted_change")
    known = is_interval(change) and None not in (change["mean"], change.get("low"), change.get("high"))
    figures = [Figure.of(f"predicted change, {verdict['unit']}", change, signed=True)] if known else []
    return Headline(
        tone=tone,
        title=title,
        text=text,
        figures=[*figures, *_key_figures(diagnosis.get("probe") or {})],
        picture=interval_bar(change["mean"], change["low"], change["high"]) if known else None,
        evidence=verdict.get("evidence") or [],
        command=verdict.get("recommended_command"),
    )


def _without_verdict(diagnosis: Mapping[str, Any]) -> Headline:
    checks = (diagnosis.get("preflight") or {}).get("checks") or []
    failed = [check for check in checks if check["status"] == "fail"]
    if failed:
        lines = [f"{check['name']}: {check.get('seen', '')}" for check in failed]
        return Headline("bad", "Not ready", "A run with this set-up would mean nothing.", evidence=lines)
    return Headline("neutral", "No verdict", "The teacher was not probed.")


def _key_figures(probe: Mapping[str, Any]) -> list[Figure]:
    accuracy, statistics = probe.get("accuracy") or {}, probe.get("statistics") or {}
    values = {
        "accuracy, student": accuracy.get("student"),
        "accuracy, teacher": accuracy.get("teacher"),
        "overlap ratio" + (f", k = {probe['k']}" if probe.get("k") else ""): statistics.get("overlap_ratio"),
    }
    return [Figure.of(label, value) for label, value in values.items() if value is not None]


def _agreement(probe: Mapping[str, Any]) -> Section:
    statistics = dict(probe.get("statistics") or {})
    if not statistics:
        return Section("agreement", "Agreement")
    settings = {"k": probe.get("k"), "vocabulary": probe.get("vocabulary"), "temperature": 1}
    said = ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
    text = f"Means over the tokens that the student wrote, with 95 % intervals; {said}."
    if is_interval(probe.get("auroc")):
        text += (
            f" The mean log-ratio of an answer tells correct from incorrect ones with an AUROC of "
            f"{interval(probe['auroc'])} (0.5: not at all)."
        )
    groups = {"all answers": statistics}
    groups |= {f"{name} answers": found for name, found in (probe.get("by_correctness") or {}).items() if found}
    tables = [of_statistics("", groups, explained=True)]
    return Section("agreement", "Do they agree?", text, tables=tables, short="Agreement")


def _band(label: str, rows: Sequence[Mapping[str, Any] | None], x: Sequence[float], **style: Any) -> Series:
    """A curve with its band, of intervals that may be missing."""
    ends = [[(row or {}).get(name) for row in rows] for name in ("mean", "low", "high")]
    return Series(label, x, ends[0], ends[1], ends[2], **style)


def _prefix_depth(probe: Mapping[str, Any]) -> Section:
    rows = sorted(probe.get("prefix_depth") or [], key=lambda row: row["depth"])
    if not rows:
        return Section("prefix-depth", "Prefix depth")
    depths = [float(row["depth"]) for row in rows]
    share = max(depths) <= 1
    x_label = f"{'share' if share else 'tokens'} of the student's answer already written"
    curves = [
        _band("student goes on", [row.get("student") for row in rows], depths, colour=STUDENT),
        _band("teacher goes on", [row.get("teacher") for row in rows], depths, colour=TEACHER),
    ]
    advantage = [_band("", [row.get("advantage") for row in rows], depths, colour=NEUTRAL)]
    return Section(
        "prefix-depth",
        "Does the teacher still help when the student has begun?",
        "Both models go on from the same beginnings of the student's answers. An advantage that shrinks with depth "
        "means that the teacher's scores are worth less the later they come.",
        charts=[
            Chart("score of the finished answer", curves, x_label).svg(),
            Chart("the teacher's advantage", advantage, x_label).svg(),
        ],
        short="Prefix depth",
        folded=[("The figures", [], [_depth_table(rows, share)])],
    )


def _depth_table(rows: Sequence[Mapping[str, Any]], share: bool) -> Table:
    shown = [
        {
            "depth": f"{row['depth']:.0%}" if share else f"{row['depth']:.0f} tokens",
            "student goes on": row.get("student"),
            "teacher goes on": row.get("teacher"),
            "advantage": row.get("advantage"),
            "beginnings": row.get("n"),
        }
        for row in rows
    ]
    table = of_records("", shown)
    assert table is not None  # the caller has rows
    return table


def _positions(probe: Mapping[str, Any]) -> Section:
    by_position = {name: rows for name, rows in (probe.get("by_position") or {}).items() if rows}
    charts = []
    for name in (name for name in _BY_POSITION if name in by_position):
        rows, known = by_position[name], describe(name)
        series = _band("", rows, list(range(len(rows))), colour=NEUTRAL)
        names = [span(row["from"], row["to"]) for row in rows]
        charts.append(Chart(known.label, [series], "token of the answer", known.unit, x_names=names).svg())
    tables = [of_buckets("", by_position)] if by_position else []
    folded: list[Folded] = [("The figures", [], tables)] if tables else []
    return Section("position", "By position in the answer", charts=charts, folded=folded, short="Position")


def _groups(probe: Mapping[str, Any]) -> Section:
    by_kind = {name: probe[f"by_{name}"] for name in ("domain", "teacher") if probe.get(f"by_{name}")}
    tables = [
        (of_statistics if len(groups) <= _SIDE_BY_SIDE else of_groups)(f"By {name}" if len(by_kind) > 1 else "", groups)
        for name, groups in by_kind.items()
    ]
    return Section("groups", f"By {' and '.join(by_kind)}", tables=tables)


def _knowledge(probe: Mapping[str, Any]) -> Section:
    known = probe.get("new_knowledge") or {}
    failed = known.get("prompts_student_failed")
    if failed is None:
        return Section("new", "New knowledge")
    text = f"The student solved none of its samples of {failed} prompts."
    if is_interval(known.get("teacher_pass_at_k")):
        text += f" The teacher solves {interval(known['teacher_pass_at_k'])} of them at least once."
    if known.get("share_of_gap") is not None:
        text += f" They make up {known['share_of_gap']:.0%} of the gap between the two scores."
    return Section("new", "Does the teacher know something new?", text, short="New knowledge")


def _representation(probe: Mapping[str, Any]) -> Section:
    rows = (probe.get("representation") or {}).get("layers") or []
    if not rows:
        return Section("representation", "Representation")
    layers = [float(row["layer"]) for row in rows]
    named = (("cka", "linear CKA", STUDENT), ("attention_agreement", "attention agreement", TEACHER))
    curves = [_plain(label, layers, [row.get(key) for row in rows], colour) for key, label, colour in named]
    table = of_records("", rows)
    return Section(
        "representation",
        "Do they represent text alike?",
        "Secondary evidence: the published test of compatibility is the overlap.",
        charts=[Chart("similarity by layer", curves, "layer").svg()],
        short="Representation",
        folded=[("The figures", [], [table])] if table else [],
    )


def _plain(label: str, x: Sequence[float], values: Sequence[Any], colour: str) -> Series:
    """A curve of numbers or of intervals."""
    if any(is_interval(value) for value in values):
        return _band(label, values, x, colour=colour)
    return Series(label, x, values, colour=colour)


def _alignment(alignment: Mapping[str, Any] | None) -> list[Section]:
    """The summary, and whatever tables it has, a list of rows each; the long ones on demand."""
    if not alignment:
        return []
    summary = alignment.get("summary") or {}
    names = dict.fromkeys(name for cosines in summary.values() for name in cosines)
    rows = [
        {"cosine": name.replace("_", " "), **{part: cosines.get(name) for part, cosines in summary.items()}}
        for name in names
    ]
    proxies = [
        {"proxy": name.replace("_", " "), "rank correlation with the cosine": correlation}
        for name, correlation in (alignment.get("proxies") or {}).items()
    ]
    tables = [of_records("By correctness of the answer", rows), of_records("Cheap proxies", proxies)]
    folded: list[Folded] = []
    for name, records in (alignment.get("tables") or {}).items():
        title = str(name).replace("_", " ").capitalize()
        table = of_records(title, map(with_intervals, records if isinstance(records, list) else []))
        if table and max(len(table.rows), len(table.columns)) > _LONG:
            folded.append((title, [], [replace(table, title="")]))
        else:
            tables.append(table)
    if isinstance(alignment.get("cost"), Mapping):
        folded.append(("What it cost", [], [of_statistics("", {"": alignment["cost"]})]))
    title = "Where does the teacher's signal help?"
    shown = [table for table in tables if table]
    return [Section("alignment", title, _ALIGNMENT, tables=shown, folded=folded, short="Alignment")]


_ALIGNMENT = (
    "The cosine between the direction in which the teacher pulls at a token and the one that makes the student "
    "succeed more often: 1 is perfect, 0 useless, below 0 harmful."
)
_LONG = 12  # rows or columns of a table that is shown on demand
