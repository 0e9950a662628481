"""The lab's table: every run of every phenomenon, over several seeds, and what became of its claims.

phenomena ─► variants × seeds ─ finished ones are skipped ─► outcomes ─► claims with intervals ─► lab.json, lab.html
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from scipy.stats import t as student_t

from diagnostics.intervals import Interval
from orchestration.lab.outcome import Outcome
from orchestration.lab.page import render_lab
from orchestration.lab.phenomena import PAIRS, PHENOMENA, Outcomes, Phenomenon, Variant
from orchestration.lab.series import Job, perform
from orchestration.results.directory import is_finished
from orchestration.results.provenance import machine, package_versions
from tutelage.cluster import Session
from tutelage.console import PlainConsole
from tutelage.files import write_json, write_text

_MEASURED = {
    "overlap ratio": "train/overlap_ratio",
    "overlap mass of the student": "train/overlap_mass_student",
    "overlap-token advantage": "train/overlap_token_advantage",
    "entropy gap": "train/entropy_gap",
    "student entropy": "train/student_entropy",
    "gradient norm": "train/grad_norm",
    "sampled reverse KL": "train/sampled_reverse_kl",
}


@dataclass(frozen=True)
class Finding:
    """What became of a claim; the interval is of the quantity that is above zero if it is right."""

    phenomenon: str
    claim: str
    unit: str
    values: tuple[float, ...]  # one a seed
    interval: Interval

    @property
    def verdict(self) -> str:
        if self.interval.low > 0:
            return "holds"
        return "does not hold" if self.interval.high < 0 else "open"


def make_table(names: Sequence[str], seeds: Sequence[int], root: Path) -> None:
    """Run what is missing and write lab.json and lab.html into `root`. Hydra must be initialised.

    Args:
        names: of phenomena; none: all, and every pair.

    Raises:
        ValueError: a phenomenon that the lab does not have, or too few seeds.
    """
    if len(set(seeds)) < 2:
        raise ValueError(f"--seeds {' '.join(map(str, seeds))}: an interval needs two different seeds or more")
    known = {phenomenon.name: phenomenon for phenomenon in PHENOMENA}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"{shlex.join(unknown)}: no phenomenon of the lab; there are {shlex.join(known)}")
    phenomena = [known[name] for name in names] or list(PHENOMENA)
    variants = {variant.name: variant for phenomenon in phenomena for variant in phenomenon.variants}
    if not names:
        variants |= {variant.name: variant for variant in PAIRS}
    run_all(list(variants.values()), seeds, root)
    conclude(phenomena, list(variants), seeds, root)


def run_all(variants: Sequence[Variant], seeds: Sequence[int], root: Path) -> None:
    """Seed by seed, so that a series that is stopped leaves whole ones."""
    jobs = [
        Job(_folder(root, variant.name, seed), (*variant.overrides, f"seed={seed}", f"evaluation.seed={1234 + seed}"))
        for seed in seeds
        for variant in variants
    ]
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=PlainConsole(stderr=True)) as progress, Session() as session:
        task = progress.add_task("", total=len(jobs), completed=sum(is_finished(job.folder) for job in jobs))
        for job in jobs:
            progress.update(task, description=f"{job.folder.parent.name}, {job.folder.name}")
            if perform(job, session):
                progress.advance(task)


def _folder(root: Path, variant: str, seed: int) -> Path:
    return root / variant / f"seed-{seed}"


def conclude(phenomena: Sequence[Phenomenon], variants: Sequence[str], seeds: Sequence[int], root: Path) -> None:
    """Read what the runs left, and write and print what follows."""
    outcomes = {seed: {name: Outcome.read(_folder(root, name, seed)) for name in variants} for seed in seeds}
    findings = [finding for phenomenon in phenomena for finding in weigh_claims(phenomenon, outcomes)]
    runs = {name: _figures([outcomes[seed][name] for seed in seeds]) for name in variants}
    names = [] if len(phenomena) == len(PHENOMENA) else [phenomenon.name for phenomenon in phenomena]
    command = ["python", "-m", "orchestration.lab", "table", *names, "--seeds", *map(str, seeds)]
    content = {
        "command": shlex.join(command),
        "machine": machine(),
        "versions": package_versions(("torch", "transformers", "deepspeed", "ray")),
        "seeds": list(seeds),
        "runs": {name: {key: asdict(value) for key, value in figures.items()} for name, figures in runs.items()},
        "findings": [{**asdict(finding), "verdict": finding.verdict} for finding in findings],
    }
    write_json(root / "lab.json", content)
    write_text(root / "lab.html", render_lab(content, outcomes))
    _print(findings, runs)
    PlainConsole().print(f"{root / 'lab.html'}\n{root / 'lab.json'}", soft_wrap=True)


def weigh_claims(phenomenon: Phenomenon, outcomes: Mapping[int, Outcomes]) -> list[Finding]:
    """Hold what a phenomenon claims against its runs.

    Args:
        outcomes: of the runs, by seed and variant.
    """
    findings = []
    for claim in phenomenon.claims:
        values = tuple(claim.quantity(by_variant) for by_variant in outcomes.values())
        findings.append(Finding(phenomenon.name, claim.text, claim.unit, values, mean_interval(values)))
    return findings


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean of two values or more with its 95 % interval by Student's t."""
    mean, degrees = fmean(values), len(values) - 1
    half = float(student_t.ppf(0.975, degrees)) * stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def _figures(outcomes: Sequence[Outcome]) -> dict[str, Interval]:
    """Means and intervals of one variant over the seeds; what a run does not have is left out."""
    columns: dict[str, list[float | None]] = {
        "accuracy before": [o.accuracy_before for o in outcomes],
        "accuracy after": [o.accuracy_after for o in outcomes],
        "accuracy of the teacher": [o.accuracy_teacher for o in outcomes],
        "gain": [o.gain for o in outcomes],
        "gap recovery": [o.recovery for o in outcomes],
        "teacher tokens": [float(o.teacher_tokens) for o in outcomes],
        "seconds": [float(o.summary["wall_seconds"]) for o in outcomes],
    }
    for label, name in _MEASURED.items():
        columns[f"{label} at first"] = [o.first(name) if name in o.steps[0] else None for o in outcomes]
        columns[f"{label} at last"] = [o.last(name) if name in o.steps[0] else None for o in outcomes]
    return {
        key: mean_interval([v for v in column if v is not None])
        for key, column in columns.items()
        if None not in column
    }


def _print(findings: Sequence[Finding], runs: Mapping[str, Mapping[str, Interval]]) -> None:
    console = PlainConsole()
    table = Table(title="runs", title_justify="left")
    shown = ("accuracy before", "accuracy after", "accuracy of the teacher", "gap recovery")
    for column in ("", *shown):
        table.add_column(column, justify="right" if column else "left")
    for name, figures in runs.items():
        table.add_row(name, *(str(figures.get(key, "–")) for key in shown))
    console.print(table)
    table = Table(title="claims", title_justify="left")
    for column in ("phenomenon", "claim", "verdict", "by how much"):
        table.add_column(column)
    for finding in findings:
        table.add_row(finding.phenomenon, finding.claim, finding.verdict, f"{finding.interval} {finding.unit}")
    console.print(table)
