"""Reads every image of a training once, in parallel: what is odd about it, its size, and what it is compared by."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import signal
import tempfile
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image
from tqdm import tqdm

from common.errors import UserError
from data_loader.preprocess import BROKEN_EXIF, FORMATS, ImageError, Preprocess

SMALL_PX = 16  # side of the small copies that images are compared by
CHUNK = 32  # images that a process reads before it is heard of
FEW = 256  # images that are read faster than processes start
LONG = 4.0  # longer side to shorter, from which an image is told
ENLARGED = 2.0  # how far an image may be enlarged to the input before it is told
ODDITIES = {  # of an image that can be read, and what becomes of it; in the order of the bits of `Images.odd`
    "CMYK": "converted to RGB",
    "Lab, YCbCr or another colour space": "converted to RGB",
    "16 bits or floating point": "scaled to 8 bits",
    "1 bit": "black and white become 0 and 255",
    "transparent": "laid on white",
    "several frames": "the first one counts",
    "turned by EXIF": "set upright",
    "another format than its ending": "read all the same",
    "very long": f"one side is over {LONG:g} times the other: see resize",
    "much smaller than the input": f"enlarged over {ENLARGED:g} times",
    "one colour": "nothing to learn from",
}
_BITS = {name: 1 << bit for bit, name in enumerate(ODDITIES)}
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "MPO": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}


class ScanError(UserError):
    """The images could not all be looked at; the message says why."""


@dataclass
class ScannedImages:
    """What is known of M images, the first `num_train` of them training's; a row that cannot be read is in `errors`.

    `sizes` (M, 2): width and height, upright. `odd` (M,): bits in the order of ODDITIES. `digests` (M, 2): 128 bits of
    the sha256 of the decoded pixels. `hashes` (M,): see `difference_hash`. `small` (M, S, S, 3) uint8 lies in a
    temporary file, so that a million images take memory only while they are compared. `sums` (2, C): of the fitted
    training pixels, 0 to 1, and of their squares; `num_pixels` of them.
    """

    num_train: int
    sizes: np.ndarray
    odd: np.ndarray
    digests: np.ndarray
    hashes: np.ndarray
    small: np.ndarray
    sums: np.ndarray
    num_pixels: int = 0
    errors: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_train: int, num_all: int, channels: int) -> ScannedImages:
        """Make room for so many images."""
        shape = (num_all, SMALL_PX, SMALL_PX, 3)
        with tempfile.TemporaryFile() as file:  # which the mapping outlives
            small = np.memmap(file, np.uint8, "w+", shape=shape)
        return cls(
            num_train,
            np.zeros((num_all, 2), np.int32),
            np.zeros(num_all, np.uint16),
            np.zeros((num_all, 2), np.uint64),
            np.zeros(num_all, np.uint64),
            small,
            np.zeros((2, channels)),
        )

    def has(self, oddity: str) -> np.ndarray:
        """Give the rows of the images with an oddity."""
        return np.flatnonzero(self.odd & _BITS[oddity])

    def readable(self) -> np.ndarray:
        """Say of each row whether its image can be read, (M,) bool."""
        flags = np.ones(len(self.odd), bool)
        flags[list(self.errors)] = False
        return flags

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Give both per channel, of the fitted training images, values 0 to 1."""
        mean = self.sums[0] / max(1, self.num_pixels)
        return mean.tolist(), np.sqrt(np.maximum(self.sums[1] / max(1, self.num_pixels) - mean**2, 0)).tolist()


@dataclass(frozen=True)
class Look:
    """What one look at an image gives; see `Images`. `sums` (2, C) of `num_pixels` fitted pixels."""

    size: tuple[int, int]
    odd: int
    digest: bytes
    hash: int
    small: np.ndarray
    sums: np.ndarray
    num_pixels: int


def scan(paths: Sequence[str], num_train: int, preprocess: Preprocess, workers: int) -> ScannedImages:
    """Read all images, the first `num_train` of them training's, on so many processes (0: on this one).

    Raises ScanError where a process dies.
    """
    images = ScannedImages.empty(num_train, len(paths), preprocess.channels)
    chunks = [range(first, min(first + CHUNK, len(paths))) for first in range(0, len(paths), CHUNK)]
    with tqdm(total=len(paths), desc="reading images", unit="", leave=False, disable=None, dynamic_ncols=True) as bar:
        for chunk, looks in _looks(paths, chunks, preprocess, workers):
            for row, look in zip(chunk, looks, strict=True):
                _enter(images, row, look)
            bar.update(len(chunk))
    return images


