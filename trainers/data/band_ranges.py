"""The ranges, means and standard deviations of images of bands: measured once, over the training images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from configs.schema import Config
from data_loader.bands import INSTALL_GEO, Bands, Ranges, band_kind, has_rasterio, kind_text, read_values, scaled
from data_loader.errors import ImageError
from data_loader.samples import ListError, SampleList
from data_loader.targets import Target
from trainers.data.sample_lists import read_lists
from trainers.runtime.distributed import World
from trainers.tasks.table import task_of_config

PERCENTILES = (0.5, 99.5)
MOST_IMAGES = 1000  # that are measured, evenly spread
MOST_VALUES = 1 << 25  # that are kept of them: 134 MB
LEAST_STD = 1 / 255  # of a band that is the same everywhere

T = TypeVar("T")
Kind = tuple[int, str]  # bands, type


@dataclass(frozen=True)
class Measured:
    """What was found in images of bands: their type, and for each band its range, and mean and std of values 0..1."""

    band_type: str
    ranges: Ranges
    mean: tuple[float, ...]
    std: tuple[float, ...]


def with_measured_bands(config: Config, world: World, log: Callable[[str], None]) -> Config:
    """Return the config with the ranges, the type, the mean and the std of its bands, where it leaves them out.

    All images have to be of one number of bands and one type. The first process measures for all. Raises ListError.
    """
    if not config.has_bands():
        return config
    target = task_of_config(config).target(config)
    lists = read_lists(config, target)
    outcome: list[Measured | str] = []
    if world.is_main:
        try:
            outcome.append(_measured(config, lists, target))
        except ListError as error:
            outcome.append(str(error))
    found = world.gather(outcome)[0]
    if isinstance(found, str):
        raise ListError([found])
    given: dict[str, object] = {"band_type": found.band_type}
    if isinstance(config.band_range, str):
        given["band_range"] = [list(limits) for limits in found.ranges]
    given |= {key: list(getattr(found, key)) for key in ("mean", "std") if not getattr(config, key)}
    ranges = ", ".join(f"{low:g}..{high:g}" for low, high in found.ranges)
    log(f"{kind_text((config.num_channels, found.band_type))}; the values that become 0 and 255: {ranges}")
    return config.model_copy(update=given)


def _measured(config: Config, lists: Sequence[SampleList], target: Target) -> Measured:
    """Check all images' headers, and measure the training images. Raises ListError."""
    train, val = ([path for sample in found.samples for path in target.image_paths(sample)] for found in lists)
    workers = max(1, config.dataloader_workers)
    kind, pixels = _common_kind(config, list(dict.fromkeys(chain(train, val))), workers)
    ranges = () if isinstance(config.band_range, str) else _pairs(config.band_range)
    if ranges and config.mean and config.std:
        return Measured(kind[1], ranges, tuple(config.mean), tuple(config.std))
    step = -(-len(train) // MOST_IMAGES)
    chosen = train[::step]
    stride = math.ceil(math.sqrt(sum(pixels.get(path, 0) for path in chosen) * kind[0] / MOST_VALUES))
    sampled = _sampled(chosen, max(1, stride), config.max_pixels, workers)
    if not sampled.size:
        raise ListError([f"{lists[0].origin}: no pixel of the training images holds data"])
    return statistics(sampled, kind[1], ranges)


def statistics(values: np.ndarray, band_type: str, ranges: Ranges = ()) -> Measured:
    """Return the statistics of values (B, n): of ranges that are not given, the 0.5 and 99.5 percentiles.

    A band that is the same everywhere gets a range of 1.
    """
    if not ranges:
        lows, highs = np.percentile(values.astype(np.float64), PERCENTILES, axis=1)  # (B,) each
        ranges = _pairs([low, high if high > low else low + 1] for low, high in zip(lows, highs, strict=True))
    eight_bit = scaled(Bands(values[:, None], None), ranges, [0] * len(values))[:, 0] / 255  # (B, n)
    std = np.maximum(eight_bit.std(axis=1), LEAST_STD)
    return Measured(band_type, ranges, _rounded(eight_bit.mean(axis=1)), _rounded(std))


def _common_kind(config: Config, paths: Sequence[str], workers: int) -> tuple[Kind, dict[str, int]]:
    """Return the bands and the type of all images, and the number of pixels of each.

    Those that cannot be read are left out: the training finds them. Raises ListError.
    """
    found: list[tuple[str, Kind]] = []
    pixels: dict[str, int] = {}
    first_error = ""

    def look(path: str) -> tuple[str, tuple[Kind, tuple[int, int]] | str]:
        try:
            return path, band_kind(path, config.max_pixels)
        except ImageError as error:
            return path, str(error)

    for path, header in _each(look, paths, workers, "reading the images' headers"):
        if isinstance(header, str):
            first_error = first_error or f"{path}: {header}"
        else:
            found.append((path, header[0]))
            pixels[path] = math.prod(header[1])
    if not found:
        raise ListError([first_error])
    wanted = (config.num_channels, config.band_type or found[0][1][1])
    for path, kind in found:
        if kind == wanted:
            continue
        if kind[0] != wanted[0]:
            hint = "" if has_rasterio() else f" (read without rasterio: {INSTALL_GEO})"
            raise ListError([f"{path}: it has {kind_text(kind)}, but num_channels is {config.num_channels}{hint}"])
        other = "band_type" if config.band_type else found[0][0]
        rule = "all images of a training have the same bands and type"
        raise ListError([f"{path}: it has {kind_text(kind)}, but {other} has {kind_text(wanted)}; {rule}"])
    return wanted, pixels


def _sampled(paths: Sequence[str], stride: int, max_pixels: int, workers: int) -> np.ndarray:
    """Return the pixels of the readable images that hold data, every so many across and down, all bands (B, n)."""

    def look(path: str) -> np.ndarray | None:
        try:
            bands = read_values(path, max_pixels)
        except ImageError:
            return None
        values = bands.values[:, ::stride, ::stride]
        if bands.gaps is None:
            return values.reshape(len(values), -1)
        return values[:, ~bands.gaps[::stride, ::stride]]

    parts = [part for part in _each(look, paths, workers, "measuring bands") if part is not None]
    return np.concatenate(parts, axis=1) if parts else np.empty((1, 0))


def _each(look: Callable[[str], T], paths: Sequence[str], workers: int, title: str) -> Iterator[T]:
    with ThreadPoolExecutor(workers) as pool:
        yield from tqdm(pool.map(look, paths), desc=title, total=len(paths), leave=False, disable=None)


def _pairs(ranges: Iterable[Sequence[float]]) -> Ranges:
    return tuple((float(low), float(high)) for low, high in ranges)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(round(float(value), 5) for value in values)
