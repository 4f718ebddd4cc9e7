"""Charts as SVG text, without a plotting library: the same values give the same bytes in any release.

A chart lies on a panel of its own and follows the reader's light or dark scheme, so it is legible on any page.
Colours are those of Okabe and Ito, which colour-blind readers tell apart; lines also differ in their dashes, and are
labelled where they end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH = 720
LEFT, RIGHT, TOP, GAP, BOTTOM = 64, 158, 40, 46, 48  # margins in pixels; GAP lies between two panels
PANEL_HEIGHT = 190
DRAWN_BY = "<!-- drawn by moeba -->"
MAX_POINTS = 400  # of one line; a longer one is thinned to means
LINE_HEIGHT = 17

# Okabe and Ito; darker ones on white, brighter ones on black.
_LIGHT = ("#0072b2", "#d55e00", "#009e73")
_DARK = ("#56b4e9", "#e69f00", "#f0e442")
_DASHES = ("none", "7 4", "2 4")
_STYLE = """
text{font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:#1f2328}
.title{font-weight:600}.muted{fill:#59636e}.end{text-anchor:end}.middle{text-anchor:middle}
.page{fill:#fff;stroke:#d1d9e0}.grid{stroke:#e4e8ec}.axis,.reference{stroke:#818b98}.reference{stroke-dasharray:3 3}
.line{fill:none;stroke-width:2;stroke-linejoin:round;stroke-linecap:round}.band{opacity:.18;stroke:none}
""".strip()
_STYLE_DARK = (
    "text{fill:#f0f6fc}.muted{fill:#9198a1}.page{fill:#0d1117;stroke:#3d444d}.grid{stroke:#262c34}"
    ".axis,.reference{stroke:#656c76}.band{opacity:.28}"
)

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line through `points` `(x, y)`, with a dot at each of them if `dots`; `band` is `(x, low, high)` behind it."""

    name: str
    points: Sequence[Point]
    band: Sequence[tuple[float, float, float]] = ()
    dots: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes: lines over the same x. `reference` is a level `(y, name)` to compare with."""

    title: str
    lines: Sequence[Line]
    reference: tuple[float, str] | None = None
    y_range: tuple[float, float] | None = None  # default: of the values


def line_chart(title: str, description: str, x_label: str, panels: Sequence[Panel]) -> str:
    """Panels above each other over one x axis. Every line needs a point."""
    height = TOP + len(panels) * PANEL_HEIGHT + (len(panels) - 1) * GAP + BOTTOM
    xs = [x for panel in panels for line in panel.lines for x, _ in line.points]
    ticks = nice_ticks(min(xs), max(xs), 6)
    scale = _Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    parts: list[str] = []
    for index, panel in enumerate(panels):
        top = TOP + index * (PANEL_HEIGHT + GAP)
        parts += _panel(panel, scale, ticks, top, is_last=index == len(panels) - 1)
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, height - 14, x_label, "muted middle"))
    return document(title, description, height, parts)


def document(title: str, description: str, height: float, parts: Sequence[str]) -> str:
    """A whole SVG file around its parts."""
    colours = _colours(_LIGHT) + f"@media(prefers-color-scheme:dark){{{_STYLE_DARK}{_colours(_DARK)}}}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{number(height)}" '
            f'viewBox="0 0 {WIDTH} {number(height)}" role="img" aria-labelledby="title description">',
            DRAWN_BY,
            f'<title id="title">{escape(title)}</title>',
            f'<desc id="description">{escape(description)}</desc>',
            f"<style>{_STYLE}\n{colours}</style>",
            f'<rect class="page" x=".5" y=".5" width="{WIDTH - 1}" height="{number(height - 1)}" rx="6"/>',
            *parts,
            "</svg>\n",
        ]
    )


def nice_ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A coordinate, with two decimals at most."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points: the means of neighbours, where there are more."""
    size = math.ceil(len(points) / limit)
    if size <= 1:
        return list(points)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


@dataclass(frozen=True)
class _Scale:
    """Values from `low` to `high` onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _panel(panel: Panel, x: _Scale, x_ticks: Sequence[float], top: float, is_last: bool) -> Iterator[str]:
    bottom = top + PANEL_HEIGHT
    low, high = panel.y_range or _range(panel)
    y = _Scale(low, high, bottom, top)
    yield _text(LEFT - 48, top - 14, panel.title, "title")
    y_ticks = nice_ticks(low, high, 5)
    digits = _digits(y_ticks)
    for tick in y_ticks:
        yield _rule(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid")
        yield _text(LEFT - 8, y(tick) + 4, f"{tick:,.{digits}f}", "muted end")
    yield _rule(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    for tick in x_ticks:
        yield _rule(x(tick), bottom, x(tick), bottom + 4, "axis")
        if is_last:
            yield _text(x(tick), bottom + 19, f"{tick:,.{_digits(x_ticks)}f}", "muted middle")
    labels: list[tuple[float, str, int | None]] = []
    if panel.reference is not None:
        level, name = panel.reference
        yield _rule(LEFT, y(level), WIDTH - RIGHT, y(level), "reference")
        labels.append((y(level), name, None))
    for index, line in enumerate(panel.lines):
        if line.band:
            edge = [(a, high) for a, _, high in line.band] + [(a, low) for a, low, _ in reversed(line.band)]
            yield f'<polygon class="band fill{index}" points="{_path(edge, x, y)}"/>'
    for index, line in enumerate(panel.lines):
        points = thinned(line.points)
        yield f'<polyline class="line line{index}" points="{_path(points, x, y)}"/>'
        if line.dots or len(points) == 1:
            for a, b in points:
                yield f'<circle class="fill{index}" cx="{number(x(a))}" cy="{number(y(b))}" r="3.5"/>'
        labels.append((y(points[-1][1]), line.name, index))
    yield from _labels(labels, top, bottom)


def _labels(labels: Sequence[tuple[float, str, int | None]], top: float, bottom: float) -> Iterator[str]:
    """Names at the right of where their lines end, moved apart where they would overlap."""
    ordered = sorted(labels, key=lambda label: label[0])
    places: list[float] = []
    for wanted, _, _ in ordered:
        places.append(max(wanted, places[-1] + LINE_HEIGHT) if places else max(wanted, top))
    for i in reversed(range(len(places))):
        limit = bottom if i == len(places) - 1 else places[i + 1] - LINE_HEIGHT
        places[i] = min(places[i], limit)
    start = WIDTH - RIGHT + 8
    for place, (_, name, index) in zip(places, ordered, strict=True):
        kind = "reference" if index is None else f"line line{index}"
        yield f'<path class="{kind}" d="M{number(start)} {number(place)}h18"/>'
        yield _text(start + 24, place + 4, name, "muted" if index is None else "")


def _range(panel: Panel) -> tuple[float, float]:
    values = [y for line in panel.lines for _, y in line.points]
    values += [y for line in panel.lines for _, *ys in line.band for y in ys]
    values += [panel.reference[0]] if panel.reference else []
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - room, high + room


def _digits(ticks: Sequence[float]) -> int:
    """Decimals that tell neighbouring ticks apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    return next((d for d in range(7) if abs(step * 10**d - round(step * 10**d)) < 1e-6), 6)


def _path(points: Sequence[Point], x: _Scale, y: _Scale) -> str:
    return " ".join(f"{number(x(a))},{number(y(b))}" for a, b in points)


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}"/>'


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return f'<text{attribute} x="{number(x)}" y="{number(y)}">{escape(text)}</text>'


def _colours(palette: Sequence[str]) -> str:
    rules = [f".line{i}{{stroke:{c};stroke-dasharray:{_DASHES[i]}}}" for i, c in enumerate(palette)]
    return "".join(rules + [f".fill{i}{{fill:{c}}}" for i, c in enumerate(palette)])
