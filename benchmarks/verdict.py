"""How well the diagnosis predicts what distillation does: over all pairs of the lab, predicted against measured change.

    python -m benchmarks.verdict [--table DIR] [--seeds 0 1 2] [--json PATH]

One point a pair, the mean over seeds of both. The change is measured by the lab's own runs in `--table`; those that
are missing are run first (python -m orchestration.lab table runs the same ones). Every probe is one of the untrained
student on held-out prompts, with real engines. The prediction has no fitted constant. The verdict has one, the margin
that a promised gain must exceed: how much the rule promised too much on any pair. So a go is also judged with the
margin of the other pairs alone, leaving one pair out. Beside it: the skill of each single metric.
"""

import argparse
import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from hydra import compose, initialize_config_module
from rich.progress import Progress
from scipy.stats import spearmanr

from benchmarks.report import finish, print_table
from diagnostics.compatibility import figures
from diagnostics.verdict import Verdict, judge
from orchestration.config.compose import build, register_schema
from orchestration.lab.outcome import Outcome
from orchestration.lab.phenomena import PAIRS, Variant
from orchestration.lab.table import mean_interval, run_all
from orchestration.measure.probe import Prober
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import prepare
from rollout.grading import verifier_pool
from tutelage.cluster import Session
from tutelage.files import write_json

SINGLE = {
    "overlap_ratio": "overlap ratio",
    "overlap_mass_student": "student's mass on the overlap",
    "overlap_token_advantage": "overlap-token advantage",
    "entropy_gap": "entropy gap, negated",
    "reverse_kl": "reverse KL, negated",
    "teacher_accuracy": "teacher's score",
    "lead": "teacher's lead in score",
    "auroc": "AUROC of the mean reward",
    "depth_advantage": "teacher's advantage over all depths",
}
NEGATED = ("entropy_gap", "reverse_kl")


@dataclass(frozen=True)
class Point:
    """One pair."""

    pair: str
    predicted: float
    measured: float
    measured_low: float
    verdicts: tuple[str, ...]  # one a seed
    lows: tuple[float, ...]  # of the predictions' intervals, one a seed
    predictions: tuple[float, ...]  # one a seed
    single: Mapping[str, float]

    @property
    def fails(self) -> bool:
        """Whether the interval of its change is not above 0."""
        return self.measured_low <= 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=Path("outputs/lab/table"), help="the runs of the lab")
    parser.add_argument("--probes", type=Path, default=Path("outputs/lab/probes"), help="where the probes are kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--plot", type=Path, help="where a picture of the points goes")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    register_schema()
    with initialize_config_module("conf", version_base="1.3"):
        run_all(PAIRS, given.seeds, given.table)
        probe_all(PAIRS, given.seeds, given.probes)
    points = [read_point(pair, given.seeds, given.table, given.probes) for pair in PAIRS]
    _print(points)
    if given.plot is not None:
        _plot(points, given.plot)
    finish(skill(points), given.json)


