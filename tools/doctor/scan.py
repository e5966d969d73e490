"""Reads every image of a training once, in parallel: its oddities, its size, and the values that it is compared by."""

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
from data_loader.band_image import Decoded
from data_loader.colour_profiles import CONVERTED, UNUSABLE, profile_use
from data_loader.decode_guard import GUARD, guarded
from data_loader.decoding import BROKEN_EXIF, open_image, stream_of
from data_loader.packs import file_of
from data_loader.preprocess import ImageError, Preprocess
from data_loader.tiff import has_mask
from data_loader.transparency import with_stored_alpha

SMALL_PX = 16  # side of the small copies that images are compared by
CHUNK = 32  # images that a process reads at a time
FEW = 256  # images that are read faster than processes start
LONG = 4.0  # ratio of the longer side to the shorter from which an image is reported
DARK = 16  # of 255: what 12 bits come to in a file of 16
ENLARGED = 2.0  # enlargement to the input from which an image is reported
ODDITIES = {  # of a readable image, and how it is read; in the order of the bits of `ScannedImages.odd`
    "CMYK": "converted to RGB",
    "Lab, YCbCr or another colour space": "converted to RGB",
    "another colour space than sRGB": "by its ICC profile; icc_profiles says whether it is converted",
    "a colour profile that cannot be used": "ignored",
    "16 bits or floating point": "scaled to 8 bits by the range of their bits (docs/image-formats.md)",
    "nearly black": "over 8 bits, but no value above a sixteenth of their range: scaled by it, little is left; "
    "multiply them, or write MaxSampleValue (TIFF: 1023, 4095 or 16383)",
    "1 bit": "black and white become 0 and 255",
    "transparent": "laid on white",
    "alpha that is no mask": "a TIFF's fourth band, hardly anywhere 0 or 255; left out where the file is "
    "georeferenced, else laid on white: if it is near infrared, its ExtraSamples should be 0",
    "several frames": "the first one counts",
    "turned by EXIF": "set upright",
    "another format than its ending": "read nevertheless",
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
    "JPEG2000": (".jp2", ".j2k"),
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}


class ScanError(UserError):
    """Images that cannot be scanned; the message is one sentence for the user."""


@dataclass
class ScannedImages:
    """The scan of M images, the first `num_train` of them training's; a row that cannot be read is in `errors`.

    `sizes` (M, 2): width and height, upright. `odd` (M,): bits in the order of ODDITIES. `digests` (M, 2): 128 bits of
    the sha256 of the decoded pixels. `hashes` (M,): see `difference_hash`. `small` (M, S, S, 3) uint8 is mapped from a
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
        """Allocate the arrays of `num_all` images."""
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
        """Return the rows of the images with an oddity."""
        return np.flatnonzero(self.odd & _BITS[oddity])

    def readable(self) -> np.ndarray:
        """Return for each row whether its image can be read, (M,) bool."""
        flags = np.ones(len(self.odd), bool)
        flags[list(self.errors)] = False
        return flags

    def mean_and_std(self) -> tuple[list[float], list[float]]:
        """Return both per channel, of the fitted training images, values 0 to 1."""
        mean = self.sums[0] / max(1, self.num_pixels)
        return mean.tolist(), np.sqrt(np.maximum(self.sums[1] / max(1, self.num_pixels) - mean**2, 0)).tolist()


@dataclass(frozen=True)
class ImageScan:
    """The scan of one image; see `ScannedImages`. `sums` (2, C) of `num_pixels` fitted pixels."""

    size: tuple[int, int]
    odd: int
    digest: bytes
    hash: int
    small: np.ndarray
    sums: np.ndarray
    num_pixels: int


def scan(paths: Sequence[str], num_train: int, preprocess: Preprocess, workers: int) -> ScannedImages:
    """Read all images, the first `num_train` of them training's, in `workers` processes (0: in this one).

    Raises ScanError where a process dies.
    """
    images = ScannedImages.empty(num_train, len(paths), preprocess.channels)
    chunks = [range(first, min(first + CHUNK, len(paths))) for first in range(0, len(paths), CHUNK)]
    with tqdm(total=len(paths), desc="reading images", unit="", leave=False, disable=None, dynamic_ncols=True) as bar:
        for chunk, scans in _scan_chunks(paths, chunks, preprocess, workers):
            for row, scanned in zip(chunk, scans, strict=True):
                _store(images, row, scanned)
            bar.update(len(chunk))
    return images


@guarded
def scan_image(path: str, preprocess: Preprocess) -> ImageScan:
    """Read one image as the training does. Raises ImageError."""
    image = preprocess.decode(path)
    fitted = preprocess.fit(image).reshape(-1, preprocess.channels) / 255.0  # (H, W, C) to (H W, C) float64
    small = image.convert("RGB").resize((SMALL_PX, SMALL_PX), Image.Resampling.BOX)
    digest = hashlib.sha256(f"{image.mode} {image.size} ".encode())
    digest.update(image.tobytes())
    odd = _shape_oddities(image.size, preprocess)
    if not preprocess.has_bands:  # which have no colours
        odd |= _oddities(path, preprocess.max_pixels)
    extrema = np.reshape(np.asarray(image.getextrema()), (-1, 2))
    if (extrema[:, 0] == extrema[:, 1]).all():
        odd |= _BITS["one colour"]
    elif odd & _BITS["16 bits or floating point"] and extrema.max() <= DARK:
        odd |= _BITS["nearly black"]
    return ImageScan(
        image.size,
        odd,
        digest.digest()[:16],
        difference_hash(image),
        np.asarray(small),
        np.stack([fitted.sum(0), (fitted**2).sum(0)]),
        len(fitted),
    )


def difference_hash(image: Decoded) -> int:
    """Return 64 bits: in an 8 x 8 grid, whether each cell is brighter than its left neighbour (dHash, N. Krawetz 2013).

    They hardly change when an image is resized or compressed again, and completely when it is cropped or mirrored.
    """
    grey = np.asarray(image.convert("RGB").resize((9, 8), Image.Resampling.BOX).convert("L"), np.int16)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "little")


def enlargement(sizes: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return the factor by which each image, (M, 2) of width and height, is enlarged to the input, (M,)."""
    scales = np.array([preprocess.width, preprocess.height]) / np.maximum(sizes, 1)  # (M, 2)
    result: np.ndarray = scales.min(1) if preprocess.resize == "letterbox" else scales.max(1)
    return result


