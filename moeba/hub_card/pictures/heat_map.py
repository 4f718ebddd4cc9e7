"""How many tokens each expert of each layer got, as a coloured table in SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from .svg import WIDTH, document, number

LEFT, RIGHT, TOP, LEGEND = 64, 20, 82, 58
TALLEST = 420  # pixels, for all layers together
# From too few tokens through balance to too many; both ends stay apart for colour-blind readers.
_COLOURS = ((0, 114, 178), (243, 243, 240), (213, 94, 0))
SPAN = 2.0  # powers of two on each side of balance at which the colour is full
_TICKS = ((-2, "¼ ×"), (-1, "½ ×"), (0, "balanced"), (1, "2 ×"), (2, "4 ×"))


def load_map(title: str, description: str, loads: Mapping[int, Sequence[float]]) -> str:
    """A row a layer, a column an expert.

    Args:
        loads: layer -> each expert's tokens over those of a balanced layer: 1 is balance, 0 an idle expert. Layers
            may have different numbers of experts.
    """
    most = max(len(row) for row in loads.values())
    width = (WIDTH - LEFT - RIGHT) / most
    height = max(8.0, min(30.0, TALLEST / len(loads)))
    bottom = TOP + height * len(loads)
    parts = [
        '<text class="title" x="16" y="26">Tokens of each expert, compared with an even share</text>',
        f'<text class="muted middle" x="{number((LEFT + WIDTH - RIGHT) / 2)}" y="{TOP - 28}">expert</text>',
        f'<text class="muted end" x="{LEFT - 10}" y="{TOP - 9}">layer</text>',
    ]
    every = math.ceil(24 / height) if height < 14 else 1
    for index, (layer, row) in enumerate(loads.items()):
        top = TOP + index * height
        if index % every == 0:
            middle = number(top + height / 2 + 4.5)
            parts.append(f'<text class="muted end" x="{LEFT - 10}" y="{middle}">{layer}</text>')
        parts += _row(row, top, width, height)
    every = math.ceil(28 / width)
    for expert in range(0, most, every):
        x = LEFT + (expert + 0.5) * width
        parts.append(f'<text class="muted middle" x="{number(x)}" y="{TOP - 9}">{expert}</text>')
    parts += _legend(bottom + 24)
    return document(title, description, bottom + LEGEND, parts)


def colour(load: float) -> tuple[int, int, int]:
    """The colour of a load, on a scale of powers of two."""
    place = max(-1.0, min(1.0, math.log2(load) / SPAN)) if load > 0 else -1.0
    end = _COLOURS[0] if place < 0 else _COLOURS[2]
    red, green, blue = (round(m + (e - m) * abs(place)) for m, e in zip(_COLOURS[1], end, strict=True))
    return red, green, blue


def _row(row: Sequence[float], top: float, width: float, height: float) -> Iterator[str]:
    gap = 1 if width >= 6 else 0
    for expert, load in enumerate(row):
        x = LEFT + expert * width
        yield (
            f'<rect x="{number(x)}" y="{number(top)}" width="{number(width - gap)}" '
            f'height="{number(height - gap)}" fill="{_hex(colour(load))}"/>'
        )
        if width >= 30 and height >= 16:
            ink = "#fff" if _is_dark(colour(load)) else "#1f2328"
            said = "idle" if load == 0 else f"{load:.2f}"
            middle = f'x="{number(x + width / 2)}" y="{number(top + height / 2 + 4.5)}"'
            yield f'<text class="middle" style="fill:{ink}" {middle}>{said}</text>'


def _legend(top: float) -> Iterator[str]:
    steps = 40
    left, width = LEFT, 320 / steps
    for step in range(steps):
        load = 2 ** (SPAN * (2 * (step + 0.5) / steps - 1))
        place = f'x="{number(left + step * width)}" y="{number(top)}"'
        yield f'<rect {place} width="{number(width + 0.3)}" height="9" fill="{_hex(colour(load))}"/>'
    for power, name in _TICKS:
        x = left + 160 * (1 + power / SPAN)
        yield f'<text class="muted middle" x="{number(x)}" y="{number(top + 25)}">{name}</text>'


def _hex(rgb: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _is_dark(rgb: tuple[int, int, int]) -> bool:
    """Whether white is easier to read on it than black."""
    red, green, blue = ((value / 255) ** 2.2 for value in rgb)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.2
