"""Small charts as inline SVG that follow the page's colours, in light, dark and print.

A plotting library would draw pictures with colours and fonts of their own; these inherit the
page's. Every number is formatted here and every text escaped, so nothing a name contains can become
markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 520, 264
LEFT, RIGHT, TOP, BOTTOM = 66, 14, 14, 40
MOST_POINTS = 400
"""Of one line: more cannot be told apart at this width."""
DASHES = ("", "6 3", "2 3", "8 3 2 3")
"""Second cue beside colour, one per series."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """One scale: data to picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, inside the frame."""
        low, high, value = (self._scaled(x) for x in (self.low, self.high, value))
        share = (value - low) / (high - low)
        return self.start + min(max(share, -0.02), 1.02) * (self.end - self.start)

    def ticks(self, count: int = 4) -> list[float]:
        """Round values inside the scale."""
        if self.log:
            least, most = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            if most - least >= 2:
                every = max(1, (most - least) // count)
                return [10.0**exponent for exponent in range(least, most + 1, every)]
            fine = [f * 10.0**e for e in range(least - 1, most + 2) for f in (1, 2, 5)]
            return [value for value in fine if self.low <= value <= self.high]
        step = _round_step((self.high - self.low) / count)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(max(value, 1e-300)) if self.log else value


def _round_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * (1 - 1e-9))


def axis(
    values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False
) -> Axis:
    """A scale that holds all finite values with a little room.

    Args:
        values: the data.
        start: picture coordinate of the low end.
        end: of the high end.
        log: logarithmic; values <= 0 are left out.
        zero: hold 0 too.
    """
    finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if zero and not log:
        finite.append(0.0)
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if log:
        low, high = (low, high) if low > 0 else (0.1, 1.0)
        return Axis(low / 1.2, high * 1.2, start, end, log=True)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low if zero and low == 0 else low - room, high + room, start, end)


def number(value: float) -> str:
    """Short: 0.0123, 12.3, 12 k."""
    size = abs(value)
    if size >= 999.5e6:
        return f"{value / 1e9:.3g}G"
    if size >= 999.5e3:
        return f"{value / 1e6:.3g}M"
    if size >= 1e4:
        return f"{value / 1e3:.3g}k"
    if size and size < 1e-3:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.3g}" if size < 999.5 else f"{value:.0f}"


@dataclass(slots=True)
class Chart:
    """A frame with axes; marks are added in the order in which they are painted."""

    x: Axis
    y: Axis
    xlabel: str = ""
    ylabel: str = ""
    xnames: Sequence[tuple[float, str]] | None = None
    """Ticks with words instead of numbers."""
    marks: list[str] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    """How a series is drawn, and its name."""

    def line(self, points: Points, name: str = "", *, kind: int = 0, dots: bool = False) -> None:
        """A line of one of the series' colours and dashes."""
        points = thinned([(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
        if not points:
            return
        place = " ".join(f"{self.x.at(x):.1f},{self.y.at(y):.1f}" for x, y in points)
        dash = DASHES[kind % len(DASHES)]
        style = f' stroke-dasharray="{dash}"' if dash else ""
        self.marks.append(f'<polyline class="line s{kind % 4}" points="{place}"{style}/>')
        if dots or len(points) == 1:
            self.dots(points, kind=kind)
        if name:
            swatch = f'<line class="line s{kind % 4}" x1="0" x2="22" y1="5" y2="5"{style}/>'
            self.legend.append((swatch, name))

    def dots(self, points: Points, name: str = "", *, kind: int = 0, radius: float = 3) -> None:
        """Points."""
        for x, y in points:
            at = f'cx="{self.x.at(x):.1f}" cy="{self.y.at(y):.1f}"'
            self.marks.append(f'<circle class="dot s{kind % 4}" {at} r="{radius:g}"/>')
        if name:
            self.legend.append((f'<circle class="dot s{kind % 4}" cx="11" cy="5" r="4"/>', name))

    def band(self, low: Points, high: Points, name: str = "") -> None:
        """The area between two lines."""
        path = [*low, *reversed(high)]
        place = " ".join(f"{self.x.at(x):.1f},{self.y.at(y):.1f}" for x, y in path)
        self.marks.append(f'<polygon class="band" points="{place}"/>')
        if name:
            swatch = '<rect class="band" x="0" y="0" width="22" height="10"/>'
            self.legend.append((swatch, name))

    def bar(self, x: float, low: float, high: float) -> None:
        """An interval."""
        at, ends = self.x.at(x), (self.y.at(low), self.y.at(high))
        self.marks.append(
            f'<path class="whisker" d="M{at:.1f} {ends[0]:.1f}V{ends[1]:.1f}'
            f'M{at - 4:.1f} {ends[0]:.1f}h8M{at - 4:.1f} {ends[1]:.1f}h8"/>'
        )

    def level(self, value: float, text: str) -> None:
        """A horizontal line with its meaning, where the frame shows it."""
        if not self.y.low <= value <= self.y.high:
            return
        y = self.y.at(value)
        self.marks.append(
            f'<line class="mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="note" x="{WIDTH - RIGHT - 4}" y="{y - 5:.1f}" text-anchor="end">'
            f"{escape(text)}</text>"
        )

    def moment(self, value: float, text: str) -> None:
        """A vertical line with its meaning, where the frame shows it."""
        if not self.x.low <= value <= self.x.high:
            return
        x = self.x.at(value)
        left = x < (LEFT + WIDTH) / 2
        self.marks.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
            f'<text class="note" x="{x + (5 if left else -5):.1f}" y="{TOP + 11}"'
            f' text-anchor="{"start" if left else "end"}">{escape(text)}</text>'
        )

    def column(self, x0: float, x1: float, y: float, *, strong: bool = True) -> None:
        """One bar of a histogram, from the axis up."""
        left, right = self.x.at(x0), self.x.at(x1)
        top, bottom = self.y.at(y), self.y.at(max(self.y.low, 0.0))
        kind = "fill" if strong else "fill weak"
        self.marks.append(
            f'<rect class="{kind}" x="{left + 0.5:.1f}" y="{top:.1f}"'
            f' width="{max(right - left - 1, 0.5):.1f}" height="{max(bottom - top, 0):.1f}"/>'
        )

    def render(self, title: str) -> str:
        """The picture; ``title`` is what a screen reader says."""
        bottom = HEIGHT - BOTTOM
        rows = (len(self.legend) + 1) // 2
        room = 18 * rows + 6 if self.legend else 0
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT + room}" role="img"'
            f' aria-label="{escape(title, quote=True)}">'
        ]
        for tick in self.y.ticks():
            y = self.y.at(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
                f'<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
                f"{escape(number(tick))}</text>"
            )
        ticks = self.xnames or [(tick, number(tick)) for tick in self.x.ticks(5)]
        for value, text in ticks:
            parts.append(
                f'<text class="tick" x="{self.x.at(value):.1f}" y="{bottom + 17}"'
                f' text-anchor="middle">{escape(text)}</text>'
            )
        parts.append(
            f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
        )
        parts += self.marks
        parts.append(
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 5}"'
            f' text-anchor="middle">{escape(self.xlabel)}</text>'
            f'<text class="label" x="12" y="{(TOP + bottom) / 2}" text-anchor="middle"'
            f' transform="rotate(-90 12 {(TOP + bottom) / 2})">{escape(self.ylabel)}</text>'
        )
        for index, (swatch, name) in enumerate(self.legend):
            x, y = LEFT + 230 * (index % 2), HEIGHT + 8 + 18 * (index // 2)
            parts.append(
                f'<g transform="translate({x} {y})">{swatch}'
                f'<text class="key" x="29" y="9">{escape(shortened(name, 30))}</text></g>'
            )
        parts.append("</svg>")
        return "".join(parts)


def chart(
    xs: Sequence[float],
    ys: Sequence[float],
    *,
    xlabel: str,
    ylabel: str,
    log: tuple[bool, bool] = (False, False),
    zero: bool = False,
    xnames: Sequence[tuple[float, str]] | None = None,
) -> Chart:
    """A frame around some data.

    Args:
        xs: everything that will be shown along x.
        ys: along y.
        xlabel: with its unit.
        ylabel: with its unit.
        log: logarithmic x, y.
        zero: whether y holds 0.
        xnames: ticks with words.
    """
    return Chart(
        axis(xs, LEFT + 8, WIDTH - RIGHT - 8, log=log[0]),
        axis(ys, HEIGHT - BOTTOM, TOP, log=log[1], zero=zero),
        xlabel,
        ylabel,
        xnames,
    )


def thinned(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Few points that look the same: of each piece, its smallest and its largest."""
    if len(points) <= most:
        return list(points)
    size = -(-2 * len(points) // most)
    kept: list[tuple[float, float]] = []
    for first in range(0, len(points), size):
        piece = points[first : first + size]
        ends = {min(piece, key=lambda p: p[1]), max(piece, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def shortened(text: str, most: int) -> str:
    """With an ellipsis in the middle where it is too long."""
    if len(text) <= most:
        return text
    half = (most - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def bars(
    rows: Sequence[tuple[str, float]], *, unit: str, title: str, format: Callable[[float], str]
) -> str:
    """Horizontal bars with their names, largest as given."""
    step, most = 24, max((value for _, value in rows), default=1.0) or 1.0
    height, left = step * len(rows) + 26, 150
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
    ]
    for index, (name, value) in enumerate(rows):
        y, length = step * index + 4, (WIDTH - left - 70) * max(value, 0) / most
        parts.append(
            f'<text class="key" x="{left - 8}" y="{y + 12}" text-anchor="end">'
            f"{escape(shortened(name, 22))}</text>"
            f'<rect class="fill" x="{left}" y="{y}" width="{length:.1f}" height="15" rx="2"/>'
            f'<text class="tick" x="{left + length + 7:.1f}" y="{y + 12}">'
            f"{escape(format(value))}</text>"
        )
    parts.append(f'<text class="label" x="{left}" y="{height - 5}">{escape(unit)}</text></svg>')
    return "".join(parts)


def heat(
    matrix: Sequence[Sequence[float | None]],
    names: Sequence[str],
    *,
    title: str,
    low: str,
    high: str,
) -> str:
    """A small square matrix; the number stands in each cell, so colour is not the only cue."""
    count = len(matrix)
    left, top = 84, 8
    cell = min(60.0, (WIDTH - left - 12) / max(count, 1))
    height = top + cell * count + 44
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img"'
        f' aria-label="{escape(title, quote=True)}">'
    ]
    for i, row in enumerate(matrix):
        y = top + i * cell
        parts.append(
            f'<text class="tick" x="{left - 8}" y="{y + cell / 2 + 4:.1f}" text-anchor="end">'
            f"{escape(shortened(names[i], 11))}</text>"
        )
        parts.append(
            f'<text class="tick" x="{left + (i + 0.5) * cell:.1f}"'
            f' y="{top + count * cell + 16:.1f}" text-anchor="middle">'
            f"{escape(shortened(names[i], 7))}</text>"
        )
        for j, value in enumerate(row):
            if value is None:
                continue
            shade = min(max(value, 0.0), 1.0)
            parts.append(
                f'<rect class="cell" x="{left + j * cell:.1f}" y="{y:.1f}" width="{cell - 2:.1f}"'
                f' height="{cell - 2:.1f}" fill-opacity="{0.06 + 0.94 * shade:.2f}"/>'
            )
            text = f"{value:.2f}"
            if cell >= 34:
                kind = "incell dark" if shade > 0.55 else "incell"
                parts.append(
                    f'<text class="{kind}" x="{left + (j + 0.5) * cell - 1:.1f}"'
                    f' y="{y + cell / 2 + 3:.1f}" text-anchor="middle">{text}</text>'
                )
    ends = escape(f"0 {low} · 1 {high}")
    parts.append(f'<text class="label" x="{left}" y="{height - 6:.0f}">{ends}</text></svg>')
    return "".join(parts)


def tiles(matrix: Sequence[Sequence[float]], *, title: str) -> str:
    """A large square matrix of numbers from -1 to 1: fuller is further from 0, a dot below it."""
    count = len(matrix)
    side = 340
    cell = side / max(count, 1)
    left = (WIDTH - side) / 2
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {side + 26}" role="img"'
        f' aria-label="{escape(title, quote=True)}">'
    ]
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            shade = min(abs(value), 1.0)
            if shade < 0.02:
                continue
            x, y = left + j * cell, i * cell
            parts.append(
                f'<rect class="cell" x="{x:.1f}" y="{y:.1f}" width="{cell:.1f}"'
                f' height="{cell:.1f}" fill-opacity="{shade:.2f}"/>'
            )
            if value < -0.05:
                at = f'cx="{x + cell / 2:.1f}" cy="{y + cell / 2:.1f}"'
                parts.append(f'<circle class="dot s1" {at} r="{cell / 5:.1f}"/>')
    ends = "empty 0 · full 1 · with a dot below 0"
    parts.append(f'<text class="label" x="{left}" y="{side + 18}">{ends}</text></svg>')
    return "".join(parts)
