"""Masks as pictures: classes in their colours, over an image or beside it, and where a prediction is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from visualization import fonts
from visualization.raster import INK, LINE, MUTED, PAPER, WRONG

IGNORED = (0, 0, 0)  # pixels of no class
GAP_PX = 4
COVER = 0.5  # of an image by a class's colour
LEAST_SIDE_PX, MOST_SIDE_PX = 224, 2048  # of an image under its mask


def colour_table(colors: Sequence[Sequence[int]]) -> np.ndarray:
    """Return colours (256, 3) uint8 by class index; what is no class is black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colors)] = np.asarray(colors, np.uint8).reshape(-1, 3)
    return table


def coloured(indices: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return class indices (H, W) in their colours, uint8 (H, W, 3)."""
    return table[indices]


def error_image(truth: np.ndarray, prediction: np.ndarray, image: np.ndarray, void: int) -> np.ndarray:
    """Return an image uint8 (H, W, 3), pale, with wrong pixels red and ignored ones black. truth, prediction (H, W)."""
    pale = 255 - (255 - rgb(image).mean(axis=2, keepdims=True)) * 0.35  # (H, W, 1)
    shown = np.repeat(pale.round().astype(np.uint8), 3, axis=2)
    shown[truth != prediction] = WRONG
    shown[truth == void] = IGNORED
    return shown


def laid_over(image: Image.Image, indices: np.ndarray, colors: Sequence[Sequence[int]]) -> Image.Image:
    """Return an image, RGB, under class indices (H, W) of its size: half in their colours, their borders in full.

    A black class, which data sets call the background, leaves the image as it is; pixels of no class are dark. An image
    whose longer side is below LEAST_SIDE_PX is enlarged by a whole factor, one above MOST_SIDE_PX is shrunk.
    """
    factor = math.ceil(LEAST_SIDE_PX / max(image.size))
    size = (image.width * factor, image.height * factor)
    if max(size) > MOST_SIDE_PX:
        size = ImageOps.contain(Image.new("1", image.size), (MOST_SIDE_PX, MOST_SIDE_PX)).size
    pixels = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR)).astype(np.float32)
    labels = np.asarray(Image.fromarray(indices).resize(size, Image.Resampling.NEAREST))
    table = colour_table(colors)[labels]
    cover = np.full(labels.shape, COVER, np.float32)
    cover[labels >= len(colors)] = 0.75
    is_border = np.zeros(labels.shape, bool)
    is_border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    is_border[1:] |= labels[1:] != labels[:-1]
    cover[is_border] = 1
    cover[(table == 0).all(axis=2) & (labels < len(colors))] = 0
    mixed = pixels + (table - pixels) * cover[..., None]
    return Image.fromarray(mixed.round().astype(np.uint8))


def with_colours(image: Image.Image, entries: Sequence[tuple[str, Sequence[int]]]) -> Image.Image:
    """Put texts, each behind a square of its colour, below an image, on as many lines as they need."""
    size_px = max(14, round(math.sqrt(image.width * image.height) / 36))
    margin, line_px, side = round(size_px * 0.8), round(size_px * 1.5), round(size_px * 0.8)
    width = max(image.width, LEAST_SIDE_PX)
    places, x, line = [], margin, 0
    for text, color in entries:
        shown = fonts.elide(text, width - 2 * margin - 2 * side, size_px)
        needed = round(1.5 * side + fonts.text_width(shown, size_px) + 1.5 * size_px)
        if x > margin and x + needed - size_px > width - margin:
            x, line = margin, line + 1
        places.append((x, line, shown, color))
        x += needed
    lines = line + 1 if entries else 0
    sheet = Image.new("RGB", (width, image.height + lines * line_px + margin * bool(lines)), PAPER)
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    for x, line, shown, color in places:
        base = image.height + margin + line * line_px + round(size_px * 0.88)
        draw.rectangle((x, base - side, x + side, base), fill=(color[0], color[1], color[2]), outline=LINE)
        fonts.draw_text(draw, (x + 1.5 * side, base), shown, size_px, INK)
    return sheet


def strip(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Return panels (H, W, C) of one height side by side, with gaps between them."""
    gap = np.full((panels[0].shape[0], GAP_PX, 3), MUTED, np.uint8)
    parts = [rgb(panels[0])]
    for panel in panels[1:]:
        parts += [gap, rgb(panel)]
    return np.concatenate(parts, axis=1)


def rgb(image: np.ndarray) -> np.ndarray:
    """Return an image uint8 (..., H, W, C) with three channels: its first three, or its first as grey."""
    return image[..., :3] if image.shape[-1] > 2 else np.repeat(image[..., :1], 3, axis=-1)
