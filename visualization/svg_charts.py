"""The charts of a training as SVG text: curves and a confusion matrix, in the colours of the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from common.console import text_columns
from visualization.raster import confusion_strength
from visualization.svg_axes import Axes, clipped, round_ticks, tick_text

MARGINS = (52, 16, 33, 38)  # left, right, top, bottom
EPOCH_ROW = 13  # px above the chart: free of the uppermost number of the axis
MAX_POINTS = 400  # points of a line that are drawn; a screen shows no more
MAX_DOTS = 60

Epochs = Sequence[tuple[float, float]]  # pairs (step, epoch)


@dataclass(frozen=True)
class Line:
    """One line of a chart; `style` is its CSS class. Values that are not finite are left out.

    A `noisy` line of more than 50 points is drawn faint, with its running mean over it.
    """

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    noisy: bool = False

    def points(self) -> Iterable[tuple[float, float]]:
        """Yield its points (x, y)."""
        return zip(self.xs, self.ys, strict=True)


def curves_svg(
    lines: Sequence[Line],
    label: str,
    *,
    size: tuple[int, int] = (520, 270),
    percent: bool = False,
    epochs: Epochs = (),
    best_x: float | None = None,
    unit: str = "step",
) -> str:
    """Draw lines over steps, or another `unit`; `epochs` are named above, `best_x` is marked by a dashed line.

    `size` is width and height in CSS pixels. Returns "" where nothing is finite.
    """
    finite = [line for line in map(_finite, lines) if len(line.xs)]
    if not finite:
        return ""
    means = [running_mean(line) for line in finite]
    values = np.concatenate([np.asarray(line.ys) for line in means])
    top = min(float(values.max()), 1.0) if percent else float(values.max())
    y_ticks = round_ticks(*_widened(float(values.min()), top))
    x_range = _widened(min(line.xs[0] for line in finite), max(line.xs[-1] for line in finite))
    x_ticks = [x for x in round_ticks(*x_range, count=6) if x_range[0] <= x <= x_range[1]]
    axes = Axes(x_range, (y_ticks[0], y_ticks[-1]), size, MARGINS)
    parts = [
        *axes.y_axis([(y, f"{y * 100:.4g}%" if percent else f"{y:.4g}") for y in y_ticks]),
        *axes.x_axis([(x, _short(x)) for x in x_ticks], unit),
        *_epoch_marks(axes, epochs),
    ]
    if best_x is not None and x_range[0] <= best_x <= x_range[1]:
        parts.append(axes.upright(best_x, "best", "best"))
    parts += [_polylines(axes, finite, means), *_dots(axes, finite, dict(epochs), percent, unit)]
    return axes.chart(label, parts)


def confusion_svg(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Draw confusion (K, K) of label (row) by prediction with its counts; meant for up to 20 classes."""
    num_classes = len(class_names)
    cell = 64 if num_classes <= 6 else 44 if num_classes <= 12 else 34
    names = [_cut(name, 22) for name in class_names]
    margin = 30 + 6.6 * max(text_columns(name) for name in names)
    size = margin + cell * num_classes + 2
    strength = confusion_strength(confusion)
    parts = [
        f'<svg class="matrix" viewBox="0 0 {size:.0f} {size:.0f}" style="max-width:{size:.0f}px" role="img" '
        'aria-label="Confusion matrix"><title>Confusion matrix</title>'
    ]
    for i, row in enumerate(confusion.tolist()):
        y = i * cell + 1
        name = f'text-anchor="end">{escape(names[i])}<title>{escape(class_names[i])}</title></text>'
        parts.append(f'<text class="name" x="{margin - 8:.1f}" y="{y + cell / 2 + 4}" {name}')
        turned = f"translate({margin + y + cell / 2 + 4:.1f} {cell * num_classes + 10}) rotate(-90)"
        parts.append(f'<text class="name" transform="{turned}" {name}')
        for j, count in enumerate(row):
            title = f"{escape(class_names[i])} → {escape(class_names[j])}: {count:,}"
            style = "hit" if i == j else "miss"
            parts += _cell(margin + j * cell + 1, y, cell, count, strength[i, j], style, title)
    middle = cell * num_classes / 2
    parts.append(tick_text(round(margin + middle, 1), round(size - 4, 1), "prediction"))
    parts.append(
        f'<text class="tick" transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">truth</text></svg>'
    )
    return "".join(parts)


