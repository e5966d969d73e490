"""The images that files are verified on, and those that int8 is calibrated on: real ones, through the one decoder."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from artifacts.metadata import ModelMetadata
from artifacts.outputs import output_shape
from artifacts.sample_sources import (
    FoundSamples,
    SamplesError,
    config_samples,
    has_data,
    listed_samples,
    reading_samples,
    spread_indices,
)
from configs.schema import Config
from data_loader.preprocess import ImageError, Preprocess, bgr, joined
from data_loader.samples import NO_LABEL, Sample
from deploy.backends.base import is_out_of_memory
from deploy.export.formats import MAX_SAMPLES
from deploy.export.label_boxes import label_boxes
from deploy.export.label_masks import label_masks

MOST_BYTES = 2_000_000_000  # of images and outputs held, where no number was requested
BYTES_A_VALUE = 16  # of an output: the net's and the file's in float32, their difference in float64


@dataclass(frozen=True)
class SampleImages:
    """Decoded and fitted images, uint8 (N, H, W, C), with their labels (N,), masks (N, H, W) or boxes, where known.

    `source` names the list or folder, `root` where a list's paths start, `listed` how many images it has, `skipped`
    those that could not be read; `note` is about the labels.
    """

    pixels: np.ndarray
    labels: np.ndarray | None
    files: tuple[str, ...]
    source: str
    listed: int
    skipped: tuple[str, ...] = ()
    root: str = ""
    note: str = ""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def place(self) -> str:
        """Return where the images come from, for messages."""
        return f"{self.source} (images below {self.root})" if self.root else self.source

    def are_grey(self) -> bool:
        """Return whether no image has a colour in it, so that the order of its three channels makes no difference."""
        first, last = self.pixels[..., 0], self.pixels[..., -1]
        return self.pixels.shape[-1] == 3 and all(map(np.array_equal, first, last))

    def every_second(self, first: int) -> SampleImages:
        """Return every second image, from the first (0) or the second (1) on; they share these images' memory."""
        labels = None if self.labels is None else self.labels[first::2]
        source = f"{self.source} (every second)"
        pixels, files = self.pixels[first::2], self.files[first::2]
        return replace(self, pixels=pixels, labels=labels, files=files, source=source, skipped=())

    def at_most(self, count: int) -> SampleImages:
        """Return `count` of the images, evenly spread; all where there are no more."""
        if len(self) <= count:
            return self
        chosen = spread_indices(len(self), count)
        labels = None if self.labels is None else self.labels[chosen]
        files = tuple(self.files[index] for index in chosen)
        return replace(self, pixels=self.pixels[chosen], labels=labels, files=files, skipped=())


@dataclass(frozen=True)
class NetInputs:
    """A net's input for images that are held as bytes, made only for the requested slice.

    As float32 all of them at once would take four times the memory.
    """

    pixels: np.ndarray  # uint8 (N, H, W, C)
    preprocess: Preprocess
    kind: str  # one of metadata.INPUTS

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, part: slice) -> np.ndarray:
        return net_input(self.pixels[part], self.preprocess, self.kind)


def find_images(
    samples: Path | None,
    config: Config | None,
    metadata: ModelMetadata,
    most: int | None = None,
    root: Path | None = None,
) -> SampleImages:
    """Read at most `most` images (None: 1000, or what fits in 2 GB; 0: all), evenly spread over `samples`.

    `samples` is a list, whose paths start from `root` if it is given, or a folder, labelled where its folders are the
    class names. Without it the images are those of the config's validation data. Raises SamplesError, ListError.
    """
    with reading_samples(samples):
        if samples is not None:
            found = listed_samples(samples, config, metadata, root)
        elif config is not None and has_data(config.val_data_file, config.val_data_root_dir):
            found = config_samples(config.val_data_file, config.val_data_root_dir, config, metadata)
        else:
            known = f" (its config names {config.val_data_file or config.val_data_root_dir})" if config else ""
            raise SamplesError(
                f"the net's validation images are not on this machine{known}; an export is verified on real images: "
                "name a list or a folder with --samples (inference.py: a folder with --image_dir)"
            )
        most = _fitting(MAX_SAMPLES, metadata) if most is None else most
        images = _read(found, metadata.preprocess, most)
    if metadata.output == "mask_logits":
        images = replace(images, labels=label_masks(images.files, metadata))
    if metadata.output == "boxes":
        images = replace(images, labels=label_boxes(images.files, metadata))
    if not len(images):
        raise SamplesError(f"{found.origin}: none of its images can be read; the first: {images.skipped[0]}")
    return images


