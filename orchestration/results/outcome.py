"""What a finished run tells people: figures and answers on the console, and the card beside its weights."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.results.summary import ROLES, Answers, Evaluation, Summary
from tutelage.console import PlainConsole
from tutelage.files import write_text
from tutelage.records.prompt import Prompt

SHOWN_ANSWERS = 4


def print_outcome(
    console: PlainConsole, run_dir: Path, summary: Summary, answers: Mapping[str, Answers], heldout: Sequence[Prompt]
) -> None:
    """Print figures, a few answers side by side, and where everything lies."""
    figures = _figures(summary)
    if figures.rows:
        console.print(figures)
    if "student_after" in answers:
        console.print(_side_by_side(answers, heldout))
    console.print(
        f"{summary.status} after {summary.steps} steps, {summary.wall_seconds:.0f} s; "
        f"{summary.tokens_per_second:.1f} trained tokens a second",
        style="bold",
    )
    outputs = {
        "model": "final",
        "report": "report.html",
        "numbers": "metrics.jsonl",
        "outcome": "summary.json",
        "samples": "samples",
        "checkpoints": "checkpoints",
        "logs": "run.log",
    }
    for name, output in outputs.items():
        if (run_dir / output).exists():
            console.print(f"  {name:<12}{run_dir / output}", soft_wrap=True)


def _figures(summary: Summary) -> Table:
    table = Table(title="held-out prompts", title_justify="left")
    for column in ("", "student before", "student after", "teacher"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {
        "reverse KL (nats a token)": "reverse_kl",
        "forward KL (nats a token)": "forward_kl",
        "top-k overlap": "overlap_ratio",
        "KL to its initial weights": "base_reverse_kl",
        "answer length (tokens)": "mean_response_tokens",
        "truncated share": "truncated_share",
        "accuracy": "accuracy",
    }
    for label, name in rows.items():
        cells = [_with_interval(summary.evaluation[role], name) for role in ROLES]
        if any(cells):
            table.add_row(label, *(cell or "–" for cell in cells))
    before, after, teacher = (summary.evaluation[role] for role in ROLES)
    if before and after and teacher:
        table.caption = _progress(before, after, teacher, summary.gap_recovery)
    return table


def _with_interval(evaluation: Evaluation | None, name: str) -> str:
    value = getattr(evaluation, name) if evaluation is not None else None
    if evaluation is None or value is None:
        return ""
    interval = evaluation.intervals[name]
    return f"{value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def _progress(before: Evaluation, after: Evaluation, teacher: Evaluation, recovery: float | None) -> str:
    parts = []
    if before.reverse_kl and after.reverse_kl is not None:
        parts.append(f"reverse KL fell by {1 - after.reverse_kl / before.reverse_kl:.0%}")
    gap = teacher.mean_response_tokens - before.mean_response_tokens
    if gap:
        moved = (after.mean_response_tokens - before.mean_response_tokens) / gap
        parts.append(f"answer length went {moved:.0%} of the way to the teacher's")
    if before.accuracy is not None:
        parts.append(f"gap recovery {'n/a' if recovery is None else f'{recovery:.0%}'}")
    return "; ".join(parts)


def _side_by_side(answers: Mapping[str, Answers], heldout: Sequence[Prompt]) -> Table:
    table = Table(title="a few answers", title_justify="left", show_lines=True)
    roles = [role for role in ROLES if role in answers]
    for column in ("prompt", *(role.removeprefix("student_") for role in roles)):
        table.add_column(column, overflow="fold", ratio=1)
    for prompt in heldout[:SHOWN_ANSWERS]:
        table.add_row(prompt.messages[-1].content, *(answers[role].texts[prompt.id].strip() for role in roles))
    return table


def write_model_card(final: Path, config: RunConfig) -> None:
    """Write a README beside the exported weights: what they were made from, and how."""
    student, kind = config.student.model, STAGES[config.stage]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        f"tags: [{kind.method.replace(' ', '-')}, tutelage]",
        "---",
        "",
        f"# {student}, {kind.done}",
        "",
        f"- student: `{student}`",
        *_sources(config),
        f"- objective: `{config.objective.name}`",
        f"- steps: {config.pipeline.steps} of {config.pipeline.batch_size} trajectories",
        "",
        f"Made with Tutelage by {kind.method}; `config.yaml` of the run has every setting.",
    ]
    write_text(final / "README.md", "\n".join(lines) + "\n")


def _sources(config: RunConfig) -> list[str]:
    """Say whom the student learned from, a line each."""
    teacher, reference = config.teacher, config.objective.reference.model
    told = f", told {teacher.context!r}" if teacher.context else ""
    if STAGES[config.stage].has_teacher:
        others = [
            f"- teacher {key}: " + (f"mixture {other.mixture}" if other.mixture else f"`{other.model}`")
            for key, other in config.further_teachers.items()
        ]
        return [f"- teacher: `{teacher.model}`{told}", *others]
    kept_near = [f"- reference: `{reference}`"] if reference else []
    return [f"- rewards: `{config.data.verifier}` verifier", *kept_near]