def _epoch_marks(axes: Axes, epochs: Epochs) -> list[str]:
    left, top, _, _ = axes.box
    parts = []
    for x, epoch in _thinned(epochs, *axes.x_range):
        parts.append(f'<path class="epoch" d="M{axes.x(x)},{top}v-5"/>')
        parts.append(tick_text(axes.x(x), top - EPOCH_ROW, f"{epoch:g}"))
    return [*parts, tick_text(left - 8, top - EPOCH_ROW, "epoch", "end")] if epochs else parts


def _polylines(axes: Axes, lines: Sequence[Line], means: Sequence[Line]) -> str:
    """Draw lines and their means; spikes of a faint line may leave the chart, whose scale is that of the means."""
    parts = []
    for line, mean in zip(lines, means, strict=True):
        if mean is not line:
            parts.append(axes.line(thin_out(line).points(), f"{line.style} faint"))
        parts.append(axes.line(thin_out(mean).points(), line.style))
    _, top, _, bottom = axes.box
    return clipped(0, top - 3, axes.size[0], bottom - top + 6, parts)


def _dots(axes: Axes, lines: Sequence[Line], epoch_of: dict[float, float], percent: bool, unit: str) -> Iterable[str]:
    """Draw the points of short lines, with their values as titles."""
    for line in lines:
        for x, y in line.points() if len(line.xs) <= MAX_DOTS else ():
            at = f"{unit} {x:,.0f}" + (f", epoch {epoch_of[x]:g}" if x in epoch_of else "")
            value = f"{y:.2%}" if percent else f"{y:.5g}"
            yield axes.dot(x, y, line.style, f"{line.name} {value} at {at}")


def _cell(x: float, y: int, cell: int, count: int, strength: float, style: str, title: str) -> list[str]:
    """Draw a cell of a confusion matrix: its colour, and its count where it is not 0."""
    place = f'x="{x:.1f}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3"'
    parts = [f'<rect class="empty" {place}/>']
    parts.append(f'<rect class="{style}" {place} fill-opacity="{strength:.3f}"><title>{title}</title></rect>')
    if count:
        deep = " deep" if strength > 0.6 else ""
        size_px = min(13.0, cell / (0.62 * len(str(count)) + 0.6))
        at = f'x="{x + cell / 2 - 1:.1f}" y="{y + cell / 2 + 0.34 * size_px - 1:.1f}"'
        parts.append(f'<text class="count{deep}" {at} font-size="{size_px:.1f}" text-anchor="middle">{count}</text>')
    return parts


def _finite(line: Line) -> Line:
    points = [(x, y) for x, y in line.points() if math.isfinite(x) and math.isfinite(y)]
    return Line(line.name, line.style, [x for x, _ in points], [y for _, y in points], line.noisy)


def running_mean(line: Line, shortest: int = 50) -> Line:
    """Mean of the points about each point, a fortieth of the line to either side, so that it does not lag behind."""
    count = len(line.ys)
    if count <= shortest or not line.noisy:
        return line
    sums = np.concatenate([[0.0], np.cumsum(line.ys)])
    middle = np.arange(count)
    reach = np.minimum(np.minimum(middle, count - 1 - middle), max(count // 40, 2))  # even-sided at the ends too
    means = (sums[middle + reach + 1] - sums[middle - reach]) / (2 * reach + 1)
    return Line(line.name, line.style, line.xs, means.tolist())


def thin_out(line: Line) -> Line:
    """Thin a long line out, keeping the lowest and the highest point of each stretch."""
    if len(line.xs) <= MAX_POINTS:
        return line
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(line.xs)), MAX_POINTS // 2):
        ys = [line.ys[i] for i in stretch]
        kept += sorted({int(stretch[int(np.argmin(ys))]), int(stretch[int(np.argmax(ys))])})
    return Line(line.name, line.style, [line.xs[i] for i in kept], [line.ys[i] for i in kept])


def _widened(low: float, high: float) -> tuple[float, float]:
    """Return a range that has an extent."""
    return (low, high) if high > low else (low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5))


def _thinned(epochs: Epochs, low: float, high: float) -> list[tuple[float, float]]:
    """Keep about ten epochs at most, a round number of epochs apart."""
    epochs = [pair for pair in epochs if low <= pair[0] <= high]
    if len(epochs) <= 10:
        return list(epochs)
    step = round_ticks(0, len(epochs), count=8)[1]
    return [pair for pair in epochs if pair[1] % step == 0] or list(epochs[:: math.ceil(len(epochs) / 10)])


def _short(value: float) -> str:
    """Write 12000 as 12k and 1500000 as 1.5M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 10 or (abs(value) >= unit and value % (unit / 10) == 0):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _cut(text: str, columns: int) -> str:
    if text_columns(text) <= columns:
        return text
    while text_columns(text) > columns - 1:
        text = text[:-1]
    return text.rstrip() + "…"
