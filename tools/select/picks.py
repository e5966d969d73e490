"""The picked images as files: standard annotations with the images, a list, and a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from common.atomic_io import atomic_path, write_atomic, writing
from data_loader.decoding import decode
from datasets.files import ANNOTATION, write_annotations
from datasets.images import extract_images
from datasets.outcome import Outcome
from tools.select.strategies import SelectError
from visualization.raster import image_grid

LIST, SHEET = "picks.txt", "picks.png"
SHOWN = 100  # of the contact sheet
COLUMNS, CELL_PX = 10, 140


def check_output(folder: Path, pool: Path) -> None:
    """Raise SelectError for a folder that holds annotations already, or lies among the images."""
    if folder.exists() and not folder.is_dir():
        raise SelectError(f"{folder}: it is a file, not a folder")
    if (folder / ANNOTATION).exists():
        raise SelectError(f"{folder}: it holds {ANNOTATION} already; name a new folder with --output")
    if folder.resolve().is_relative_to(pool.resolve()):
        raise SelectError(f"{folder}: it lies in the folder of the unlabelled images; name one elsewhere with --output")


def write_picks(root: Path, files: Sequence[str], folder: Path, class_names: Sequence[str], max_pixels: int) -> Outcome:
    """Write the picked files, paths below `root` in the order of the pick; return what was left out.

    The images are linked or copied below the folder. annotation.json comes last: with it all is there. Raises OSError,
    SelectError where no image is left.
    """
    outcome = Outcome()
    records = list(extract_images(root, folder, files, 0, outcome))
    if not records:
        raise SelectError(f"{root}: none of the picked images can be taken along: {outcome.left_out[0][1]}")
    taken = [record["image_file"] for record in records]
    write_atomic(folder / LIST, "".join(f"{file}\n" for file in taken))
    _write_sheet(folder, taken[:SHOWN], max_pixels)
    write_annotations(folder, records, class_names)
    return outcome


def _write_sheet(folder: Path, files: Sequence[str], max_pixels: int) -> None:
    captions = [f"{number}\n{Path(file).name}" for number, file in enumerate(files, 1)]
    images = [_pixels(folder / file, max_pixels) for file in files]
    sheet = Image.fromarray(image_grid(images, captions, COLUMNS, cell_px=CELL_PX))
    with writing(folder / SHEET), atomic_path(folder / SHEET) as temporary:
        sheet.save(temporary, "PNG", optimize=True)


def _pixels(path: Path, max_pixels: int) -> np.ndarray:
    image = decode(path, 3, max_pixels)
    image.thumbnail((2 * CELL_PX, 2 * CELL_PX))
    return np.asarray(image)
