"""Charts as SVG text, coloured by the page's style sheet so that they follow its light or dark scheme."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from visualization.raster import confusion_strength

LEFT, RIGHT, TOP, BOTTOM = 52, 16, 28, 38
MAX_POINTS = 400  # points of a line that are drawn; more than a screen shows apart
MAX_DOTS = 60


@dataclass(frozen=True)
class Line:
    """One line of a chart; `style` is its CSS class. Values that are not finite are passed over.

    A `noisy` line of more than 50 points is drawn faint, with its running mean over it.
    """

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    noisy: bool = False


def curves_svg(
    lines: Sequence[Line],
    label: str,
    *,
    size: tuple[int, int] = (520, 270),
    percent: bool = False,
    epochs: Sequence[tuple[float, float]] = (),
    best_x: float | None = None,
) -> str:
    """Draw lines over steps; `epochs`, pairs (step, epoch), are named above, `best_x` is marked by a dashed line.

    `size` is width and height in CSS pixels. Returns "" where nothing is finite.
    """
    width, height = size
    cleaned = [_finite(line) for line in lines]
    cleaned = [line for line in cleaned if len(line.xs)]
    if not cleaned:
        return ""
    smooth = [_running_mean(line) for line in cleaned]
    x_low, x_high = _widened(min(line.xs[0] for line in cleaned), max(line.xs[-1] for line in cleaned))
    values = np.concatenate([np.asarray(line.ys) for line in smooth])
    y_ticks = _ticks(*_widened(float(values.min()), min(float(values.max()), 1.0) if percent else float(values.max())))
    y_low, y_high = y_ticks[0], y_ticks[-1]

    def x_px(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (width - LEFT - RIGHT), 1)

    def y_px(y: float) -> float:
        return round(TOP + (y_high - y) / (y_high - y_low) * (height - TOP - BOTTOM), 1)

    def path(line: Line, style: str) -> str:
        points = " ".join(f"{x_px(x)},{y_px(y)}" for x, y in zip(line.xs, line.ys, strict=True))
        return f'<polyline class="line {style}" points="{points}"/>'

    parts = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">']
    for y in y_ticks:
        text = f"{y * 100:.4g}%" if percent else f"{y:.4g}"
        parts.append(f'<path class="grid" d="M{LEFT},{y_px(y)}H{width - RIGHT}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{y_px(y) + 4}" text-anchor="end">{text}</text>')
    for x in _inside(_ticks(x_low, x_high, count=6), x_low, x_high):
        parts.append(f'<text class="tick" x="{x_px(x)}" y="{height - 21}" text-anchor="middle">{_short(x)}</text>')
    parts.append(
        f'<text class="tick" x="{(LEFT + width - RIGHT) / 2}" y="{height - 4}" text-anchor="middle">step</text>'
    )
    for x, epoch in _thinned(epochs, x_low, x_high):
        parts.append(f'<path class="epoch" d="M{x_px(x)},{TOP}v-5"/>')
        parts.append(f'<text class="tick" x="{x_px(x)}" y="{TOP - 9}" text-anchor="middle">{epoch:g}</text>')
    if epochs:
        parts.append(f'<text class="tick" x="{LEFT - 8}" y="{TOP - 9}" text-anchor="end">epoch</text>')
    if best_x is not None and x_low <= best_x <= x_high:
        parts.append(f'<path class="best" d="M{x_px(best_x)},{TOP}V{height - BOTTOM}"><title>best</title></path>')
    # Spikes of the faint line may leave the chart, which is scaled by the running means.
    frame = f'<svg x="0" y="{TOP - 3}" width="{width}" height="{height - TOP - BOTTOM + 6}" '
    parts.append(f'{frame}viewBox="0 {TOP - 3} {width} {height - TOP - BOTTOM + 6}">')
    for line, mean in zip(cleaned, smooth, strict=True):
        if mean is not line:
            parts.append(path(_extremes(line), f"{line.style} faint"))
        parts.append(path(_extremes(mean), line.style))
    parts.append("</svg>")
    epoch_of = dict(epochs)
    for line in cleaned:
        for x, y in zip(line.xs, line.ys, strict=True) if len(line.xs) <= MAX_DOTS else ():
            at = f"step {x:,.0f}" + (f", epoch {epoch_of[x]:g}" if x in epoch_of else "")
            value = f"{y:.2%}" if percent else f"{y:.5g}"
            parts.append(f'<circle class="dot {line.style}" cx="{x_px(x)}" cy="{y_px(y)}" r="3">')
            parts.append(f"<title>{escape(line.name)} {value} at {at}</title></circle>")
    return "".join([*parts, "</svg>"])


def confusion_svg(confusion: np.ndarray, class_names: Sequence[str]) -> str:
    """Draw confusion (K, K) of label (row) by answer with its counts; meant for up to 20 classes."""
    num_classes = len(class_names)
    cell = 64 if num_classes <= 6 else 44 if num_classes <= 12 else 34
    names = [_cut(name, 22) for name in class_names]
    margin = 30 + 6.6 * max(_columns(name) for name in names)
    size = margin + cell * num_classes + 2
    strength = confusion_strength(confusion)
    parts = [
        f'<svg class="matrix" viewBox="0 0 {size:.0f} {size:.0f}" style="max-width:{size:.0f}px" role="img" '
        'aria-label="Confusion matrix"><title>Confusion matrix</title>'
    ]
    for i, row in enumerate(confusion.tolist()):
        y = i * cell + 1
        title = f"<title>{escape(class_names[i])}</title>"
        at = f"{margin - 8:.1f}"
        parts.append(
            f'<text class="name" x="{at}" y="{y + cell / 2 + 4}" text-anchor="end">{escape(names[i])}{title}</text>'
        )
        turned = f"translate({margin + y + cell / 2 + 4:.1f} {cell * num_classes + 10}) rotate(-90)"
        parts.append(f'<text class="name" transform="{turned}" text-anchor="end">{escape(names[i])}{title}</text>')
        for j, count in enumerate(row):
            style = "hit" if i == j else "miss"
            x = margin + j * cell + 1
            says = f"{escape(class_names[i])} → {escape(class_names[j])}: {count:,}"
            parts.append(f'<rect class="empty" x="{x:.1f}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3"/>')
            parts.append(
                f'<rect class="{style}" x="{x:.1f}" y="{y}" width="{cell - 2}" height="{cell - 2}" rx="3" '
                f'fill-opacity="{strength[i, j]:.3f}"><title>{says}</title></rect>'
            )
            if count:
                deep = " deep" if strength[i, j] > 0.6 else ""
                size_px = min(13.0, cell / (0.62 * len(str(count)) + 0.6))
                parts.append(
                    f'<text class="count{deep}" x="{x + cell / 2 - 1:.1f}" y="{y + cell / 2 + 0.34 * size_px - 1:.1f}" '
                    f'font-size="{size_px:.1f}" text-anchor="middle">{count}</text>'
                )
    middle = margin + cell * num_classes / 2
    parts.append(f'<text class="tick" x="{middle:.1f}" y="{size - 4:.1f}" text-anchor="middle">answer</text>')
    parts.append(
        f'<text class="tick" transform="translate(12 {cell * num_classes / 2:.1f}) rotate(-90)" text-anchor="middle">'
        "truth</text></svg>"
    )
    return "".join(parts)


def _finite(line: Line) -> Line:
    points = [(x, y) for x, y in zip(line.xs, line.ys, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Line(line.name, line.style, [x for x, _ in points], [y for _, y in points], line.noisy)


def _running_mean(line: Line, shortest: int = 50) -> Line:
    """Mean of the points about each point, a fortieth of the line to either side, so that it does not lag behind."""
    count = len(line.ys)
    if count <= shortest or not line.noisy:
        return line
    sums = np.concatenate([[0.0], np.cumsum(line.ys)])
    middle = np.arange(count)
    reach = np.minimum(np.minimum(middle, count - 1 - middle), max(count // 40, 2))  # even-sided at the ends too
    means = (sums[middle + reach + 1] - sums[middle - reach]) / (2 * reach + 1)
    return Line(line.name, line.style, line.xs, means.tolist())


def _extremes(line: Line) -> Line:
    """Thin a long line out, keeping the lowest and the highest point of each stretch."""
    if len(line.xs) <= MAX_POINTS:
        return line
    kept: list[int] = []
    for stretch in np.array_split(np.arange(len(line.xs)), MAX_POINTS // 2):
        ys = [line.ys[i] for i in stretch]
        kept += sorted({int(stretch[int(np.argmin(ys))]), int(stretch[int(np.argmax(ys))])})
    return Line(line.name, line.style, [line.xs[i] for i in kept], [line.ys[i] for i in kept])


def _widened(low: float, high: float) -> tuple[float, float]:
    """Give a range without extent one."""
    return (low, high) if high > low else (low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5))


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at or below `low` to at or above `high`."""
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 12 - math.floor(math.log10(step))  # enough for any scale
    return [round(i * step, digits) for i in range(first, last + 1)]


def _inside(values: Sequence[float], low: float, high: float) -> list[float]:
    return [value for value in values if low <= value <= high]


def _thinned(epochs: Sequence[tuple[float, float]], low: float, high: float) -> list[tuple[float, float]]:
    """Keep at most about ten epochs, evenly, those that a round number of epochs parts."""
    epochs = [pair for pair in epochs if low <= pair[0] <= high]
    if len(epochs) <= 10:
        return list(epochs)
    step = _ticks(0, len(epochs), count=8)[1]
    return [pair for pair in epochs if pair[1] % step == 0] or list(epochs[:: math.ceil(len(epochs) / 10)])


def _short(value: float) -> str:
    """Write 12000 as 12k and 1500000 as 1.5M."""
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * 10 or (abs(value) >= unit and value % (unit / 10) == 0):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _columns(text: str) -> int:
    """Width in columns; a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _cut(text: str, columns: int) -> str:
    if _columns(text) <= columns:
        return text
    while _columns(text) > columns - 1:
        text = text[:-1]
    return text.rstrip() + "…"
