"""Small line charts with bands as inline SVG, drawn for reading on a desk and on a phone."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from diagnostics.report.figures import figure

STUDENT, TEACHER, NEUTRAL, BEFORE = "#0072b2", "#c2571a", "#44546a", "#8fa3b8"
WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 22, 42, 40
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#44546a", "#7b3294")  # of Okabe and Ito
LABEL_WIDTH = 6.4  # of a character of the legend


@dataclass(frozen=True)
class Series:
    """A curve; `low` and `high` are its band, None where it has none. Points that are None are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    colour: str = STUDENT
    dashed: bool = False
    faint: bool = False
    marked: bool = True

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(x, y) for x, y in zip(self.x, self.y, strict=True) if y is not None and math.isfinite(y)]

    @property
    def band(self) -> list[tuple[float, float, float]]:
        if self.low is None or self.high is None:
            return []
        ends = zip(self.x, self.low, self.high, strict=True)
        return [(x, low, high) for x, low, high in ends if low is not None and high is not None]


@dataclass(frozen=True)
class Chart:
    """Curves over one axis."""

    title: str
    series: Sequence[Series]
    x_label: str
    unit: str = ""
    x_names: Sequence[str] | None = None  # of the places 0, 1, 2, …, where x is not a number
    zero: bool = True  # the axis includes it
    legend: bool = True

    def svg(self) -> Markup:
        """The picture; an empty one says so."""
        drawn = [series for series in self.series if series.points]
        frame = _Frame.around(drawn, self.zero)
        body = [_grid(frame, self), *(_curve(frame, series) for series in drawn), _legend(drawn) if self.legend else ""]
        if not drawn:
            body = [_text(WIDTH / 2, HEIGHT / 2, "no values", "middle", "note")]
        unit = f" ({self.unit})" if self.unit else ""
        head = (
            f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(self.title + unit)}">'
            f'<text x="{LEFT - 40}" y="13" class="title">{escape(self.title)}'
            f'<tspan class="unit">{escape(unit)}</tspan></text>'
        )
        return Markup(head + "".join(body) + "</svg>")


@dataclass(frozen=True)
class _Frame:
    left: float
    right: float
    bottom: float
    top: float

    @classmethod
    def around(cls, series: Sequence[Series], zero: bool) -> "_Frame":
        xs = [x for item in series for x, _y in item.points]
        ys = [y for item in series for _x, y in item.points]
        ys += [end for item in series for _x, low, high in item.band for end in (low, high)]
        if not xs:
            return cls(0, 1, 0, 1)
        low, high = (min(*ys, 0.0), max(*ys, 0.0)) if zero else (min(ys), max(ys))
        margin = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        bottom = low if zero and low == 0 else low - margin
        top = high if zero and high == 0 > low else high + margin
        left, right = min(xs), max(xs)
        return cls(left - 0.5, right + 0.5, bottom, top) if left == right else cls(left, right, bottom, top)

    def x(self, value: float) -> float:
        return LEFT + (value - self.left) / (self.right - self.left) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.bottom) / (self.top - self.bottom) * (HEIGHT - TOP - BOTTOM)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values between two others."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _grid(frame: _Frame, chart: Chart) -> str:
    parts = []
    for value in ticks(frame.bottom, frame.top, 4):
        y = frame.y(value)
        kind = "axis" if value == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(LEFT - 6, y + 4, _tick(value), "end"))
    names = chart.x_names
    positions = range(len(names)) if names is not None else ticks(frame.left, frame.right, 5)
    every = math.ceil(len(names) / 8) if names else 1
    for index, position in enumerate(positions):
        if index % every == 0 and (names is not None or float(position).is_integer() or frame.right - frame.left < 5):
            text = names[index] if names is not None else _tick(position)
            parts.append(_text(frame.x(position), HEIGHT - BOTTOM + 16, text, "middle"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, chart.x_label, "middle", "note"))
    return "".join(parts)


def _tick(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _curve(frame: _Frame, series: Series) -> str:
    parts = []
    band = series.band
    if band:
        outline = [(x, high) for x, _low, high in band] + [(x, low) for x, low, _high in reversed(band)]
        corners = _path((frame.x(x), frame.y(y)) for x, y in outline)
        parts.append(f'<polygon points="{corners}" fill="{series.colour}" fill-opacity=".15"/>')
        if len(band) == 1:
            ((x, low, high),) = band
            ends = f'x1="{frame.x(x):.1f}" x2="{frame.x(x):.1f}" y1="{frame.y(low):.1f}" y2="{frame.y(high):.1f}"'
            parts.append(f'<line {ends} stroke="{series.colour}" stroke-width="2" stroke-opacity=".5"/>')
    points = series.points
    dashes = ' stroke-dasharray="6 4"' if series.dashed else ""
    strength = ' stroke-opacity=".3" stroke-width="1"' if series.faint else ' stroke-width="2"'
    line = _path((frame.x(x), frame.y(y)) for x, y in points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="{series.colour}"{strength}{dashes}/>')
    if series.marked and not series.faint:
        parts += [
            f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3" fill="{series.colour}">'
            f"<title>{escape(series.label)} {figure(y)}</title></circle>"
            for x, y in points
        ]
    return "".join(parts)


def _legend(drawn: Sequence[Series]) -> str:
    """One entry for each label, on the line below the title; none where there is one curve."""
    named = {series.label: series for series in drawn if series.label and not series.faint}
    if len(named) < 2:
        return ""
    parts, x = [], float(LEFT)
    for label, series in named.items():
        dashes = ' stroke-dasharray="4 3"' if series.dashed else ""
        line = (
            f'<line x1="{x:.1f}" x2="{x + 16:.1f}" y1="25" y2="25" stroke="{series.colour}" stroke-width="2"{dashes}/>'
        )
        parts += [line, _text(x + 21, 29, label, "start")]
        x += 34 + LABEL_WIDTH * len(label)
    return "".join(parts)


def interval_bar(mean: float, low: float, high: float) -> Markup:
    """An interval on a line through zero: which side of it a change is on."""
    reach = max(abs(low), abs(high), abs(mean)) * 1.15 or 1.0
    width, height, middle = 320, 44, 14

    def x(value: float) -> float:
        return 10 + (value + reach) / (2 * reach) * (width - 20)

    return Markup(
        f'<svg class="interval" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{figure(mean, True)}, from {figure(low, True)} to {figure(high, True)}">'
        f'<line x1="10" x2="{width - 10}" y1="{middle}" y2="{middle}" class="grid"/>'
        f'<line x1="{x(0):.1f}" x2="{x(0):.1f}" y1="3" y2="25" class="axis"/>'
        + _text(x(0), height - 4, "no change", "middle")
        + f'<line x1="{x(low):.1f}" x2="{x(high):.1f}" y1="{middle}" y2="{middle}" class="reach"/>'
        f'<circle cx="{x(mean):.1f}" cy="{middle}" r="5.5" class="mean"/></svg>'
    )
