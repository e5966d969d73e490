"""Curves of precision over recall, as SVG in the colours of the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from visualization.svg_axes import Axes

MOST_CURVES = 6  # colours that can be told apart
MARGINS = (62, 16, 10, 38)  # left, right, top, bottom
TICKS = [(i / 5, f"{i * 20}%") for i in range(6)]


@dataclass(frozen=True)
class PrecisionRecall:
    """A curve: precision at recalls evenly from 0 to 1, which is 0 from where no more is found.

    `style` is its CSS class, `chosen` the recall and precision at the score threshold.
    """

    name: str
    style: str
    precision: Sequence[float]
    chosen: tuple[float, float] | None = None

    def points(self) -> list[tuple[float, float]]:
        """Return (recall, precision) as far as anything is found."""
        recall = np.linspace(0, 1, len(self.precision)).tolist()
        return [(x, y) for x, y in zip(recall, self.precision, strict=True) if y > 0]


def precision_recall_svg(curves: Sequence[PrecisionRecall], size: tuple[int, int]) -> str:
    """Draw the curves, with a dot at the score threshold of each; `size` is width and height in CSS pixels."""
    axes = Axes((0, 1), (0, 1), size, MARGINS)
    parts = [*axes.y_axis(TICKS, "precision"), *axes.x_axis(TICKS, "recall at IoU 0.5", marks=True)]
    parts += [axes.line(curve.points(), curve.style, curve.name) for curve in curves]
    for curve in curves:
        if curve.chosen:
            recall, precision = curve.chosen
            title = f"{curve.name}: precision {precision:.1%}, recall {recall:.1%} at the score threshold"
            parts.append(axes.dot(recall, precision, curve.style, title))
    return axes.chart("Precision and recall", parts)
