"""Fitted images of a list as uint8 rows (N, H, W, C) in one file, which every process maps instead of reading.

The images of a pair lie behind one another in C, and behind them what the target keeps of a value, such as a mask.
Behind the rows stands a JSON object {"bad": {"row": reason}}. `data_loader.cache_builder` writes such files.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
import PIL
import torch

from data_loader.band_image import gaps_of
from data_loader.packs import lasting_container_of
from data_loader.preprocess import Preprocess, joined
from data_loader.samples import Sample, SampleList
from data_loader.targets import CLASS_LABEL, Target

FORMAT = 1  # of the file; files of another are not found
GPU_SHARE = 0.25  # of a GPU's free memory that images may take: the net needs the rest


@dataclass(frozen=True)
class Fitting:
    """How a sample becomes a row: images fitted by `preprocess`, JPEGs from a reduced decoding where `is_fast`."""

    preprocess: Preprocess
    is_fast: bool = False
    target: Target = field(default=CLASS_LABEL, compare=False)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (H, W, C) of a row."""
        channels = self.preprocess.channels + self.target.cached_channels
        return self.preprocess.height, self.preprocess.width, channels

    def num_bytes(self, samples: SampleList) -> int:
        """Return the size of all rows of a list."""
        return len(samples.samples) * prod(self.shape)

    def row(self, sample: Sample) -> np.ndarray:
        """Return a sample's images decoded and fitted, and its value, uint8 (H, W, C). Raises ImageError."""
        preprocess, target = self.preprocess, self.target
        at_least = (preprocess.width, preprocess.height) if self.is_fast else None
        images = [preprocess.decode(path, at_least) for path in target.image_paths(sample)]
        parts = [preprocess.fit(image) for image in images]
        if target.cached_channels:
            value, gaps = target.load(sample), gaps_of(images)
            parts.append(target.cached(preprocess, value if gaps is None else target.without(value, gaps)))
        return joined(parts)

    def pixel_settings(self) -> dict[str, object]:
        """Return the settings that the pixels of a row follow from; not mean and std, which are applied later."""
        settings = {key: value for key, value in self.preprocess.to_dict().items() if key not in ("mean", "std")}
        return {**settings, "is_fast": self.is_fast, "pillow": PIL.__version__, **self.target.cache_settings()}

    def file_name(self, samples: SampleList) -> str:
        """Return the file's name, from all that it depends on: path, size and time of each file, and the settings."""
        checksum = hashlib.sha256(json.dumps([FORMAT, self.pixel_settings()]).encode())
        for file in (file for sample in samples.samples for file in self.target.files_of(sample)):
            try:
                found = os.stat(lasting_container_of(file))  # noqa: PTH116  (a Path for each of a million images takes as long again)
                size, time_ns = found.st_size, found.st_mtime_ns
            except OSError:
                size = time_ns = -1
            path = os.path.abspath(file)  # noqa: PTH100
            checksum.update(f"{path}\0{size}\0{time_ns}\n".encode(errors="surrogateescape"))
        return f"{checksum.hexdigest()[:32]}.pictures"


class ImageCache:
    """The mapped rows of a complete file: sample i's image is row `rows[i]`; `bad` gives reasons by row.

    Pickled, it is mapped anew from its path. Raises OSError or ValueError for a file that is not there or not complete.
    """

    def __init__(
        self,
        path: str,
        fitting: Fitting,
        count: int,
        rows: np.ndarray | None = None,
        source: ImageCache | None = None,
    ) -> None:
        self.path, self.fitting, self.count = path, fitting, count
        self.source = source  # keeps a file in memory alive
        self.rows = np.arange(count) if rows is None else rows
        with Path(path).open("rb") as file:
            file.seek(count * prod(fitting.shape))
            self.bad = {int(row): str(reason) for row, reason in json.load(file)["bad"].items()}
        mapped = np.memmap(path, np.uint8, "r", shape=(count, *fitting.shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that the memory is read-only: nobody writes to it
            self.pixels = torch.from_numpy(mapped)

    def __reduce__(self) -> tuple[type[ImageCache], tuple[str, Fitting, int, np.ndarray]]:
        return ImageCache, (self.path, self.fitting, self.count, self.rows)

    def row(self, index: int) -> np.ndarray:
        """Return a sample's fitted images and what is kept of its value, uint8 (H, W, C)."""
        row: np.ndarray = self.pixels[int(self.rows[index])].numpy()
        return row

    def chosen(self, keep: Sequence[int]) -> ImageCache:
        """Return the cache of some of the samples."""
        return ImageCache(self.path, self.fitting, self.count, self.rows[np.asarray(keep, np.int64)], self)

    def on(self, device: torch.device) -> torch.Tensor:
        """Return all rows (N, H, W, C): on a GPU with room for them a copy that stays there, else the mapped ones."""
        if device.type != "cuda" or self.pixels.nbytes > GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
            return self.pixels
        return self.pixels.to(device)
