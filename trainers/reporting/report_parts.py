"""The pieces a training's page is made of: figures on cards, charts of curves, and numbers as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from visualization import svg_charts

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Card:
    """A figure with its name and a note; `style` is a class of the page's style sheet."""

    name: str
    value: str
    note: str
    style: str = ""


@dataclass(frozen=True)
class Plan:
    """A chart: its lines (style, name, rows, key of the value in a row)."""

    title: str
    lines: list[tuple[str, str, Rows, str]]
    in_percent: bool = False

    def draw(self, epochs: list[tuple[float, float]], best_x: float | None, size: tuple[int, int]) -> str:
        """Return the chart as SVG over the steps; "" where there is nothing to draw."""
        lines = self._lines()
        return svg_charts.curves_svg(
            lines, self.title, size=size, percent=self.in_percent, epochs=epochs, best_x=best_x
        )

    def legend(self) -> list[tuple[str, str]]:
        """Return (style, name) of each line that has points."""
        return [(line.style, line.name) for line in self._lines() if len(line.xs)]

    def _lines(self) -> list[svg_charts.Line]:
        lines = []
        for style, name, rows, key in self.lines:
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            lines.append(svg_charts.Line(name, style, xs, ys, noisy=key == "loss"))
        return lines


def number(value: float | None, digits: int = 4) -> str:
    """Return a number such as "1,234" or "0.1235"."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """Return a time such as "12.3 s", "4.5 min" or "1.2 h"."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def value_text(value: Any) -> str:
    """Return a config's value as it is written."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
