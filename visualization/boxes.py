"""Boxes drawn on an image, with what they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from visualization import fonts
from visualization.masks import rgb
from visualization.raster import PAPER


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    texts: Sequence[str],
    colours: Sequence[Sequence[int]],
    dashed: Sequence[bool] = (),
) -> np.ndarray:
    """Return an image (H, W, 1 or 3) with boxes (n, 4) in its pixels, each in its colour with a text, uint8 (H, W, 3).

    `dashed` boxes are drawn as corners alone. Lines and letters grow with the image.
    """
    drawn = Image.fromarray(rgb(image))
    canvas = ImageDraw.Draw(drawn)
    side = max(drawn.size)
    line_px, size_px = max(1, round(side / 320)), max(11, round(side / 50))
    marks = list(dashed) or [False] * len(texts)
    for box, text, colour, is_dashed in zip(boxes, texts, colours, marks, strict=True):
        left, top, right, bottom = (round(float(value)) for value in box)
        right, bottom = max(right - 1, left), max(bottom - 1, top)
        fill = tuple(int(part) for part in colour)
        if is_dashed:
            _corners(canvas, (left, top, right, bottom), fill, line_px)
        else:
            canvas.rectangle((left, top, right, bottom), outline=fill, width=line_px)
        if text:
            _label(canvas, (left, top), text, fill, size_px)
    return np.asarray(drawn)


def _corners(canvas: ImageDraw.ImageDraw, box: tuple[int, int, int, int], fill: tuple[int, ...], line_px: int) -> None:
    left, top, right, bottom = box
    across, down = max(2, (right - left) // 4), max(2, (bottom - top) // 4)
    for x, inward in ((left, across), (right, -across)):
        for y in (top, bottom):
            canvas.line((x, y, x + inward, y), fill=fill, width=line_px)
    for y, inward in ((top, down), (bottom, -down)):
        for x in (left, right):
            canvas.line((x, y, x, y + inward), fill=fill, width=line_px)


def _label(
    canvas: ImageDraw.ImageDraw, corner: tuple[int, int], text: str, fill: tuple[int, ...], size_px: int
) -> None:
    """Write a text on a plate above a corner, or below it where there is no room."""
    width, height = round(fonts.text_width(text, size_px)) + 4, size_px + 4
    left, top = corner
    above = top - height if top >= height else top
    canvas.rectangle((left, above, left + width, above + height - 1), fill=fill)
    is_dark = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2] < 140
    fonts.draw_text(canvas, (left + 2, above + round(size_px * 0.95)), text, size_px, PAPER if is_dark else (0, 0, 0))
