"""Copies of the images: sorted into a folder per class, or with their prediction drawn in."""

from __future__ import annotations

import filecmp
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from PIL import Image

from common.atomic_io import ResultsError, atomic_path, writing
from data_loader.preprocess import ImageError, Preprocess
from deploy.inference.geo_images import GeoImage, opened_by_gdal, write_polygons
from deploy.inference.mask_prediction import MaskPrediction, file_lookup
from deploy.inference.prediction import Prediction
from deploy.inference.tiled_boxes import TiledBoxes
from deploy.inference.tiles import TiledPrediction
from visualization.masks import MOST_SIDE_PX

JPEG_QUALITY = 92
MAX_NAME_BYTES = 255  # of a file's name, on nearly all file systems
MAX_FOLDER_NAME = 80  # characters; 240 bytes where each takes three, and file systems allow 255
_NOT_IN_NAMES = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*]')  # what Windows refuses, and / with it
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)  # devices on Windows


class SortedCopies:
    """Copies images to FOLDER/<class>/<path below the image folder>; those with an error are left out.

    Nothing is lost: where another image already has the name, the copy becomes name_2, and nothing that lies in the
    folder is ever removed, an earlier run's copy under another class neither.
    """

    def __init__(self, folder: Path, class_names: Sequence[str]) -> None:
        self._folder = folder
        self._class_folders = dict(zip(class_names, folder_names(class_names), strict=True)) | {"": ""}

    def add(self, prediction: Prediction, relative: str) -> None:
        """Copy the image of a prediction. Raises ResultsError, ImageError."""
        if prediction.error:
            return
        source = Path(prediction.file)
        target = self._folder / self._class_folders[prediction.group] / relative
        with writing(target), reading_image(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            target = _free_name(source, target)
            if not target.exists():  # else it is this very image, copied before
                with atomic_path(target, durable=False) as temporary:
                    shutil.copyfile(source, temporary)


class MaskCopies:
    """Writes FOLDER/<path below the image folder>.mask.png, the classes of the pixels, and .overlay.jpg to look at.

    Of a calibrated net .set_aside.png has the pixels whose class is not accepted, white on black.
    Of a pair the overlay shows the later image. Beside the mask of a georeferenced image the areas of at least
    `polygon_pixels` are written as .geojson, where that is given.
    """

    def __init__(self, folder: Path, preprocess: Preprocess, polygon_pixels: int | None = None) -> None:
        self._folder, self._preprocess, self._polygon_pixels = folder, preprocess, polygon_pixels

    def add(self, prediction: Prediction, relative: str) -> None:
        """Write the files of a prediction, if it has a mask. Raises ResultsError, ImageError."""
        if prediction.error:
            return
        assert isinstance(prediction, MaskPrediction)
        with ExitStack() as opened:
            if isinstance(prediction, TiledPrediction):
                geo = prediction.geo
            else:
                geo = _georeferenced(prediction, self._preprocess, opened)
            if geo is not None:
                self._add_geo(prediction, geo, relative)
            else:
                mask = prediction.image()
                save_copy(self._folder, relative, ".mask.png", lambda path: mask.save(path, "PNG"))
        if prediction.accept is not None:
            aside = Image.fromarray(prediction.set_aside)
            save_copy(self._folder, relative, ".set_aside.png", lambda path: aside.save(path, "PNG"))
        save_jpeg(self._folder, relative, ".overlay.jpg", annotated(prediction, self._preprocess))

    def _add_geo(self, prediction: MaskPrediction, geo: GeoImage, relative: str) -> None:
        """Write the mask as a GeoTIFF, and its areas as GeoJSON where that was asked for."""
        classes, lookup = prediction.classes, file_lookup(prediction.classes)
        written = save_copy(
            self._folder, relative, ".mask.tif", lambda path: geo.write_mask(path, prediction.rows, classes, lookup)
        )
        least = self._polygon_pixels
        if least is not None and geo.is_georeferenced:
            save_copy(
                self._folder, relative, ".geojson", lambda path: write_polygons(written, path, classes, lookup, least)
            )


class AnnotatedCopies:
    """Writes FOLDER/<path below the image folder>.answer.jpg: the image with its prediction, as `annotate` draws it."""

    def __init__(self, folder: Path, preprocess: Preprocess) -> None:
        self._folder = folder
        self._preprocess = preprocess

    def add(self, prediction: Prediction, relative: str) -> None:
        """Draw the image of a prediction, if it has one. Raises ResultsError, ImageError."""
        if prediction.error:
            return
        save_jpeg(self._folder, relative, ".answer.jpg", annotated(prediction, self._preprocess))


def annotated(prediction: Prediction, preprocess: Preprocess) -> Image.Image:
    """Return a prediction's image with the prediction in it: of a file that was read by rows a small copy.

    Of a pair it is the later image. Raises ImageError.
    """
    geo = prediction.geo if isinstance(prediction, (TiledPrediction, TiledBoxes)) else None
    image = geo.overview(MOST_SIDE_PX) if geo else preprocess.show(prediction.second_file or prediction.file)
    return prediction.annotate(image)


def save_jpeg(folder: Path, relative: str, ending: str, image: Image.Image) -> None:
    """Write an image to FOLDER/RELATIVE + ending, as `save_copy` does. Raises ResultsError."""
    save_copy(folder, relative, ending, lambda path: image.save(path, "JPEG", quality=JPEG_QUALITY))


def save_copy(folder: Path, relative: str, ending: str, write: Callable[[Path], object]) -> Path:
    """Write FOLDER/RELATIVE + ending and the folders above it; return its path. Raises ResultsError.

    A name that would be too long for a file system is cut; a digest keeps it unique.
    """
    target = folder / f"{relative}{ending}"
    name = os.fsencode(target.name)
    if len(name) > MAX_NAME_BYTES:
        ending = f"~{hashlib.sha256(name).hexdigest()[:8]}{ending}"
        target = target.with_name(name[: MAX_NAME_BYTES - len(ending)].decode(errors="ignore") + ending)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target, durable=False) as temporary:
            write(temporary)
    return target


