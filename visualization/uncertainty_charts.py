"""The charts of uncertainty.html as SVG text, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

LEFT, RIGHT, TOP, BOTTOM = 58, 22, 10, 44
UNSTEADY = 0.05  # share of the images below which a risk is of too few to scale a chart by
HIGHEST = 1.5  # times the risk of all images: a score whose risks are above that is of no use


@dataclass(frozen=True)
class Frame:
    """The axes of a chart, in CSS pixels; `x_ticks` and `y_ticks` are values with their texts, first to last."""

    label: str
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_range: tuple[float, float]
    width: int = 520
    height: int = 300

    def x(self, value: float) -> float:
        """Give the place of a value on the x axis."""
        low, high = self.x_range
        return round(LEFT + (value - low) / (high - low) * (self.width - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        """Give the place of a value on the y axis."""
        low, high = self.y_ticks[0][0], self.y_ticks[-1][0]
        return round(TOP + (high - value) / (high - low) * (self.height - TOP - BOTTOM), 1)

    def box(self, x_low: float, x_high: float, y_high: float, style: str, title: str, gap: float = 0.6) -> str:
        """Draw a column from the x axis up to a value."""
        left, right, top = self.x(x_low) + gap, self.x(x_high) - gap, self.y(y_high)
        size = f'width="{right - left:.1f}" height="{self.y(self.y_ticks[0][0]) - top:.1f}"'
        return f'<rect class="{style}" x="{left:.1f}" y="{top}" {size}><title>{escape(title)}</title></rect>'

    def line(self, points: Sequence[Sequence[float]], style: str, title: str) -> str:
        """Draw a line through points (x, y)."""
        places = " ".join(f"{self.x(x)},{self.y(y)}" for x, y in points)
        return f'<polyline class="line {style}" points="{places}"><title>{escape(title)}</title></polyline>'

    def mark(self, value: float, style: str, title: str) -> str:
        """Draw a line upright at a place of the x axis."""
        return (
            f'<path class="{style}" d="M{self.x(value)},{TOP}V{self.height - BOTTOM}"><title>{escape(title)}</title>'
            "</path>"
        )

    def svg(self, parts: Sequence[str]) -> str:
        """Put what was drawn, cut off at the axes, into the frame."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        middle = (TOP + bottom) / 2
        drawn = [f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{self.label}">']
        for value, text in self.y_ticks:
            drawn.append(f'<path class="grid" d="M{LEFT},{self.y(value)}H{right}"/>')
            drawn.append(f'<text class="tick" x="{LEFT - 7}" y="{self.y(value) + 4}" text-anchor="end">{text}</text>')
        for value, text in self.x_ticks:
            drawn.append(f'<path class="grid" d="M{self.x(value)},{bottom}v4"/>')
            drawn.append(f'<text class="tick" x="{self.x(value)}" y="{bottom + 18}" text-anchor="middle">{text}</text>')
        window = f'x="{LEFT}" y="{TOP}" width="{right - LEFT}" height="{bottom - TOP + 1}"'
        drawn.append(f'<svg {window} viewBox="{LEFT} {TOP} {right - LEFT} {bottom - TOP + 1}">')
        drawn += [*parts, "</svg>"]
        at = f'x="{(LEFT + right) / 2}" y="{self.height - 6}"'
        drawn.append(f'<text class="tick" {at} text-anchor="middle">{escape(self.x_label)}</text>')
        turned = f'transform="translate(12 {middle:g}) rotate(-90)"'
        drawn.append(f'<text class="tick" {turned} text-anchor="middle">{escape(self.y_label)}</text></svg>')
        return "".join(drawn)


def reliability_chart(bins: Sequence[Mapping[str, Any]], label: str) -> str:
    """Draw the share of right answers by score, against the diagonal where both are the same."""
    ticks = [(i / 5, f"{i / 5:g}") for i in range(6)]
    frame = Frame(label, "score", "share of right answers", ticks, ticks, (0, 1), width=340, height=320)
    total, count = sum(part["count"] for part in bins), len(bins)
    parts = []
    for i, part in enumerate(bins):
        if not part["count"]:
            continue
        images = f"{part['count']:,} images ({part['count'] / total:.1%})"
        title = f"{images}: mean score {part['score']:.4f}, {part['accuracy']:.4f} right"
        sides = (i / count, (i + 1) / count)
        gap = "too_sure" if part["score"] > part["accuracy"] else "not_sure"
        parts.append(frame.box(*sides, max(part["score"], part["accuracy"]), gap, title))
        parts.append(frame.box(*sides, min(part["score"], part["accuracy"]), "right", title))
    parts.append(frame.line([(0, 0), (1, 1)], "diagonal", "score and share the same"))
    return frame.svg(parts)


def risk_chart(curves: Mapping[str, Sequence[Sequence[float]]], styles: Mapping[str, str], coverage: float) -> str:
    """Draw the share that is wrong among the least uncertain, by their share of all, for every score."""
    steady = [risk for points in curves.values() for share, risk in points if share >= UNSTEADY]
    overall = max(points[-1][1] for points in curves.values())
    y_ticks = _ticks(max(min(max(steady), HIGHEST * overall), 1e-6), lambda value: f"{value * 100:.4g}%")
    x_ticks = [(i / 5, f"{i * 20}%") for i in range(6)]
    label = "Risk by coverage"
    frame = Frame(label, "accepted", "wrong among the accepted", x_ticks, y_ticks, (0, 1), width=1080, height=380)
    parts = [frame.mark(coverage, "threshold", f"the threshold accepts {coverage:.1%}")]
    parts += [frame.line(points, styles[name], name) for name, points in reversed(list(curves.items()))]
    return frame.svg(parts)


def histogram_chart(histogram: Mapping[str, Any], score: str) -> str:
    """Draw how an uncertainty spreads over known and, where there are any, strange images, as shares of each."""
    edges, sides = histogram["edges"], (("known", histogram["known"]), ("strange", histogram["strange"]))
    shares = {name: [count / sum(counts) for count in counts] for name, counts in sides if sum(counts)}
    y_ticks = _ticks(max(share for values in shares.values() for share in values), lambda value: f"{value * 100:.3g}%")
    is_log, x_label = histogram["is_log"], score
    decades = [(float(i), f"1e{i}" if i else "1") for i in range(math.ceil(edges[0]), math.floor(edges[-1]) + 1)]
    is_decades = is_log and len(decades) > 1
    x_ticks = decades if is_decades else _between(edges[0], edges[-1], is_log)
    x_range = (edges[0], edges[-1])
    frame = Frame("Uncertainty", x_label, "share of the images", x_ticks, y_ticks, x_range, width=1080, height=320)
    parts = []
    for name, values in shares.items():
        for low, high, share in zip(edges, edges[1:], values, strict=False):
            if share:
                parts.append(frame.box(low, high, share, name, f"{share:.2%} of the {name} images"))
    parts.append(frame.mark(histogram["threshold"], "threshold", "set aside right of it"))
    return frame.svg(parts)


def _between(low: float, high: float, is_log: bool) -> list[tuple[float, str]]:
    values = [low + (high - low) * i / 5 for i in range(6)]
    return [(value, f"{10**value if is_log else value:.3g}") for value in values]


def _ticks(top: float, text: Callable[[float], str]) -> list[tuple[float, str]]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from 0 to `top` or a little more."""
    power = 10 ** math.floor(math.log10(top / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= top / 4 * 0.999)
    return [(i * step, text(i * step)) for i in range(math.ceil(top / step - 1e-9) + 1)]
