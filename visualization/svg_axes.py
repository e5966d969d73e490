"""The parts that SVG charts are made of: axes, ticks, lines, columns; the page's style sheet colours them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Ticks = Sequence[tuple[float, str]]  # values with their texts, first to last


@dataclass(frozen=True)
class Axes:
    """The plane of a chart: ranges of the values, size and margins (left, right, top, bottom) in CSS pixels."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    size: tuple[int, int]
    margins: tuple[int, int, int, int]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of the plane in pixels."""
        (width, height), (left, right, top, bottom) = self.size, self.margins
        return left, top, width - right, height - bottom

    def x(self, value: float) -> float:
        """Return the place of a value on the x axis in pixels."""
        (low, high), (left, _, right, _) = self.x_range, self.box
        return round(left + (value - low) / (high - low) * (right - left), 1)

    def y(self, value: float) -> float:
        """Return the place of a value on the y axis in pixels."""
        (low, high), (_, top, _, bottom) = self.y_range, self.box
        return round(top + (high - value) / (high - low) * (bottom - top), 1)

    def chart(self, label: str, parts: Iterable[str]) -> str:
        """Return the chart of what was drawn."""
        width, height = self.size
        head = f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
        return "".join([head, *parts, "</svg>"])

    def y_axis(self, ticks: Ticks, title: str = "") -> list[str]:
        """Draw a line of the grid for each tick, the texts beside them, and the title."""
        left, top, right, bottom = self.box
        parts = []
        for value, text in ticks:
            parts.append(f'<path class="grid" d="M{left},{self.y(value)}H{right}"/>')
            parts.append(tick_text(left - 8, self.y(value) + 4, text, "end"))
        if title:
            turned = f'transform="translate(12 {(top + bottom) / 2:g}) rotate(-90)"'
            parts.append(f'<text class="tick" {turned} text-anchor="middle">{escape(title)}</text>')
        return parts

    def x_axis(self, ticks: Ticks, title: str, *, marks: bool = False) -> list[str]:
        """Draw the texts of the ticks, small `marks` above them, and the title."""
        left, _, right, bottom = self.box
        parts = []
        for value, text in ticks:
            if marks:
                parts.append(f'<path class="grid" d="M{self.x(value)},{bottom}v4"/>')
            parts.append(tick_text(self.x(value), bottom + 17, text))
        return [*parts, tick_text((left + right) / 2, self.size[1] - 4, escape(title))]

    def line(self, points: Iterable[Sequence[float]], style: str, title: str = "") -> str:
        """Draw a line through points (x, y)."""
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return _titled(f'polyline class="line {style}" points="{places}"', title)

    def column(self, x_low: float, x_high: float, y_high: float, style: str, title: str, gap: float = 0.6) -> str:
        """Draw a column from the x axis up to a value."""
        left, right, top = self.x(x_low) + gap, self.x(x_high) - gap, self.y(y_high)
        size = f'width="{right - left:.1f}" height="{self.y(self.y_range[0]) - top:.1f}"'
        return _titled(f'rect class="{style}" x="{left:.1f}" y="{top}" {size}', title)

    def upright(self, value: float, style: str, title: str) -> str:
        """Draw a line from top to bottom at a place of the x axis."""
        _, top, _, bottom = self.box
        return _titled(f'path class="{style}" d="M{self.x(value)},{top}V{bottom}"', title)

    def dot(self, x: float, y: float, style: str, title: str) -> str:
        """Draw a point."""
        return _titled(f'circle class="dot {style}" cx="{self.x(x)}" cy="{self.y(y)}" r="3"', title)


def clipped(x: int, y: int, width: int, height: int, parts: Iterable[str]) -> str:
    """Cut what was drawn off at the edges of a rectangle."""
    window = f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{x} {y} {width} {height}">'
    return "".join([window, *parts, "</svg>"])


def tick_text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    """Write an escaped text in the size of the ticks."""
    return f'<text class="tick" x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>'


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` numbers, 1, 2 or 5 times a power of ten apart, from at most `low` to at least `high`."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 12 - math.floor(math.log10(step))  # enough for any scale
    return [round(i * step, digits) for i in range(first, last + 1)]


def _titled(element: str, title: str) -> str:
    """Close an element; the title is what a pointer over it shows."""
    name = element.partition(" ")[0]
    return f"<{element}><title>{escape(title)}</title></{name}>" if title else f"<{element}/>"