def look_at(path: str, preprocess: Preprocess) -> Look:
    """Read one image as the training does. Raises ImageError."""
    image = preprocess.decode(path)
    fitted = preprocess.fit(image).reshape(-1, preprocess.channels) / 255.0  # (H W, C) float64
    small = image.convert("RGB").resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    odd = _oddities(path) | _shape_oddities(image.size, preprocess)
    if all(low == high for low, high in np.reshape(image.getextrema(), (-1, 2))):
        odd |= _BITS["one colour"]
    return Look(
        image.size,
        odd,
        digest.digest()[:16],
        difference_hash(image),
        np.asarray(small),
        np.stack([fitted.sum(0), (fitted**2).sum(0)]),
        len(fitted),
    )


def difference_hash(image: Image.Image) -> int:
    """Give 64 bits: of an 8 x 8 grid, whether each cell is brighter than its left neighbour (N. Krawetz's dHash, 2013).

    They hardly change when an image is resized or compressed again, and fall apart when it is cropped or mirrored.
    """
    grey = np.asarray(image.convert("RGB").resize((9, 8), Image.Resampling.BOX).convert("L"), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "little")


def enlargement(sizes: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Give how far each image of size (width, height) (M, 2) is enlarged to the input, (M,); below 1: reduced."""
    scales = np.array([preprocess.width, preprocess.height]) / np.maximum(sizes, 1)  # (M, 2)
    result: np.ndarray = scales.min(1) if preprocess.resize == "letterbox" else scales.max(1)
    return result


def _enter(images: ScannedImages, row: int, look: Look | str) -> None:
    if isinstance(look, str):
        images.errors[row] = look
        return
    images.sizes[row] = look.size
    images.odd[row] = look.odd
    images.digests[row] = np.frombuffer(look.digest, np.uint64)
    images.hashes[row] = look.hash
    images.small[row] = look.small
    if row < images.num_train:
        images.sums += look.sums
        images.num_pixels += look.num_pixels


def _looks(
    paths: Sequence[str], chunks: Iterable[range], preprocess: Preprocess, workers: int
) -> Iterator[tuple[range, list[Look | str]]]:
    """Give each chunk's looks in order; no more chunks are under way than keep the processes busy."""
    if not workers or len(paths) <= FEW:
        for chunk in chunks:
            yield chunk, _look_at_all([paths[row] for row in chunk], preprocess)
        return
    waiting: deque[tuple[range, Future[list[Look | str]]]] = deque()
    remaining = iter(chunks)
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(workers, multiprocessing.get_context(kind), _leave_interrupts) as pool:
        try:
            for chunk in itertools.islice(remaining, 4 * workers):
                waiting.append((chunk, pool.submit(_look_at_all, [paths[row] for row in chunk], preprocess)))
            while waiting:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
                for further in itertools.islice(remaining, 1):
                    waiting.append((further, pool.submit(_look_at_all, [paths[row] for row in further], preprocess)))
        except BrokenProcessPool as error:
            first, last = paths[chunk[0]], paths[chunk[-1]]
            advice = "the memory was too small, or a decoder crashed; --workers 0 reads them one by one"
            raise ScanError(f"a process died among the images from {first} to {last}: {advice}") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # of an interrupted scan nobody wants the rest


def _leave_interrupts() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _look_at_all(paths: Sequence[str], preprocess: Preprocess) -> list[Look | str]:
    looks: list[Look | str] = []
    for path in paths:
        try:
            looks.append(look_at(path, preprocess))
        except ImageError as error:
            looks.append(str(error))
    return looks


def _oddities(path: str) -> int:
    """Find what is odd about the file of an image that can be decoded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd metadata
        with Image.open(path, formats=FORMATS) as image:
            mode, name = image.mode, image.format or ""
            found = {
                "CMYK": mode == "CMYK",
                "Lab, YCbCr or another colour space": mode in ("LAB", "YCbCr", "HSV"),
                "16 bits or floating point": mode.startswith(("I", "F")),
                "1 bit": mode == "1",
                "transparent": mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info,
                "another format than its ending": Path(path).suffix.lower() not in _ENDINGS.get(name, ()),
            }
            try:
                found["several frames"] = getattr(image, "is_animated", False)
            except (*BROKEN_EXIF, EOFError):
                found["several frames"] = False  # what stands behind the first frame is damaged, and of no use anyway
            try:
                found["turned by EXIF"] = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            except BROKEN_EXIF:
                found["turned by EXIF"] = False
    return sum(_BITS[oddity] for oddity, is_there in found.items() if is_there)


def _shape_oddities(size: tuple[int, int], preprocess: Preprocess) -> int:
    odd = _BITS["very long"] if max(size) > LONG * min(size) else 0
    enlarged: Any = enlargement(np.array([size]), preprocess)[0]
    return odd | (_BITS["much smaller than the input"] if enlarged > ENLARGED else 0)