def _georeferenced(prediction: MaskPrediction, preprocess: Preprocess, opened: ExitStack) -> GeoImage | None:
    """Return the file of a mask where it is a georeferenced TIFF that rasterio opens, until `opened` is closed."""
    with suppress(ImageError):
        if (geo := opened_by_gdal(prediction.file, preprocess)) is not None:
            opened.callback(geo.close)
            return geo if geo.is_georeferenced and geo.size == prediction.size else None
    return None


@contextmanager
def reading_image(source: Path) -> Iterator[None]:
    """Turn an OSError of the image itself, as of one that has gone, into an ImageError."""
    try:
        yield
    except OSError as error:
        if str(error.filename) != str(source) or error.filename2 is not None:  # a copy's errors name both files
            raise
        raise ImageError(f"it cannot be read any more: {error.strerror}") from error


def folder_names(class_names: Sequence[str]) -> list[str]:
    """Return a folder name per class that every file system takes, no two alike even where case does not count."""
    names: list[str] = []
    taken: set[str] = set()
    for label, class_name in enumerate(class_names):
        name = _NOT_IN_NAMES.sub("_", class_name).strip(" .")[:MAX_FOLDER_NAME].strip(" .")
        if not name or _RESERVED.match(name):
            name = f"class_{label}_{name}".rstrip("_")
        while name.casefold() in taken:
            name = f"{name}_{label}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _free_name(source: Path, target: Path) -> Path:
    """Return the target, or the first of name_2, name_3, ... that is free or holds this very image."""
    number = 1
    candidate = target
    while candidate.exists() and not (candidate.is_file() and _is_copy(source, candidate)):
        number += 1
        candidate = target.with_name(f"{target.stem}_{number}{target.suffix}")
    return candidate


def _is_copy(source: Path, other: Path) -> bool:
    """Return whether the other file holds the same bytes and is not the source itself under another path."""
    if other.samefile(source):
        raise ResultsError(f"{other}: it is the image {source} itself; choose another folder for the copies")
    return filecmp.cmp(source, other, shallow=False)
