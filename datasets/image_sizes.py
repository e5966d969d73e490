"""The sizes of annotated images: each is decoded once, and what cannot be read is left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from data_loader.decoding import MAX_PIXELS, TURNED, decode, image_size
from data_loader.errors import ImageError
from datasets.images import THREADS
from datasets.objects import ImageObject, set_upright


class ImageSize(NamedTuple):
    """(width, height) as shown and as stored, and the EXIF orientation; or why the image cannot be read."""

    shown: tuple[int, int] = (0, 0)
    stored: tuple[int, int] = (0, 0)
    orientation: int = 1
    problem: str = ""


def decoded_sizes(paths: Sequence[Path]) -> Iterator[ImageSize]:
    """Yield the sizes of images, in order."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(_size_of, paths)


def upright_objects(objects: Sequence[ImageObject], said: tuple[int, int], size: ImageSize) -> list[ImageObject] | str:
    """Return objects on the pixels of the image as shown; a sentence where it is another image than annotated.

    `said` is the (width, height) of the annotation, (0, 0) where it names none.
    """
    if size.problem:
        return size.problem
    if all(said) and said not in (size.shown, size.stored):
        return f"its annotation is of {said[0]}x{said[1]}, the image is {size.shown[0]}x{size.shown[1]}"
    if said == size.stored != size.shown and size.orientation in TURNED:
        return set_upright(objects, size.orientation, size.stored)
    return list(objects)


def _size_of(path: Path) -> ImageSize:
    try:
        shown = decode(str(path)).size
        _, stored, orientation = image_size(str(path), MAX_PIXELS)
    except (ImageError, OSError) as error:
        return ImageSize(problem=str(error))
    return ImageSize(shown, stored, orientation)
