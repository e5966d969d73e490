"""The target of segmentation and change detection: a label image, which lies in its image and moves with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data_loader.band_image import Decoded
from data_loader.bands import band_image_size
from data_loader.decoding import MAX_PIXELS, image_size
from data_loader.errors import ImageError
from data_loader.mask_classes import VOID, MaskClass, OtherClass
from data_loader.mask_folders import find_pairs
from data_loader.masks import fit_mask, read_mask, upright
from data_loader.packs import MASK, sibling_name
from data_loader.preprocess import Preprocess
from data_loader.samples import ListError, Sample, SampleList
from data_loader.targets import Target, TargetError, View

MOST_VOID = 0.2  # of a split's pixels that may be of no class
SHOWN = 5


class MaskFile(NamedTuple):
    """The files that a line names behind its image, and how the mask is to be turned (an EXIF orientation)."""

    path: str
    second: str = ""  # of a pair the later image
    orientation: int = 1


@dataclass(frozen=True)
class MaskScan:
    """What was found in one label image: pixels of each class (K,), of none, and the most frequent of these.

    `ignored` counts the pixels of known classes that do not count.
    """

    pixels: np.ndarray
    void: int
    unknown: tuple[tuple[str, int], ...]
    orientation: int = 1
    ignored: int = 0


@dataclass(frozen=True)
class MaskSamples(SampleList):
    """Images with their masks, which have been looked at: `pixels` of each class, `void` of none."""

    classes: tuple[MaskClass, ...] = field(kw_only=True)
    pixels: tuple[int, ...] = field(kw_only=True)
    void: int = field(kw_only=True)

    def class_counts(self) -> list[int]:
        """Return the number of pixels of each class."""
        return list(self.pixels)


class MaskTarget(Target):
    """Label images of `classes`: `path----mask` in a list, or folders images/ and labels/ matched by stem.

    Of pairs a line is `path----second image----mask`, and the folders are A/, B/ and labels/. A value is an image of
    mode "L" of class indices, VOID where there is none; a batch is uint8 (N, H, W).
    """

    noun = "mask"
    needs_scan = True

    def __init__(
        self,
        classes: Sequence[MaskClass],
        *,
        has_pairs: bool = False,
        max_pixels: int = MAX_PIXELS,
        others: Sequence[OtherClass] = (),
        has_bands: bool = False,
    ) -> None:
        self.classes, self.others, self.max_pixels = tuple(classes), tuple(others), max_pixels
        self.image_size = band_image_size if has_bands else image_size
        self.class_names = tuple(found.name for found in classes)
        self.has_pairs = has_pairs
        self.files = ("second image", "mask") if has_pairs else ("mask",)

    def parse(self, text: str, root: str) -> MaskFile:
        """Return a mask's path; `from_files` makes the target of a line."""
        return MaskFile(text)

    def from_files(self, paths: Sequence[str]) -> MaskFile:
        """Return the target of a line from the paths behind its image."""
        return MaskFile(paths[-1], paths[0] if self.has_pairs else "")

    record_keys = ("semantic_file",)

    def from_record(self, features: Mapping[str, Any], category: Sequence[str], name: str) -> MaskFile:
        """Return the label image in a packed record. Raises TargetError."""
        file = features["semantic_file"][0].decode("utf-8", "replace") if features.get("semantic_file") else ""
        if self.has_pairs or not file:
            raise TargetError("a pack has no pairs of images" if self.has_pairs else "it has no semantic_file")
        return MaskFile(sibling_name(name, file, MASK))

    def read_folder(self, root: str) -> SampleList:
        """Return the samples of a folder with images/ and labels/, or A/, B/ and labels/. Raises ListError."""
        rows, left_out = find_pairs(root, has_pairs=self.has_pairs)
        samples = tuple(Sample(first, self.from_files(others)) for first, *others in rows)
        return SampleList(samples, self.class_names, root, root, left_out=left_out)

    def describe(self, target: MaskFile | Sequence[str]) -> str:
        """Return "mask labels/1.png"."""
        return f"mask {target.path if isinstance(target, MaskFile) else target[-1]}"

    def image_paths(self, sample: Sample) -> tuple[str, ...]:
        """Return the image, or both of a pair."""
        second: str = sample.target.second
        return (sample.path, second) if second else (sample.path,)

    def load(self, sample: Sample) -> Image.Image:
        """Return the class indices, mode "L". Raises ImageError."""
        file: MaskFile = sample.target
        try:
            mask = read_mask(file.path, self.classes, self.max_pixels, self.others)
            return upright(mask.indices, file.orientation)
        except ImageError as error:
            raise ImageError(f"its mask {file.path}: {error}") from error

    def files_of(self, sample: Sample) -> tuple[str, ...]:
        """Return the images and the label image."""
        return (*self.image_paths(sample), sample.target.path)

    cached_channels = 1

    def cache_settings(self) -> dict[str, object]:
        """Return the classes, from which the indices follow."""
        return {"classes": repr((self.classes, self.others))}

    def cached(self, preprocess: Preprocess, value: Image.Image) -> np.ndarray:
        """Return the fitted mask, uint8 (H, W, 1)."""
        return self.fit(preprocess, value)[:, :, None]

    def of_cached(self, preprocess: Preprocess, sample: Sample, channels: np.ndarray) -> Image.Image:
        """Return the fitted mask, mode "L"."""
        return Image.fromarray(channels[:, :, 0])

    def without(self, value: Image.Image, gaps: np.ndarray) -> Image.Image:
        """Return the mask with VOID where its images hold no data: ignored in loss and metrics."""
        return Image.fromarray(np.where(gaps, np.uint8(VOID), np.asarray(value)))

    def fit(self, preprocess: Preprocess, value: Image.Image) -> np.ndarray:
        """Return the mask as its image is fitted, uint8 (H, W)."""
        return fit_mask(preprocess, value)

    def apply_view(
        self, view: View, images: Sequence[Decoded], mirrored: bool, value: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a joint view: the images uint8 (H, W, C) and the mask uint8 (H, W), moved alike."""
        joint: Any = view
        pixels, mask = joint(images, value, mirrored)
        return pixels, mask

    # Before a training

    def scan(self, sample: Sample) -> MaskScan:
        """Read a label image, and compare its size with its images'. Raises ImageError."""
        sizes = []
        for path in self.image_paths(sample):
            try:
                sizes.append(self.image_size(path, self.max_pixels))
            except ImageError as error:
                raise ImageError(f"{path}: {error}" if path != sample.path else str(error)) from error
        (size, stored, orientation), *others = sizes
        if others and others[0][0] != size:
            first, second = _size_text(size), _size_text(others[0][0])
            raise ImageError(f"it is {first}, but the second image {sample.target.second} is {second}")
        try:
            mask = read_mask(sample.target.path, self.classes, self.max_pixels, self.others)
        except ImageError as error:
            raise ImageError(f"its mask {sample.target.path}: {error}") from error
        found = (mask.indices.shape[1], mask.indices.shape[0])
        if found not in (size, stored):
            hint = "; its sides are swapped" if found == size[::-1] else ""
            text = f"its mask {sample.target.path} is {_size_text(found)}, the image {_size_text(size)}{hint}"
            raise ImageError(text)
        counts = np.bincount(mask.indices.ravel(), minlength=VOID + 1)
        turned = orientation if found != size else 1
        return MaskScan(
            counts[: len(self.classes)], int(counts[VOID]) - mask.ignored, mask.unknown, turned, mask.ignored
        )

    def scanned(self, samples: SampleList, scans: Sequence[MaskScan]) -> tuple[MaskSamples, list[str]]:
        """Return the list with what its masks hold, and lines about it. Raises ListError where they are not usable."""
        pixels = np.sum([scan.pixels for scan in scans], axis=0)
        void = sum(scan.void for scan in scans)
        total = void + sum(int(scan.pixels.sum()) + scan.ignored for scan in scans)
        self._check_shares(samples.origin, pixels, void, total, scans)
        turned = tuple(
            replace(sample, target=sample.target._replace(orientation=scan.orientation))
            for sample, scan in zip(samples.samples, scans, strict=True)
        )
        kept = MaskSamples(
            **{**vars(samples), "samples": turned},
            classes=self.classes,
            pixels=tuple(int(count) for count in pixels),
            void=int(void),
        )
        shares = ", ".join(f"{name} {n / total:.1%}" for name, n in zip(self.class_names, pixels, strict=True))
        lines = [f"{samples.origin}: pixels: {shares}"]
        if void:
            lines.append(
                f"{samples.origin}: {void / total:.1%} of the pixels are of no class, and ignored: {_top(scans)}"
            )
        if empty := [name for name, count in zip(self.class_names, pixels, strict=True) if not count]:
            lines.append(f"warning: {samples.origin}: no pixel is of {', '.join(empty)}")
        return kept, lines

    def _check_shares(self, origin: str, pixels: np.ndarray, void: int, total: int, scans: Sequence[MaskScan]) -> None:
        if not pixels.any():
            raise ListError([f"{origin}: no pixel of any mask is of a class: found {_top(scans)}; {self._expected()}"])
        if void > MOST_VOID * total:
            text = f"{void / total:.1%} of the pixels are of no class ({MOST_VOID:.0%} may be): {_top(scans)}"
            raise ListError([f"{origin}: {text}; {self._expected()}"])
        if len(self.classes) > 1 and np.count_nonzero(pixels) == 1:
            only = self.class_names[int(pixels.argmax())]
            text = f'every pixel of every mask is of class "{only}", which leaves nothing to learn; {self._expected()}'
            raise ListError([f"{origin}: {text}"])

    def _expected(self) -> str:
        shown = ", ".join(
            f"{found.name} = value {found.value} or colour {','.join(map(str, found.color))}"
            for found in self.classes[:SHOWN]
        )
        more = f" and {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""
        return f"expected {shown}{more}, as classes.json says or by default"


def _top(scans: Iterable[MaskScan]) -> str:
    """Return the most frequent values and colours that are of no class."""
    counts: Counter[str] = Counter()
    for scan in scans:
        counts.update(dict(scan.unknown))
    return ", ".join(f"{text} ({count} pixels)" for text, count in counts.most_common(SHOWN))


def _size_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
