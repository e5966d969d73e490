"""Folders of images -> standard annotations."""

from __future__ import annotations

import io
import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from common.atomic_io import write_atomic
from common.formatting import is_utf8
from data_loader.decoding import decode
from data_loader.errors import ImageError
from data_loader.image_files import IMAGE_SUFFIXES, LeftOut, iter_images, natural_sorted, no_images
from data_loader.samples import current_folder
from datasets.errors import DatasetError
from datasets.outcome import Outcome
from datasets.pictures import place_file, refuse_other
from datasets.records import Record

LEAST_SIDE_PX = 16  # of --max-size
JPEG_QUALITY = 95
JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")
THREADS = min(8, os.cpu_count() or 1)


@dataclass(frozen=True)
class ImageChoice:
    """Which images of a folder are taken: by the beginning and end of the name, by ending, at random, and how many."""

    prefix: str = ""
    suffix: str = ""
    endings: tuple[str, ...] = ()
    shuffle: bool = False
    num: int = 0
    seed: int = 0


def parse_endings(text: str) -> tuple[str, ...]:
    """Return the endings of `jpg,png`. Raises DatasetError for one that no decoder reads."""
    endings = tuple("." + part.strip().lower().removeprefix(".") for part in text.split(",")) if text else ()
    for ending in endings:
        if ending not in IMAGE_SUFFIXES:
            raise DatasetError(f'--ext: "{ending[1:]}" is no known ending; known are {" ".join(IMAGE_SUFFIXES)}')
    return endings


def check_folders(source: Path, target: Path) -> None:
    """Raise DatasetError for a source that is no folder, and a target that is the source's folder or lies in it."""
    if not source.is_dir():
        what = "it is a file, not a folder" if source.exists() else f"it is not there{current_folder(str(source))}"
        raise DatasetError(f"--src {source}: {what}")
    if target.resolve() == source.resolve() or source.resolve() in target.resolve().parents:
        raise DatasetError(f"--tgt {target}: it is the source's folder, or lies in it; name a folder elsewhere")


def check_side(side_px: int) -> None:
    """Raise DatasetError for a longest side that is neither 0 nor large enough."""
    if side_px and side_px < LEAST_SIDE_PX:
        raise DatasetError(f"--max-size must be 0 or at least {LEAST_SIDE_PX}, got {side_px}")


def choose_images(source: Path, choice: ImageChoice) -> list[str]:
    """Return the chosen images' paths below a folder, in natural order unless shuffled. Raises DatasetError."""
    left_out = LeftOut()
    paths = [Path(path).relative_to(source).as_posix() for path in iter_images(source, left_out=left_out)]
    if not paths:
        raise DatasetError(no_images(source, left_out))
    left_out.print_note(source)
    chosen = [path for path in paths if _is_chosen(Path(path), choice)]
    if not chosen:
        raise DatasetError(f"--src {source}: none of its {len(paths)} images is left after the filters")
    if choice.shuffle:
        random.Random(choice.seed).shuffle(chosen)
    return chosen[: choice.num] if choice.num else chosen


def extract_images(
    source: Path, target: Path, paths: Sequence[str], side_px: int, outcome: Outcome
) -> Iterator[Record]:
    """Yield a record for each image, decoded once, and its file put below the target; what cannot be read is left out.

    With `side_px` the longer side is shrunk to it, upright, as JPEG or PNG; else a file's bytes stay as they are.
    """
    names = target_names(paths, is_converted=bool(side_px))

    def extract(path: str) -> Record | str:
        if not is_utf8(path):
            return "its name is not UTF-8; rename it"
        try:
            width, height = _place(source / path, target / names[path], side_px, outcome.overwrite)
        except (ImageError, OSError) as error:
            return getattr(error, "strerror", None) or str(error)
        return {"image_file": names[path], "width": width, "height": height, "tag": Path(path).parent.as_posix()}

    with ThreadPoolExecutor(THREADS) as pool:
        for path, made in zip(paths, pool.map(extract, paths), strict=True):
            if isinstance(made, str):
                outcome.leave_out(path, made)
            else:
                yield {key: item for key, item in made.items() if item != "."}


def label_by_folder(records: Sequence[Record], paths: Sequence[str]) -> list[str]:
    """Give each record the class of its first folder; return the class names in natural order."""
    names = natural_sorted({folder for path in paths if "/" in path and is_utf8(folder := path.split("/")[0])})
    if not names:
        raise DatasetError("--labels folders: no image lies in a folder; the first folder is the class")
    for record in records:
        folder, slash, _ = record["image_file"].partition("/")
        if slash:
            record.update(image_label=names.index(folder), image_label_name=folder)
    return names


def target_names(paths: Sequence[str], *, is_converted: bool) -> dict[str, str]:
    """Return each image's new path. Two that would be one both keep their old ending: a.tif.png, a.png.png."""
    if not is_converted:
        return {path: path for path in paths}
    made = {path: _converted(path) for path in paths}
    counts = Counter(made.values())
    taken: dict[str, str] = {}  # paths by their names; first those that stay as they are
    for path in sorted(paths, key=lambda path: made[path] != path or counts[path] > 1):
        name = made[path] if counts[made[path]] == 1 else path + Path(made[path]).suffix
        while name in taken:  # a.tif beside a.png and a.tif.png
            name += Path(name).suffix
        taken[name] = path
    return {path: name for name, path in taken.items()}


def _converted(path: str) -> str:
    suffix = Path(path).suffix
    return path if suffix.lower() in (*JPEG_SUFFIXES, ".png") else path.removesuffix(suffix) + ".png"


def _is_chosen(path: Path, choice: ImageChoice) -> bool:
    is_named = path.stem.startswith(choice.prefix) and path.stem.endswith(choice.suffix)
    return is_named and (not choice.endings or path.suffix.lower() in choice.endings)


def _place(source: Path, target: Path, side_px: int, overwrite: bool) -> tuple[int, int]:
    """Put an image below the target; return its width and height as shown. Raises ImageError, OSError."""
    image = decode(str(source))
    is_jpeg = target.suffix.lower() in JPEG_SUFFIXES
    if not side_px or (max(image.size) <= side_px and source.suffix.lower() == target.suffix.lower()):
        place_file(source, target, may_link=False, overwrite=overwrite)
        return image.size
    save_image(shrunk(image, side_px), target, is_jpeg=is_jpeg, overwrite=overwrite)
    return shrunk_size(image.size, side_px)


def shrunk_size(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """Return a size whose longer side is at most `side_px`; 0 leaves it as it is."""
    scale = min(1.0, side_px / max(size)) if side_px else 1.0
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def shrunk(image: Image.Image, side_px: int) -> Image.Image:
    """Return an image whose longer side is at most `side_px`."""
    size = shrunk_size(image.size, side_px)
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


def save_image(image: Image.Image, target: Path, *, is_jpeg: bool, overwrite: bool) -> None:
    """Write a JPEG or PNG, complete or not at all. Raises OSError, FileExistsError where another file is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = io.BytesIO()
    image.save(made, "JPEG", quality=JPEG_QUALITY) if is_jpeg else image.save(made, "PNG")
    if target.exists() and target.read_bytes() != made.getvalue():
        refuse_other(target, overwrite)
    write_atomic(target, made.getvalue(), durable=False)
