"""What many nodes say together: means with intervals over questions, tables, and how well cheap proxies do.

A mean counts a node by the inverse of its probability of having been chosen. Noise in Psucc turns the measured ideal
gradient away from the true one and shortens every cosine by the same factor on average, the square root of the
gradient's reliability; the corrected cosine divides by it (Spearman 1904), and may exceed 1 by chance. The pooled
cosine is that of the gradients of all nodes laid end to end, Σ g·d / √(Σ |g|² Σ |d|²): nodes count by how much
they move the student, where a mean of cosines counts a token that is all but certain like any other.

Shape suffixes: N nodes, Q questions, B bootstrap draws, S statistics.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from diagnostics.alignment.gradients import DESCENTS, Array, NodeAlignment
from diagnostics.intervals import Interval

DRAWS = 1000
_COLUMNS = (
    *DESCENTS,
    "agreement",
    "teacher_advantage",
    "student_success",
    "gradient_square",
    *(f"{name}_{part}" for name in DESCENTS for part in ("product", "square")),
)
ALL, CORRECT, INCORRECT, DIFFERENCE = "all", "correct", "incorrect", "incorrect minus correct"
_LOWEST_RELIABILITY = 0.05  # below it there is nothing to correct by
Json = dict[str, Any]


def number(value: float) -> float | None:
    """What JSON can hold."""
    return float(value) if np.isfinite(value) else None


def counting(rows: Sequence[NodeAlignment]) -> list[NodeAlignment]:
    """Keep the nodes of which something is said."""
    return [row for row in rows if not row.skipped]


def strata(rows: Sequence[NodeAlignment]) -> dict[str, list[NodeAlignment]]:
    """Group nodes by whether their answer is correct."""
    return {
        ALL: list(rows),
        CORRECT: [row for row in rows if row.node.correct],
        INCORRECT: [row for row in rows if not row.node.correct],
    }


def summarise(rows: Sequence[NodeAlignment]) -> dict[str, dict[str, Interval]]:
    """Every statistic of one teacher, by whether the answer is correct, and what the two differ by."""
    questions = sorted({row.node.question for row in rows})
    counts_BQ = resamples(len(questions))
    sampled = {name: _both(_sums(part, questions), counts_BQ) for name, part in strata(counting(rows)).items()}
    sampled[DIFFERENCE] = {
        name: (value - sampled[CORRECT][name][0], draws - sampled[CORRECT][name][1])
        for name, (value, draws) in sampled[INCORRECT].items()
    }
    return {name: {key: _estimate(*pair) for key, pair in part.items()} for name, part in sampled.items()}


def differences(
    rows: Sequence[NodeAlignment], others: Sequence[NodeAlignment]
) -> dict[str, tuple[int, dict[str, Interval]]]:
    """One teacher minus another on the nodes that count for both: their number and every statistic, by stratum."""
    common = {row.node for row in counting(rows)} & {row.node for row in counting(others)}
    questions = sorted({node.question for node in common})
    counts_BQ, by_stratum = resamples(len(questions)), {}
    sides = [strata([row for row in side if row.node in common]) for side in (rows, others)]
    for name in sides[0]:
        one, other = (_both(_sums(side[name], questions), counts_BQ) for side in sides)
        estimates = {key: _estimate(one[key][0] - other[key][0], one[key][1] - other[key][1]) for key in one}
        by_stratum[name] = len(sides[0][name]), estimates
    return by_stratum


def resamples(questions: int) -> Array:
    """[B, Q], how often each question is in each draw."""
    if not questions:
        return np.zeros((DRAWS, 0))
    generator = np.random.default_rng(0)
    return generator.multinomial(questions, np.full(questions, 1 / questions), size=DRAWS).astype(np.float64)


def _sums(rows: Sequence[NodeAlignment], questions: Sequence[str]) -> Array:
    """[Q, 1 + S], the sums of the weights and of each weighted statistic."""
    row_of = {question: index for index, question in enumerate(questions)}
    sums_QS = np.zeros((len(questions), 1 + len(_COLUMNS)))
    for row in rows:
        values = [*row.cosines.values(), row.agreement, row.advantage, row.mean_success, row.gradient_norm**2]
        for name, length in row.direction_norms.items():
            values += [row.cosines[name] * row.gradient_norm * length, length**2]
        sums_QS[row_of[row.node.question]] += np.array([1.0, *values]) / row.node.inclusion_probability
    return sums_QS


def _both(sums_QS: Array, counts_BQ: Array) -> dict[str, tuple[float, Array]]:
    """Each statistic of the sample itself, and of its draws [B]."""
    sample, draws = _statistics(sums_QS.sum(axis=0)[None]), _statistics(counts_BQ @ sums_QS)
    return {name: (float(sample[name][0]), draws[name]) for name in sample}


def _statistics(sums_BS: Array) -> dict[str, Array]:
    with np.errstate(invalid="ignore", divide="ignore"):
        means = dict(zip(_COLUMNS, (sums_BS[:, 1:] / sums_BS[:, :1]).T, strict=True))
        half = means.pop("agreement")
        reliability = 2 * half / (1 + half)  # of the whole, from its halves (Spearman-Brown)
        factor = np.sqrt(np.where(reliability > _LOWEST_RELIABILITY, reliability, np.nan))
        squares = means.pop("gradient_square")
        pooled = {
            name: means.pop(f"{name}_product") / np.sqrt(squares * means.pop(f"{name}_square")) for name in DESCENTS
        }
        return {
            **means,
            **{f"corrected_{name}": means[name] / factor for name in DESCENTS},
            **{f"pooled_{name}": value for name, value in pooled.items()},
            "reliability": reliability,
        }


def _estimate(value: float, draws_B: Array) -> Interval:
    finite = draws_B[np.isfinite(draws_B)]
    if not np.isfinite(value) or not len(finite):
        return Interval(value, np.nan, np.nan)
    return Interval.of(value, finite)


def spearman(a_N: Array, b_N: Array) -> float:
    """Rank correlation; NaN where one of them is constant."""
    a_N, b_N = rankdata(a_N) - (len(a_N) + 1) / 2, rankdata(b_N) - (len(b_N) + 1) / 2
    scale = np.sqrt((a_N @ a_N) * (b_N @ b_N))
    return float(a_N @ b_N / scale) if scale > 0 else np.nan


def proxies(rows: Sequence[NodeAlignment]) -> dict[str, Interval]:
    """Spearman correlation of each proxy with the reverse KL's alignment, over nodes, intervals over questions."""
    rows = counting(rows)
    if not rows:
        return {}
    questions, owner_N = np.unique([row.node.question for row in rows], return_inverse=True)
    alignment_N = np.array([row.cosines["reverse_kl"] for row in rows])
    by_question = [np.flatnonzero(owner_N == index) for index in range(len(questions))]
    draws = [
        np.concatenate([np.repeat(by_question[q], int(count)) for q, count in enumerate(counts_Q)])
        for counts_Q in resamples(len(questions))
    ]
    correlations = {}
    for name in rows[0].view.proxies:
        values_N = np.array([row.view.proxies[name] for row in rows])
        drawn = np.array([spearman(values_N[draw], alignment_N[draw]) for draw in draws])
        correlations[name] = _estimate(spearman(values_N, alignment_N), drawn)
    return correlations