def probe_all(pairs: Sequence[Variant], seeds: Sequence[int], folder: Path) -> None:
    """Probe every pair once a seed; those that are kept are skipped."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [(pair, seed) for seed in seeds for pair in pairs if not _kept(folder, pair.name, seed).is_file()]
    with Session() as session, Progress() as bar:
        for pair, seed in bar.track(missing, description="probes"):
            record = asyncio.run(_probe([*pair.overrides, f"seed={seed}"], session))
            write_json(_kept(folder, pair.name, seed), record)


def _kept(folder: Path, pair: str, seed: int) -> Path:
    return folder / f"{pair}-seed-{seed}.json"


async def _probe(overrides: list[str], session: Session) -> dict[str, Any]:
    config = build(compose("config", overrides=overrides))
    prepared = prepare(config)
    fleet = await Fleet.start(config, prepared, session.cluster(config.cluster))
    await fleet.connect()
    with verifier_pool(config.data.verifier, config.timeouts.grading) as verifier:
        probed = await Prober(config, prepared, fleet, verifier, lambda _what, _responses: None).probe()
    await fleet.set_idle()
    seen = figures(probed.samples)
    judgement = judge(probed.samples, seen)
    assert seen.student_accuracy is not None and seen.teacher_accuracy is not None  # the lab has a verifier
    return {
        "predicted": judgement.predicted_change.mean,
        "predicted_low": judgement.predicted_change.low,
        "verdict": judgement.verdict.value,
        "seconds": probed.seconds,
        "tokens": probed.tokens,
        "single": {
            **{name: interval.mean for name, interval in seen.statistics.items() if name in SINGLE},
            "teacher_accuracy": seen.teacher_accuracy.mean,
            "lead": seen.teacher_accuracy.mean - seen.student_accuracy.mean,
            "auroc": seen.auroc.mean if seen.auroc else 0.5,
            "depth_advantage": fmean(point.advantage.mean for point in seen.prefix_depth),
        },
    }


def read_point(pair: Variant, seeds: Sequence[int], table: Path, probes: Path) -> Point:
    gains = [Outcome.read(table / pair.name / f"seed-{seed}").gain for seed in seeds]
    records = [json.loads(_kept(probes, pair.name, seed).read_text(encoding="utf-8")) for seed in seeds]
    measured = mean_interval([gain for gain in gains if gain is not None])
    return Point(
        pair=pair.name,
        predicted=fmean(record["predicted"] for record in records),
        measured=measured.mean,
        measured_low=measured.low,
        verdicts=tuple(record["verdict"] for record in records),
        lows=tuple(record["predicted_low"] for record in records),
        predictions=tuple(record["predicted"] for record in records),
        single={name: fmean(record["single"][name] for record in records) for name in SINGLE},
    )


def skill(points: Sequence[Point]) -> dict[str, float]:
    """Rank correlations with the measured change, and the verdicts that were wrong in the way that costs."""
    measured = [point.measured for point in points]
    found = {
        "verdict_spearman": _spearman([point.predicted for point in points], measured),
        "failing_pairs_with_go": float(sum(point.fails and Verdict.go.value in point.verdicts for point in points)),
        "distinct_pairs": float(len({point.pair for point in points})),
        "succeeding_pairs_with_go": float(
            sum(not point.fails and set(point.verdicts) == {Verdict.go.value} for point in points)
        ),
        "succeeding_pairs": float(sum(not point.fails for point in points)),
        "largest_overprediction": max(point.predicted - point.measured for point in points),
        "mean_absolute_error": fmean(abs(point.predicted - point.measured) for point in points),
        **leave_one_out(points),
    }
    for name in SINGLE:
        sign = -1 if name in NEGATED else 1
        found[f"spearman_{name}"] = _spearman([sign * point.single[name] for point in points], measured)
    return found


def leave_one_out(points: Sequence[Point]) -> dict[str, float]:
    """The verdicts if the margin were what the rule promised too much on the other pairs."""
    failing = succeeding = 0
    for point in points:
        margin = max(other.predicted - other.measured for other in points if other is not point)
        goes = [low > 0 and mean > margin for low, mean in zip(point.lows, point.predictions, strict=True)]
        failing += point.fails and any(goes)
        succeeding += not point.fails and all(goes)
    return {"failing_pairs_with_go_leave_one_out": failing, "succeeding_pairs_with_go_leave_one_out": succeeding}


def _spearman(left: Sequence[float], right: Sequence[float]) -> float:
    return float(spearmanr(left, right).statistic)


def _print(points: Sequence[Point]) -> None:
    rows = [
        (
            p.pair,
            f"{p.predicted:+.2f}",
            f"{p.measured:+.2f}",
            f"{p.measured_low:+.2f}",
            ", ".join(sorted({*p.verdicts})),
        )
        for p in sorted(points, key=lambda p: -p.measured)
    ]
    columns = ("pair", "predicted change", "measured change", "its lower bound", "verdict")
    print_table("accuracy of the student, before any training and after 60 steps", columns, rows)


def _plot(points: Sequence[Point], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5.5), layout="constrained")
    axis = figure.subplots()
    axis.axline((0, 0), slope=1, color="#bbbbbb", linewidth=1)
    axis.axhline(0, color="#dddddd", linewidth=1)
    for goes, colour, label in ((True, "#1d7a46", "go"), (False, "#c2571a", "any other verdict")):
        some = [p for p in points if ({*p.verdicts} == {Verdict.go.value}) is goes]
        axis.scatter([p.predicted for p in some], [p.measured for p in some], color=colour, label=label)
    for index, p in enumerate(sorted(points, key=lambda p: p.measured)):
        others = [q for q in points if q is not p]
        nearest = min(others, key=lambda q: math.hypot(q.predicted - p.predicted, q.measured - p.measured))
        side, align = (-7, "right") if nearest.predicted > p.predicted else (7, "left")
        offset = (side, (-9, 3)[index % 2])  # away from the nearest, up and down in turn
        axis.annotate(p.pair, (p.predicted, p.measured), offset, textcoords="offset points", fontsize=7, ha=align)
    axis.margins(x=0.2)
    axis.set(xlabel="predicted change of accuracy", ylabel="measured change of accuracy")
    axis.legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
