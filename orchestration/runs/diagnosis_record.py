"""The record of a diagnosis: what was measured, as diagnosis.json has it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from enum import Enum
from typing import Any

from transformers import PreTrainedTokenizerBase

from diagnostics.compatibility import ProbedAnswer, ProbeStatistics
from orchestration.config.schema import RunConfig
from orchestration.measure.probe import Probed
from tutelage.records.trajectory import CORRECT, Trajectory

TOP = 5  # ids of each model in the token view


def probe_record(config: RunConfig, probed: Probed, statistics: ProbeStatistics, vocabulary: int) -> dict[str, Any]:
    """The section `probe` of diagnosis.json."""
    accuracy = None
    if statistics.student_accuracy is not None and statistics.teacher_accuracy is not None:
        accuracy = {"student": asdict(statistics.student_accuracy), "teacher": asdict(statistics.teacher_accuracy)}
    record = plain(asdict(statistics))
    for name in ("student_accuracy", "teacher_accuracy"):
        del record[name]
    record["by_position"] = {
        name: [{"from": b.from_token, "to": b.to_token, **asdict(b.interval), "tokens": b.tokens} for b in buckets]
        for name, buckets in statistics.by_position.items()
    }
    return {
        "prompts": probed.cost.prompts,
        "samples_per_prompt": config.probe.samples_per_prompt,
        "tokens": probed.tokens,
        "seconds": round(probed.seconds, 1),
        "k": config.learner.examined_k,
        "vocabulary": vocabulary,
        "accuracy": accuracy,
        **record,
        "representation": {"layers": [asdict(layer) for layer in probed.layers]} if probed.layers else None,
    }


def plain(value: Any) -> Any:
    """Return a value without enums, so that it is JSON."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def shown_trajectories(probed: Probed, tokenizer: PreTrainedTokenizerBase, count: int) -> list[dict[str, Any]]:
    """A few answers token by token, correct and incorrect ones in turn where there are both."""
    pairs = list(zip(probed.samples.answers, probed.trajectories, strict=True))
    right = _one_a_prompt([pair for pair in pairs if pair[0].reward == CORRECT])
    wrong = _one_a_prompt([pair for pair in pairs if pair[0].reward != CORRECT])
    half = count // 2
    chosen = right[: max(half, count - len(wrong))] + wrong[: max(count - half, count - len(right))]
    return [_shown(answer, trajectory, tokenizer) for answer, trajectory in chosen[:count]]


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
                "text": tokenizer.decode([trajectory.response_ids[position]]),
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
            for row, position in enumerate(tokens.positions)
        ],
    }


def _top(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], student: Sequence[float], teacher: Sequence[float]
) -> list[list[Any]]:
    """[text, the student's log-prob, the teacher's] of each id."""
    rows = zip(ids[:TOP], student[:TOP], teacher[:TOP], strict=True)
    return [
        [tokenizer.decode([token]), _rounded(of_student), _rounded(of_teacher)]
        for token, of_student, of_teacher in rows
    ]


def _rounded(value: float) -> float:
    return round(max(float(value), -1e6), 4)  # the lowest finite number stands for a probability of zero