def _store(images: ScannedImages, row: int, scanned: ImageScan | str) -> None:
    if isinstance(scanned, str):
        images.errors[row] = scanned
        return
    images.sizes[row] = scanned.size
    images.odd[row] = scanned.odd
    images.digests[row] = np.frombuffer(scanned.digest, np.uint64)
    images.hashes[row] = scanned.hash
    images.small[row] = scanned.small
    if row < images.num_train:
        images.sums += scanned.sums
        images.num_pixels += scanned.num_pixels


def _scan_chunks(
    paths: Sequence[str], chunks: Iterable[range], preprocess: Preprocess, workers: int
) -> Iterator[tuple[range, list[ImageScan | str]]]:
    """Yield each chunk's scans in order; only as many chunks are submitted ahead as keep the processes busy."""
    if not workers or len(paths) <= FEW:
        for chunk in chunks:
            yield chunk, _scan_chunk([paths[row] for row in chunk], preprocess)
        return
    waiting: deque[tuple[range, Future[list[ImageScan | str]]]] = deque()
    remaining = iter(chunks)
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context, settings = multiprocessing.get_context(kind), (GUARD.timeout_s,)
    with ProcessPoolExecutor(workers, context, _start_process, settings) as pool:
        try:
            for chunk in itertools.islice(remaining, 4 * workers):
                waiting.append((chunk, pool.submit(_scan_chunk, [paths[row] for row in chunk], preprocess)))
            while waiting:
                chunk, future = waiting.popleft()
                yield chunk, future.result()
                for further in itertools.islice(remaining, 1):
                    waiting.append((further, pool.submit(_scan_chunk, [paths[row] for row in further], preprocess)))
        except BrokenProcessPool as error:
            first, last = paths[chunk[0]], paths[chunk[-1]]
            advice = "too little memory, or a decoder crashed or did not end; --workers 0 reads them one by one"
            raise ScanError(f"a process died among the images from {first} to {last}: {advice}") from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # the rest of an interrupted scan is not needed


def _start_process(decode_timeout_s: float) -> None:
    """Ignore Ctrl-C, which every process of the group gets: the main process handles it."""
    GUARD.timeout_s = decode_timeout_s
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _scan_chunk(paths: Sequence[str], preprocess: Preprocess) -> list[ImageScan | str]:
    scans: list[ImageScan | str] = []
    for path in paths:
        try:
            scans.append(scan_image(path, preprocess))
        except ImageError as error:
            scans.append(str(error))
    return scans


def _oddities(path: str, max_pixels: int) -> int:
    """Return the oddities of the file of a decodable image, as bits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unusual metadata
        with open_image(path, max_pixels) as image:
            mode, name = image.mode, image.format or ""
            if name in ("BMP", "DIB"):
                mode = with_stored_alpha(image, lambda: stream_of(path)).mode
            found = {
                "CMYK": mode == "CMYK",
                "Lab, YCbCr or another colour space": mode in ("LAB", "YCbCr", "HSV"),
                "another colour space than sRGB": profile_use(image) == CONVERTED,
                "a colour profile that cannot be used": profile_use(image) == UNUSABLE,
                "16 bits or floating point": _has_wide_values(image),
                "1 bit": mode == "1",
                "transparent": mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info,
                "alpha that is no mask": name == "TIFF" and not has_mask(image),
                "another format than its ending": Path(file_of(path)).suffix.lower() not in _ENDINGS.get(name, ()),
            }
            try:
                found["several frames"] = getattr(image, "is_animated", image.info.get("several_frames", False))
            except (*BROKEN_EXIF, EOFError):
                found["several frames"] = False  # the frames after the first are damaged, and not used anyway
            try:
                found["turned by EXIF"] = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
            except BROKEN_EXIF:
                found["turned by EXIF"] = False
    return sum(_BITS[oddity] for oddity, is_found in found.items() if is_found)


def _has_wide_values(image: Image.Image) -> bool:
    """Return whether a file has more than 8 bits a value, or signed or floating-point values."""
    if image.format == "TIFF" or image.mode.startswith(("I", "F")):
        return "bits" in image.info or image.mode.startswith(("I", "F"))
    settings = [tile[3] for tile in getattr(image, "tile", ())]  # of a PNG "RGB;16B", of a PPM ("RGB", 65535)
    if image.format == "PPM":
        return any(isinstance(value, tuple) and value[-1] > 255 for value in settings)
    return image.format == "PNG" and any("16" in str(value) for value in settings)


def _shape_oddities(size: tuple[int, int], preprocess: Preprocess) -> int:
    odd = _BITS["very long"] if max(size) > LONG * min(size) else 0
    enlarged: Any = enlargement(np.array([size]), preprocess)[0]
    return odd | (_BITS["much smaller than the input"] if enlarged > ENLARGED else 0)
