"""What a diagnosis leaves behind: the record of all that was measured, as JSON and for people."""

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerBase

from diagnostics.compatibility import ProbedAnswer, ProbeStatistics, figures
from diagnostics.report import render_diagnosis
from diagnostics.verdict import Verdict, VerdictReport, judge, overrides_for
from orchestration.config.schema import RunConfig
from orchestration.measure.alignment import Alignment, measure_alignment
from orchestration.measure.evaluation import examined_k
from orchestration.measure.preflight import Preflight, print_checks, run_preflight
from orchestration.measure.probe import Probed, Prober, plan_probe
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import Prepared
from orchestration.results.provenance import machine, package_versions
from rollout.verifiers import VERIFIERS
from tutelage.files import write_json, write_text
from tutelage.records.trajectory import CORRECT, Trajectory

NOT_GO = 3


class Diagnosis:
    """One diagnosis, from the workers to its folder."""

    def __init__(self, config: RunConfig, prepared: Prepared, console: Console) -> None:
        self._config, self._prepared, self._console = config, prepared, console
        self._verifier = VERIFIERS[config.data.verifier]
        self._started = time.monotonic()
        self._preflight: Preflight | None = None
        self._alignment: Alignment | None = None
        self._probed: Probed | None = None
        self._figures: ProbeStatistics | None = None
        self._judgement: VerdictReport | None = None

    @property
    def exit_code(self) -> int:
        return 0 if self._judgement is not None and self._judgement.verdict is Verdict.go else NOT_GO

    async def carry_out(self, workers: Fleet) -> None:
        """The preflight, and the probe unless a check failed."""
        await workers.connect()
        self._preflight = await run_preflight(
            self._config, self._prepared, workers, self._verifier, self._console.print
        )
        print_checks(self._console, self._preflight.checks)
        if self._preflight.failed:
            self._console.print("a check failed, so nothing that a probe found would mean anything: mend it first")
            return
        if self._config.alignment.enabled:  # first, while the engines hold the student
            self._alignment = await measure_alignment(
                self._config, self._prepared, workers, self._verifier, self._console.print
            )
        self._probed = await self._probe(workers)
        self._figures = figures(self._probed.found)
        self._judgement = judge(self._probed.found, self._figures)

    async def _probe(self, workers: Fleet) -> Probed:
        cost = plan_probe(self._config, self._prepared)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("probe", total=cost.answers + cost.continuations)

            def advance(what: str, responses: int) -> None:
                bar.update(task, description=what, advance=responses)

            return await Prober(self._config, self._prepared, workers, self._verifier, advance).probe()

    def write(self, folder: Path, settings: dict[str, Any], overrides: Sequence[str]) -> None:
        """diagnosis.json and report.html, and the verdict for whoever watches."""
        assert self._preflight is not None
        probed, found, judgement = self._probed, self._figures, self._judgement
        command = shlex.join(
            ["python", "-m", "orchestration.launch", *overrides, *(overrides_for(judgement) if judgement else ())]
        )
        record = {
            "command": shlex.join(["python", "-m", "orchestration.diagnose", *overrides]),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "versions": package_versions(),
            "seconds": round(time.monotonic() - self._started, 1),
            "verdict": verdict_record(judgement, command) if judgement else None,
            "preflight": self._preflight.as_json(),
            "probe": probe_record(self._config, probed, found, len(self._prepared.tokenizer))
            if probed and found
            else None,
            "alignment": self._alignment.as_json() if self._alignment else None,
            "trajectories": shown_trajectories(probed, self._prepared.tokenizer, self._config.probe.shown)
            if probed
            else [],
            "config": settings,
        }
        write_json(folder / "diagnosis.json", record)
        write_text(folder / "report.html", render_diagnosis(record))
        if judgement:
            self._print_verdict(judgement, command)
        self._console.print(f"{folder / 'report.html'}\n{folder / 'diagnosis.json'}", highlight=False, soft_wrap=True)

    def _print_verdict(self, judgement: VerdictReport, command: str) -> None:
        change = judgement.predicted_change
        self._console.print(f"\n[bold]{judgement.verdict.value.replace('_', ' ')}[/bold]")
        self._console.print(
            f"predicted change of {judgement.unit}: {change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]",
            highlight=False,
            markup=False,
        )
        for line in judgement.evidence:
            self._console.print(f"  · {line}", highlight=False, markup=False)
        self._console.print(f"next: {command}", highlight=False, markup=False, soft_wrap=True)


