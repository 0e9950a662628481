"""The token view: trajectories with every token coloured by what the teacher thinks of it, and the worst of them.

A trajectory is a mapping as diagnosis.json has it: "prompt_id", "sample_index", "prompt", "reward" (None if nobody
graded it) and "tokens", each of them a mapping with "text", "student_logprob", "teacher_logprob", "reverse_kl" and, as
lists of [text, student's log-prob, teacher's log-prob], "student_top" and "teacher_top". All in nats; whatever is not
known is None or left out.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from diagnostics.report.figures import NOTHING, figure
from diagnostics.report.tables import Cell, Table
from tutelage.records.trajectory import CORRECT

SHOWN_TOKENS = 1024  # of one trajectory
WORST = 12
CONTEXT = 48  # characters before a token in the table of the worst
RATIO_EDGES = (0.1, 0.3, 1.0, 2.0, 4.0)  # nats; a colour for what lies between two
KL_EDGES = (0.01, 0.1, 0.3, 1.0, 2.0)
_VISIBLE = {"\n": "⏎\n", "\t": "⇥\t", "\r": "␍"}

Token = Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """One trajectory on the page."""

    number: int
    title: str
    facts: str
    prompt: str
    html: Markup
    left_out: int


@dataclass(frozen=True)
class Column:
    """Trajectories of one kind, below each other."""

    title: str
    kind: str
    trajectories: Sequence[Shown]


@dataclass(frozen=True)
class TokenView:
    """Trajectories as the page shows them, and what its script says of each token."""

    columns: Sequence[Column]
    signals: Sequence[Sequence[Sequence[Any]]]  # [trajectory][token]: text, log p, log q, reverse KL, both tops
    worst: Sequence[Table]
    has_kl: bool


def token_view(trajectories: Sequence[Mapping[str, Any]]) -> TokenView | None:
    """None where there is no trajectory."""
    shown = [(item, _show(number, item)) for number, item in enumerate(trajectories)]
    if not shown:
        return None
    graded = any(item.get("reward") is not None for item, _view in shown)
    sides: list[tuple[str, str, Callable[[Any], bool]]] = [("Trajectories", "", lambda reward: reward is None)]
    if graded:
        sides = [
            ("Correct", "good", lambda reward: reward is not None and reward >= CORRECT),
            ("Incorrect", "bad", lambda reward: reward is not None and reward < CORRECT),
            ("Not graded", "", lambda reward: reward is None),
        ]
    columns = [
        Column(title, kind, [view for item, view in shown if belongs(item.get("reward"))])
        for title, kind, belongs in sides
    ]
    return TokenView(
        columns=[column for column in columns if column.trajectories or column.kind],
        signals=[[_signal(token) for token in item["tokens"][:SHOWN_TOKENS]] for item in trajectories],
        worst=_worst(trajectories),
        has_kl=any(_finite(token.get("reverse_kl")) is not None for item in trajectories for token in item["tokens"]),
    )


def log_ratio(token: Token) -> float | None:
    """log q − log p of the token, in nats: below zero where the teacher would not have written it."""
    student, teacher = _finite(token.get("student_logprob")), _finite(token.get("teacher_logprob"))
    return None if student is None or teacher is None else teacher - student


def _finite(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _show(number: int, item: Mapping[str, Any]) -> Shown:
    tokens = item["tokens"]
    ratios = [ratio for ratio in map(log_ratio, tokens) if ratio is not None]
    facts = [f"{len(tokens)} tokens"]
    if item.get("reward") is not None:
        facts.append(f"reward {figure(item['reward'])}")
    if ratios:
        facts.append(f"mean log-ratio {figure(sum(ratios) / len(ratios), signed=True)} nats a token")
    if item.get("origin", "student") != "student":
        facts.append(f"written by the {item['origin']}")
    return Shown(
        number=number,
        title=f"{item['prompt_id']}, sample {item['sample_index']}",
        facts=" · ".join(facts),
        prompt=str(item.get("prompt", "")),
        html=Markup("").join(_span(number, index, token) for index, token in enumerate(tokens[:SHOWN_TOKENS])),
        left_out=max(0, len(tokens) - SHOWN_TOKENS),
    )


def _span(number: int, index: int, token: Token) -> Markup:
    tab = 0 if index == 0 else -1  # one stop a trajectory; the arrow keys go on from there
    return Markup('<span id="t{}-{}" class="t {}" tabindex="{}">{}</span>').format(
        number, index, _colours(token), tab, visible(token["text"])
    )


def visible(text: str) -> str:
    """The text with line ends and tabs that can be seen."""
    return "".join(_VISIBLE.get(letter, letter) for letter in text) or "∅"


def _colours(token: Token) -> str:
    ratio, divergence = log_ratio(token), _finite(token.get("reverse_kl"))
    names = []
    if ratio is not None:
        level = bisect_right(RATIO_EDGES, abs(ratio))
        names.append("r0" if not level else f"{'up' if ratio > 0 else 'down'}{level}")
    if divergence is not None:
        names.append(f"k{bisect_right(KL_EDGES, divergence)}")
    return " ".join(names)


def _signal(token: Token) -> list[Any]:
    values = [_finite(token.get(name)) for name in ("student_logprob", "teacher_logprob", "reverse_kl")]
    rounded = [None if value is None else round(value, 4) for value in values]
    tops = [
        [[text, *(None if _finite(value) is None else round(value, 3) for value in both)] for text, *both in top]
        for top in (token.get("student_top") or [], token.get("teacher_top") or [])
    ]
    return [token["text"], *rounded, *tops]


def _worst(trajectories: Sequence[Mapping[str, Any]]) -> list[Table]:
    places = [(n, i) for n, item in enumerate(trajectories) for i in range(len(item["tokens"]))]

    def token(place: tuple[int, int]) -> Token:
        return trajectories[place[0]]["tokens"][place[1]]

    ratios = {
        place: ratio for place in places if (ratio := log_ratio(token(place))) is not None and ratio < -RATIO_EDGES[0]
    }
    divergences = {
        place: divergence
        for place in places
        if (divergence := _finite(token(place).get("reverse_kl"))) is not None and divergence > KL_EDGES[0]
    }
    tables = [
        _worst_table(
            "Least wanted by the teacher (lowest log q − log p)", trajectories, sorted(ratios, key=ratios.__getitem__)
        ),
        _worst_table("Largest reverse KL", trajectories, sorted(divergences, key=lambda place: -divergences[place])),
    ]
    return [table for table in tables if table.rows]


def _worst_table(title: str, trajectories: Sequence[Mapping[str, Any]], places: Sequence[tuple[int, int]]) -> Table:
    rows = []
    for number, index in places[:WORST]:
        tokens = trajectories[number]["tokens"]
        token = tokens[index]
        before = "".join(earlier["text"] for earlier in tokens[max(0, index - CONTEXT) : index])
        rows.append(
            [
                Cell(_on_one_line(before[-CONTEXT:]) if before else "(start)", kind="context"),
                Cell(
                    _on_one_line(token["text"]),
                    kind="token",
                    href=f"#t{number}-{index}" if index < SHOWN_TOKENS else "",
                ),
                Cell(_favourite(token), kind="token"),
                *(Cell(figure(token.get(name)), number=True) for name in ("student_logprob", "teacher_logprob")),
                Cell(figure(log_ratio(token), signed=True), number=True),
                Cell(figure(token.get("reverse_kl")), number=True),
            ]
        )
    columns = ["after", "the student wrote", "teacher's first choice", "log p", "log q", "log q − log p", "reverse KL"]
    kept = [place for place in range(len(columns)) if any(row[place].text != NOTHING for row in rows)]
    return Table(title, [columns[place] for place in kept], [[row[place] for place in kept] for row in rows])


def _on_one_line(text: str) -> str:
    return visible(text).replace("⏎\n", "⏎").replace("⇥\t", "⇥")


def _favourite(token: Token) -> str:
    top = token.get("teacher_top") or []
    if not top:
        return NOTHING
    text, _student, teacher = top[0]
    return _on_one_line(text) if teacher is None else f"{_on_one_line(text)}  {math.exp(teacher):.0%}"


def legend() -> dict[str, list[tuple[str, str]]]:
    """Class and label of every colour, from the teacher's dislike to its liking, and from no divergence to much."""
    edges = [f"{edge:g}" for edge in RATIO_EDGES]
    levels = range(len(edges), 0, -1)
    ratio = [(f"down{level}", f"−{edges[level - 1]}") for level in levels]
    ratio += [("r0", "0"), *((f"up{level}", f"+{edges[level - 1]}") for level in reversed(levels))]
    divergence = [("k0", "0"), *((f"k{level}", f"{edge:g}") for level, edge in enumerate(KL_EDGES, 1))]
    return {"ratio": ratio, "kl": divergence}
