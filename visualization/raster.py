"""Images as pixels, for TensorBoard, the report and the copies of inference: uint8 RGB, (H, W, 3)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from visualization import fonts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from visualization.precision_recall import PrecisionRecall

INK, MUTED, PAPER, LINE = (27, 31, 36), (101, 109, 118), (255, 255, 255), (208, 215, 222)
RIGHT, WRONG = (26, 127, 55), (207, 34, 46)
HIT, MISS = (9, 82, 165), (188, 76, 0)  # diagonal and off-diagonal of a confusion matrix
DPI = 100
CURVE_COLOURS = {  # by style, as the pages have them
    **{"curve0": (9, 105, 218), "curve1": (188, 76, 0), "curve2": (26, 127, 55), "curve3": (130, 80, 223)},
    **{"curve4": (207, 34, 46), "curve5": (154, 103, 0)},
}
MAX_NUMBERED_CLASSES = 20
MAX_LABEL_PX = 190


def confusion_matrix_image(confusion: np.ndarray | Sequence[Sequence[int]], class_names: Sequence[str]) -> np.ndarray:
    """Draw confusion (K, K), counts by label (row) and prediction (column): hits blue, mistakes orange.

    A cell's strength is its share of the row, as a square root for mistakes, so that a rare one is still seen. Up to
    20 classes the cells carry their counts; beyond 60 not every class is named. Returns (H, W, 3) uint8.
    """
    from matplotlib.figure import Figure

    counts = np.asarray(confusion)
    num_classes = len(class_names)
    cell_px = float(np.clip(900 / num_classes, 46, 90)) if num_classes <= MAX_NUMBERED_CLASSES else 920 / num_classes
    cell_px = max(cell_px, 1.0)
    label_px = 14 if num_classes <= 40 else 11
    every = math.ceil((label_px + 3) / cell_px)
    shown = list(range(0, num_classes, every))
    labels = [fonts.elide(class_names[i], MAX_LABEL_PX, label_px) for i in shown]
    longest_px = max((fonts.text_width(label, label_px) for label in labels), default=0.0)
    side_px = cell_px * num_classes
    # The longest label stands left of the matrix and, turned, below it.
    left, bottom, right, top = longest_px + 52, longest_px + 44, 30.0, 96.0
    width, height = max(left + side_px + right, 430.0), bottom + side_px + top
    with _chinese():
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        axes = figure.add_axes((left / width, bottom / height, side_px / width, side_px / height))
        axes.imshow(confusion_colours(counts), interpolation="nearest", aspect="auto")
        axes.set_xticks(shown, labels, rotation=90, fontsize=_points(label_px))
        axes.set_yticks(shown, labels, fontsize=_points(label_px))
        axes.tick_params(length=0 if every == 1 else 3, color=_hex(LINE), labelcolor=_hex(INK), pad=5)
        for side in axes.spines.values():
            side.set_color(_hex(LINE))
        if num_classes <= MAX_NUMBERED_CLASSES:
            _write_counts(axes, counts, cell_px)
        total, hits = int(counts.sum()), int(counts.trace())
        share = f"{hits / total:.2%}" if total else "–"
        _write(figure, left, height - 30, "Confusion matrix", 19, INK)
        _write(figure, left, height - 52, f"{hits:,} of {total:,} right ({share})", 13, MUTED)
        _write(figure, left, height - 74, "■ right", 13, HIT)
        _write(figure, left + 62, height - 74, "■ wrong", 13, MISS)
        if every > 1:
            _write(figure, left + 140, height - 74, f"one class in {every} is named", 13, MUTED)
        _write(figure, left + side_px / 2, 14, "prediction", 14, MUTED, ha="center")
        _write(figure, 20, bottom + side_px / 2, "truth", 14, MUTED, rotation=90, ha="center", va="center")
        return _pixels(figure)


def confusion_colours(confusion: np.ndarray) -> np.ndarray:
    """Return one pixel per cell on white, (K, K) counts -> (K, K, 3) uint8; see `confusion_matrix_image`."""
    strength = confusion_strength(confusion)[..., None]  # (K, K, 1)
    diagonal = np.eye(len(confusion), dtype=bool)[..., None]
    ink = np.where(diagonal, HIT, MISS)  # (K, K, 3)
    return np.rint(255 + (ink - 255) * strength).astype(np.uint8)


def confusion_strength(confusion: np.ndarray) -> np.ndarray:
    """Return the depth of colour from 0 to 1, (K, K): share of the row on the diagonal, its square root elsewhere."""
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    return np.where(np.eye(len(confusion), dtype=bool), share, np.sqrt(share))


def precision_recall_image(curves: Sequence[PrecisionRecall]) -> np.ndarray:
    """Draw the curves, with a dot at the score threshold of each. Returns (H, W, 3) uint8."""
    from matplotlib.figure import Figure

    width, height = 760, 560
    with _chinese():
        figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
        axes = figure.add_axes((74 / width, 64 / height, (width - 94) / width, (height - 124) / height))
        for curve in curves:
            colour = _hex(CURVE_COLOURS.get(curve.style, INK))
            recall, precision = zip(*curve.points() or [(0.0, 0.0)], strict=True)
            axes.plot(recall, precision, color=colour, linewidth=2, label=fonts.elide(curve.name, MAX_LABEL_PX, 13))
            if curve.chosen:
                axes.plot(*curve.chosen, "o", color=colour, markerfacecolor="white", markeredgewidth=2)
        ticks = [i / 5 for i in range(6)]
        texts = [f"{i * 20}%" for i in range(6)]
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set_xticks(ticks, texts, fontsize=_points(13))
        axes.set_yticks(ticks, texts, fontsize=_points(13))
        axes.tick_params(length=0, labelcolor=_hex(MUTED), pad=6)
        axes.grid(color=_hex(LINE))
        for side in axes.spines.values():
            side.set_visible(False)
        axes.legend(loc="lower left", fontsize=_points(13), frameon=False)
        _write(figure, 20, height - 30, "Precision and recall at IoU 0.5", 19, INK)
        _write(figure, 20, height - 52, "dots: at the score threshold", 13, MUTED)
        _write(figure, width / 2, 16, "recall", 14, MUTED, ha="center")
        _write(figure, 16, height / 2, "precision", 14, MUTED, rotation=90, ha="center", va="center")
        return _pixels(figure)


def image_grid(
    images: np.ndarray | Sequence[np.ndarray],
    captions: Sequence[str],
    columns: int,
    right: Sequence[bool] | None = None,
    cell_px: int = 160,
) -> np.ndarray:
    r"""Lay images, each (H, W, 3) or (H, W, 1) uint8 of any size, out in a grid with a caption below each.

    A caption's lines, parted by \n, are cut to the cell's width. `right` frames each image green (True) or red.
    Returns (H, W, 3) uint8; without images one empty cell.
    """
    gap, size_px, frame = 10, 13, 3
    caption_lines = [caption.split("\n") for caption in captions]
    line_px = size_px + 5
    caption_px = line_px * max((len(lines) for lines in caption_lines), default=0) + 4
    columns = max(min(columns, len(images)), 1)
    rows = max(math.ceil(len(images) / columns), 1)
    sheet = Image.new("RGB", (gap + columns * (cell_px + gap), gap + rows * (cell_px + caption_px + gap)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, (image, lines) in enumerate(zip(images, caption_lines, strict=True)):
        x = gap + (i % columns) * (cell_px + gap)
        y = gap + (i // columns) * (cell_px + caption_px + gap)
        draw.rectangle((x, y, x + cell_px - 1, y + cell_px - 1), fill=(240, 242, 245))
        tile = thumbnail(image, cell_px - 2 * frame)
        sheet.paste(tile, (x + (cell_px - tile.width) // 2, y + (cell_px - tile.height) // 2))
        if right is not None:
            colour = RIGHT if right[i] else WRONG
            draw.rectangle((x, y, x + cell_px - 1, y + cell_px - 1), outline=colour, width=frame)
        for k, line in enumerate(lines):
            text = fonts.elide(line, cell_px, size_px)
            fonts.draw_text(draw, (x, y + cell_px + (k + 1) * line_px - 2), text, size_px, INK if k == 0 else MUTED)
    return np.asarray(sheet)


def thumbnail(image: np.ndarray, side_px: int) -> Image.Image:
    """Fit an image (H, W, 3), (H, W, 1) or (H, W) uint8 into a square; a small one grows by whole pixels."""
    drawn = Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image).convert("RGB")
    longest = max(drawn.size)
    if longest * 2 <= side_px:
        return ImageOps.scale(drawn, side_px // longest, Image.Resampling.NEAREST)
    width, height = (max(1, round(side / longest * side_px)) for side in drawn.size)  # a line stays one
    return drawn.resize((width, height), Image.Resampling.LANCZOS)


def annotated(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Put a strip with lines of text below an image; the first line is the strongest.

    The letters grow with the image. One too small to be read beside them (longer side below 224 px) is enlarged by a
    whole factor, pixel by pixel. A long line is broken up to twice, then cut. Returns RGB.
    """
    drawn = image.convert("RGB")
    drawn = ImageOps.scale(drawn, max(1, math.ceil(224 / max(drawn.size))), Image.Resampling.NEAREST)
    width = max(drawn.width, 224)  # a narrow image gets bars at its sides
    size_px = max(14, round(math.sqrt(drawn.width * drawn.height) / 36))
    margin, line_px = round(size_px * 0.8), round(size_px * 1.45)
    pieces = [
        (piece, INK if i == 0 else MUTED)
        for i, line in enumerate(lines)
        for piece in fonts.wrap(line, width - 2 * margin, size_px, max_lines=3)
    ]
    strip_px = 2 * margin + line_px * len(pieces) - (line_px - size_px) if pieces else 0
    sheet = Image.new("RGB", (width, drawn.height + strip_px), PAPER)
    sheet.paste(drawn, ((width - drawn.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for i, (piece, colour) in enumerate(pieces):
        baseline = drawn.height + margin + i * line_px + round(size_px * 0.88)
        fonts.draw_text(draw, (margin, baseline), piece, size_px, colour)
    return sheet


def png_bytes(pixels: np.ndarray) -> bytes:
    """Encode (H, W, 3), (H, W, 4) or (H, W) uint8 as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _write_counts(axes: Axes, counts: np.ndarray, cell_px: float) -> None:
    """Write each cell's count, light on dark cells; nothing for 0."""
    strength = confusion_strength(counts)
    for i, j in np.argwhere(counts > 0):
        number = f"{counts[i, j]}"
        size_px = min(15.0, cell_px / (0.62 * len(number) + 0.6))  # a digit is 0.62 of its height wide
        colour = "white" if strength[i, j] > 0.55 else _hex(INK)
        axes.text(j, i, number, ha="center", va="center", fontsize=_points(size_px), color=colour)


def _write(
    figure: Figure, x_px: float, y_px: float, text: str, size_px: float, colour: tuple[int, int, int], **style: Any
) -> None:
    """Write on a figure, `x_px` and `y_px` from its lower left corner; `style` is matplotlib's."""
    width, height = figure.get_size_inches() * DPI
    figure.text(x_px / width, y_px / height, text, fontsize=_points(size_px), color=_hex(colour), **style)


def _chinese() -> AbstractContextManager[None]:
    from matplotlib import rc_context

    parameters: Any = fonts.use_fonts()  # a plain dict; matplotlib's own type lists every key it knows
    return rc_context(parameters)


def _pixels(figure: Figure) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _points(size_px: float) -> float:
    return size_px * 72 / DPI


def _hex(colour: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