TOP = 5  # ids of each model in the token view


def verdict_record(found: VerdictReport, command: str) -> dict[str, Any]:
    return {**_plain(asdict(found)), "recommended_command": command}


def probe_record(config: RunConfig, probed: Probed, found: ProbeStatistics, vocabulary: int) -> dict[str, Any]:
    """The section `probe` of diagnosis.json."""
    accuracy = None
    if found.student_accuracy is not None and found.teacher_accuracy is not None:
        accuracy = {"student": asdict(found.student_accuracy), "teacher": asdict(found.teacher_accuracy)}
    record = _plain(asdict(found))
    for name in ("student_accuracy", "teacher_accuracy"):
        del record[name]
    record["by_position"] = {
        name: [{"from": b.from_token, "to": b.to_token, **asdict(b.interval), "tokens": b.tokens} for b in buckets]
        for name, buckets in found.by_position.items()
    }
    return {
        "prompts": probed.cost.prompts,
        "samples_per_prompt": config.probe.samples_per_prompt,
        "tokens": probed.tokens,
        "seconds": round(probed.seconds, 1),
        "k": examined_k(config.learner),
        "vocabulary": vocabulary,
        "accuracy": accuracy,
        **record,
        "representation": {"layers": [asdict(layer) for layer in probed.layers]} if probed.layers else None,
    }


def _plain(value: Any) -> Any:
    """Without enums, so that it is JSON."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def shown_trajectories(probed: Probed, tokenizer: PreTrainedTokenizerBase, count: int) -> list[dict[str, Any]]:
    """A few answers token by token, correct and incorrect ones in turn where there are both."""
    pairs = list(zip(probed.found.answers, probed.trajectories, strict=True))
    right = _one_a_prompt([pair for pair in pairs if pair[0].reward == CORRECT])
    wrong = _one_a_prompt([pair for pair in pairs if pair[0].reward != CORRECT])
    half = count // 2
    some = right[: max(half, count - len(wrong))] + wrong[: max(count - half, count - len(right))]
    return [_shown(answer, trajectory, tokenizer) for answer, trajectory in some[:count]]


def _one_a_prompt(pairs: Sequence[tuple[ProbedAnswer, Trajectory]]) -> list[tuple[ProbedAnswer, Trajectory]]:
    return list({answer.prompt_id: (answer, trajectory) for answer, trajectory in reversed(pairs)}.values())[::-1]


def _shown(answer: ProbedAnswer, trajectory: Trajectory, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    tokens, values = answer.tokens, answer.tokens.values
    return {
        "prompt_id": answer.prompt_id,
        "sample_index": trajectory.sample_index,
        "prompt": tokenizer.decode(trajectory.prompt_ids),
        "response": tokenizer.decode(trajectory.response_ids, skip_special_tokens=True),
        "reward": answer.reward,
        "tokens": [
            {
                "text": tokenizer.decode([trajectory.response_ids[place]]),
                "student_logprob": _rounded(values["student_logprob"][row]),
                "teacher_logprob": _rounded(values["teacher_logprob"][row]),
                "reverse_kl": _rounded(values["reverse_kl"][row]),
                "student_top": _top(
                    tokenizer,
                    tokens.student_top_ids[row],
                    tokens.student_top_logprobs[row],
                    tokens.teacher_logprobs_at_student_top[row],
                ),
                "teacher_top": _top(
                    tokenizer,
                    tokens.teacher_top_ids[row],
                    tokens.student_logprobs_at_teacher_top[row],
                    tokens.teacher_top_logprobs[row],
                ),
            }
            for row, place in enumerate(tokens.positions)
        ],
    }


def _top(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], student: Sequence[float], teacher: Sequence[float]
) -> list[list[Any]]:
    """[text, the student's log-prob, the teacher's] of each id."""
    rows = zip(ids[:TOP], student[:TOP], teacher[:TOP], strict=True)
    return [[tokenizer.decode([token]), _rounded(ours), _rounded(theirs)] for token, ours, theirs in rows]


def _rounded(value: float) -> float:
    return round(max(float(value), -1e6), 4)  # the lowest finite number stands for a probability of zero
