"""Listed images that cannot be read: found before a training, or met in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any

from common.errors import UserError
from data_loader.decoder_process import DecoderPool
from data_loader.packed_images import content_of
from data_loader.preprocess import ImageError, Preprocess
from data_loader.samples import SampleList


class BadImageError(UserError):
    """A listed image that cannot be read; the message names list, line, path and reason."""

    one_process = True  # of several, only the one that met the image knows of it


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """Raise BadImageError where an image of the batch could not be read."""
    if "errors" in batch:
        raise BadImageError("\n".join(batch["errors"]))
    return batch


def bad_image_sentence(samples: SampleList, index: int, reason: Exception | str) -> str:
    """Return a sentence about an image that cannot be read: its list's line if it has one, its path, and the reason."""
    where, path = samples.where(index), samples.samples[index].path
    return f"{path}: {reason}" if path.startswith(f"{where}/") else f"{where}: {path}: {reason}"


def find_bad_images(
    samples: SampleList, preprocess: Preprocess, workers: int, indices: Sequence[int]
) -> Iterator[tuple[int, str] | None]:
    """Decode listed images in other processes; yield, in order, None for a good one, (index, sentence) for a bad one.

    An image whose decoder does not end in time is a bad one.
    """
    workers = max(1, workers)
    decoders = DecoderPool(preprocess, workers)

    def look(index: int) -> tuple[int, str] | None:
        try:
            decoders.fit(content_of(samples.samples[index].path), preprocess.max_pixels)
        except ImageError as error:
            return index, bad_image_sentence(samples, index, error)
        return None

    block = 1024
    with closing(decoders), ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(indices), block):
            yield from pool.map(look, indices[first : first + block])


def without(samples: SampleList, bad: set[int]) -> SampleList:
    """Return the list without some of its samples."""
    keep = [index for index in range(len(samples.samples)) if index not in bad]
    changes: dict[str, Any] = {"samples": tuple(samples.samples[index] for index in keep)}
    if samples.line_numbers:
        changes["line_numbers"] = tuple(samples.line_numbers[index] for index in keep)
    if samples.cache is not None:
        changes["cache"] = samples.cache.chosen(keep)
    return replace(samples, **changes)
