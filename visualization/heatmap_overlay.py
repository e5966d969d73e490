"""Heat maps laid over the images they were made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from common.placement import Placement, placement
from visualization import fonts
from visualization.raster import INK, PAPER

COLOURS = "inferno"  # black to yellow: its lightness rises all the way, so that it reads without colours as well
COLOUR_LEFT = 0.25  # of the image's own saturation: red means hot, a rose turns grey
COVER = (0.3, 0.62)  # of the image by the map's colour, where it is 0 and where it is 1
UNSEEN = 0.25  # brightness of the parts outside the net's input
STAGE_COLOURS = ((120, 220, 255), (130, 255, 140), (255, 255, 255), (255, 150, 230))
LEAST_WIDTH_PX = 224  # of the line below
MARK_SIDE = 0.4  # of a position's own side
LEGEND = "selected at stage"
MUTED_ON_INK = (170, 178, 187)


@dataclass(frozen=True)
class Marks:
    """Positions of one grid over the net's input, numbered row by row."""

    name: str
    rows: int
    columns: int
    positions: Sequence[int]


def heat_map_image(
    image: Image.Image,
    heat: np.ndarray,
    resize: str,
    marks: Sequence[Marks] = (),
    sides_px: tuple[int, int] = (448, 2048),
) -> Image.Image:
    """Lay a heat map (H, W), 0 to 1 at the net's input size, over the image that was resized to that input.

    `resize` is squash, letterbox or crop, as the preprocessing did it. Parts outside the net's input are dark. `marks`
    get STAGE_COLOURS in turn, listed in a line below. An image whose longer side is below the first of `sides_px` is
    enlarged by a whole factor, so that map and marks are visible; one above the second is shrunk. Returns RGB.
    """
    placed = placement(resize, image.size, (heat.shape[1], heat.shape[0]))
    shown = _between(image, *sides_px)
    across, down = shown.width / image.width, shown.height / image.height
    left, top, right, bottom = placed.seen
    placed = Placement(placed.inside, (left * across, top * down, right * across, bottom * down))
    made = overlay(shown, heat, placed)
    if not marks or placed.is_empty:
        return made
    draw_marks(made, (heat.shape[0], heat.shape[1]), placed, marks)
    return with_legend(made, [mark.name for mark in marks])


def overlay(image: Image.Image, heat: np.ndarray, placed: Placement) -> Image.Image:
    """Colour the seen part of an image, nearly grey, by its map (H, W); the rest of the image is dimmed."""
    sheet = image.convert("RGB").point([round(value * UNSEEN) for value in range(256)] * 3)
    if placed.is_empty:
        return sheet
    left, top, right, bottom = _whole_pixels(placed.seen)
    first_column, first_row, end_column, end_row = placed.inside
    shown = Image.fromarray(heat[first_row:end_row, first_column:end_column].astype(np.float32))
    levels = shown.resize((right - left, bottom - top), Image.Resampling.BILINEAR)
    hot = Image.fromarray(np.rint(np.asarray(levels).clip(0, 1) * 255).astype(np.uint8))
    least, most = COVER
    cover = hot.point([round(255 * (least + (most - least) * (level / 255) ** 0.7)) for level in range(256)])
    coloured = hot.copy()
    coloured.putpalette(_palette())
    greyish = ImageEnhance.Color(image.convert("RGB").crop((left, top, right, bottom))).enhance(COLOUR_LEFT)
    sheet.paste(Image.composite(coloured.convert("RGB"), greyish, cover), (left, top))
    return sheet


def draw_marks(sheet: Image.Image, heat_shape: tuple[int, int], placed: Placement, marks: Sequence[Marks]) -> None:
    """Draw a small square, the larger the coarser the grid, in the middle of each marked position that is image."""
    draw = ImageDraw.Draw(sheet)
    (left, top, right, bottom), (seen_left, seen_top, seen_right, seen_bottom) = placed.inside, placed.seen
    across, down = (seen_right - seen_left) / (right - left), (seen_bottom - seen_top) / (bottom - top)
    line = max(1, round(min(sheet.size) / 300))
    for mark, colour in zip(marks, STAGE_COLOURS, strict=False):
        cell_width, cell_height = heat_shape[1] / mark.columns, heat_shape[0] / mark.rows  # in pixels of the input
        half = max(1.0, MARK_SIDE * min(cell_width * across, cell_height * down) / 2)
        for position in mark.positions:
            row, column = divmod(position, mark.columns)
            x, y = (column + 0.5) * cell_width, (row + 0.5) * cell_height
            if left <= x <= right and top <= y <= bottom:
                x, y = seen_left + (x - left) * across, seen_top + (y - top) * down
                draw.rectangle((x - half, y - half, x + half, y + half), outline=colour, width=line)


def with_legend(image: Image.Image, names: Sequence[str]) -> Image.Image:
    """Put a line below an image with the names of the STAGE_COLOURS."""
    width = max(image.width, LEAST_WIDTH_PX)  # a narrow image gets bars at its sides
    size_px = max(14, round(math.sqrt(image.width * image.height) / 36))
    needed = sum(fonts.text_width(text, size_px) + 2 * size_px for text in (LEGEND, *names))
    size_px = max(8, min(size_px, int(size_px * width / needed)))
    side, gap = round(size_px * 0.75), size_px * 0.5
    sheet = Image.new("RGB", (width, image.height + round(size_px * 1.6)), INK)
    sheet.paste(PAPER, (0, 0, width, image.height))
    sheet.paste(image, ((width - image.width) // 2, 0))
    draw = ImageDraw.Draw(sheet)
    x, y = gap, image.height + round(size_px * 1.15)
    fonts.draw_text(draw, (x, y), LEGEND, size_px, MUTED_ON_INK)
    x += fonts.text_width(LEGEND, size_px) + 1.5 * gap
    for name, colour in zip(names, STAGE_COLOURS, strict=False):
        draw.rectangle((x, y - side, x + side, y), outline=colour, width=max(1, side // 6))
        fonts.draw_text(draw, (x + side + gap, y), name, size_px, PAPER)
        x += side + 2.5 * gap + fonts.text_width(name, size_px)
    return sheet


def _between(image: Image.Image, least_side_px: int, most_side_px: int) -> Image.Image:
    """Bring an image's longer side into a range; the few pixels of a small one stay squares."""
    factor = math.ceil(least_side_px / max(image.size))
    if factor > 1:
        return ImageOps.scale(image, factor, Image.Resampling.BICUBIC if factor < 4 else Image.Resampling.NEAREST)
    if max(image.size) <= most_side_px:
        return image
    smaller = image.copy()
    smaller.thumbnail((most_side_px, most_side_px))
    return smaller


def _whole_pixels(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """Round a box to at least one pixel."""
    left, top, right, bottom = (round(side) for side in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


@lru_cache(maxsize=1)
def _palette() -> bytes:
    from matplotlib import colormaps

    return bytes((colormaps[COLOURS](np.arange(256))[:, :3] * 255).round().astype(np.uint8).tobytes())