def find_calibration(config: Config | None, metadata: ModelMetadata, count: int) -> SampleImages | None:
    """Read `count` training images (or what fits in 2 GB), evenly spread; None where they are not on this machine.

    Raises SamplesError, ListError.
    """
    if config is None:
        return None
    with reading_samples(None):
        if not has_data(config.train_data_file, config.train_data_root_dir):
            return None
        found = config_samples(config.train_data_file, config.train_data_root_dir, config, metadata)
        images = _read(found, metadata.preprocess, _fitting(count, metadata))
    return images if len(images) > len(images.skipped) else None


def net_input(pixels: np.ndarray, preprocess: Preprocess, kind: str) -> np.ndarray:
    """Return a net's input for uint8 images (N, H, W, C); `kind` is one of metadata.INPUTS. Raises SamplesError."""
    import torch

    with _enough_memory(len(pixels), preprocess, 4 if kind == "float32 NCHW" else 1):
        if kind == "float32 NCHW":
            channels_first = torch.from_numpy(pixels).permute(0, 3, 1, 2)  # (N, C, H, W)
            return preprocess.normalize(channels_first).contiguous().numpy()
        # copy(): one grey channel counts as contiguous with any strides
        return bgr(pixels, preprocess.images) if kind.endswith("BGR") else np.ascontiguousarray(pixels)


def _read(found: FoundSamples, preprocess: Preprocess, most: int) -> SampleImages:
    samples = found.samples
    count = len(samples) if most == 0 else min(most, len(samples))
    chosen = [samples[index] for index in spread_indices(len(samples), count)]
    good: list[Sample] = []
    skipped = []
    with _enough_memory(count, preprocess):
        pixels = np.empty((count, preprocess.height, preprocess.width, preprocess.channels), np.uint8)
        for sample, made in zip(chosen, _fitted(chosen, preprocess), strict=True):
            if isinstance(made, str):
                skipped.append(f"{sample.path}: {made}")
            else:
                pixels[len(good)] = made
                good.append(sample)
    has_labels = preprocess.images == 1 and all(sample.label != NO_LABEL for sample in good)
    return SampleImages(
        pixels[: len(good)],
        np.array([sample.label for sample in good], dtype=np.int64) if has_labels else None,
        tuple(sample.path for sample in good),
        found.origin,
        len(samples),
        tuple(skipped),
        found.root,
        found.note,
    )


def _fitting(count: int, metadata: ModelMetadata) -> int:
    """Return `count`, or how many images fit in MOST_BYTES with their outputs, and at least one."""
    preprocess, outputs = metadata.preprocess, output_shape(metadata) or ()
    values = math.prod(size for size in outputs if size)
    bytes_an_image = preprocess.height * preprocess.width * preprocess.channels + BYTES_A_VALUE * values
    return max(1, min(count, MOST_BYTES // bytes_an_image))


def _fitted(samples: Sequence[Sample], preprocess: Preprocess) -> Iterator[np.ndarray | str]:
    """Yield each image as uint8 (H, W, C), or why it cannot be read."""

    def fitted(sample: Sample) -> np.ndarray | str:
        paths = (sample.path,) if preprocess.images == 1 else (sample.path, sample.target)
        try:
            return joined([preprocess.fit(preprocess.decode(path)) for path in paths])
        except ImageError as error:
            return str(error)

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16), thread_name_prefix="decode") as pool:
        yield from pool.map(fitted, samples)


@contextmanager
def _enough_memory(count: int, preprocess: Preprocess, bytes_a_value: int = 1) -> Iterator[None]:
    """Turn what numpy, Pillow and torch raise where memory runs out into a SamplesError with the amount."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        size = f"{preprocess.height}x{preprocess.width}"
        gigabytes = count * preprocess.height * preprocess.width * preprocess.channels * bytes_a_value / 1e9
        raise SamplesError(
            f"there is too little memory for {count} images of {size} ({gigabytes:.1f} GB); hold fewer with "
            "--max_samples"
        ) from error