# Tables


def _flat(estimates: Mapping[str, Interval]) -> Json:
    columns: Json = {}
    for name, value in estimates.items():
        columns[name] = number(value.mean)
        if name in (*DESCENTS, "teacher_advantage") or name.startswith("pooled"):
            columns |= {f"{name}_low": number(value.low), f"{name}_high": number(value.high)}
    return columns


def group_rows(rows: Sequence[NodeAlignment], labels: Json) -> list[Json]:
    """One row for all, the correct and the incorrect answers each, as far as there are any."""
    summary = summarise(rows)
    counted = {name: len(part) for name, part in strata(counting(rows)).items()}
    return [
        {**labels, "answers": name, "nodes": count, **_flat(summary[name])} for name, count in counted.items() if count
    ]


def difference_rows(rows: Sequence[NodeAlignment], others: Sequence[NodeAlignment], labels: Json) -> list[Json]:
    """One row for all, the correct and the incorrect answers each, as far as there are any."""
    return [
        {**labels, "answers": name, "nodes": count, **_flat(estimates)}
        for name, (count, estimates) in differences(rows, others).items()
        if count
    ]


def question_rows(rows: Sequence[NodeAlignment], accuracy: Mapping[str, float]) -> list[Json]:
    """Weighted means of each question, without intervals."""
    table = []
    for question in dict.fromkeys(row.node.question for row in rows):
        own = [row for row in rows if row.node.question == question]
        for name, part in strata(counting(own)).items():
            if name != ALL and part:
                sums = _statistics(_sums(part, [question]))
                values = {key: number(sums[key][0]) for key in (*DESCENTS, "teacher_advantage", "student_success")}
                labels = {"question": question, "accuracy": accuracy[question], "answers": name, "nodes": len(part)}
                table.append({**labels, **values})
    return table


def token_row(row: NodeAlignment, texts: Mapping[int, str]) -> Json:
    """One node under one teacher."""
    node, view = row.node, row.view
    return {
        "question": node.question,
        "sample": node.sample_index,
        "position": node.position,
        "token": texts[int(view.candidate_ids[0])],
        "answers": CORRECT if node.correct else INCORRECT,
        "teacher": view.teacher,
        "skipped": row.skipped,
        **{name: number(row.cosines.get(name, np.nan)) for name in DESCENTS},
        "teacher_advantage": number(row.advantage),
        "student_success": number(row.mean_success),
        "gradient_norm": number(row.gradient_norm),
        "noise": number(row.noise),
        "half_agreement": number(row.agreement),
        "inclusion_probability": node.inclusion_probability,
        **{f"proxy_{name}": number(value) for name, value in view.proxies.items()},
    }


def candidate_rows(row: NodeAlignment, texts: Mapping[int, str]) -> list[Json]:
    """What may come next at a node, what both models give it, and how the student fares after it."""
    view = row.view
    return [
        {
            "token": texts[int(token)],
            "student_probability": float(np.exp(view.student_logprobs[i])),
            "teacher_probability": float(np.exp(view.teacher_logprobs[i])),
            "success": number(row.success[i]),
            "kept": bool(row.kept[i]),
        }
        for i, token in enumerate(view.candidate_ids)
    ]
