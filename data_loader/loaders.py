"""From sample lists to batches: datasets, loader processes, and batches cut out of a cache."""

from __future__ import annotations

import functools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from common.errors import ProgramError
from common.formatting import first_line
from data_loader.augment import mirrored_half, seeded
from data_loader.bad_images import bad_image_sentence
from data_loader.band_image import Decoded, as_array, gaps_of, image_of
from data_loader.cache import Fitting, ImageCache
from data_loader.decode_guard import GUARD
from data_loader.epoch_plan import EndlessBatches, EpochBatches, Key
from data_loader.preprocess import ImageError, Preprocess, joined
from data_loader.samples import SampleList
from data_loader.streamed_packs import StreamError
from data_loader.targets import CLASS_LABEL, Target, View


class LoaderProcessError(ProgramError):
    """A loader process that has died, usually for want of memory."""

    one_process = True


class ImageDataset(Dataset[dict[str, Any]]):
    """Samples -> {"image": uint8 (C, H, W), "target": value, "index": int}, or {"error": sentence, "index": int}.

    Without a view the image is fitted as in validation. With one, its random numbers, and where flips alternate whose
    turn it is, follow from (seed, epoch, index); several views of an image are (V, C, H, W). Of cached samples a view
    is made from the fitted image, and no file is read. `at_least` (width, height) lets large JPEGs be decoded at
    a reduced size. With `is_whole` image and mask stay at their own size.
    """

    def __init__(
        self,
        samples: SampleList,
        preprocess: Preprocess,
        view: View | None = None,
        seed: int = 0,
        *,
        at_least: tuple[int, int] | None = None,
        target: Target = CLASS_LABEL,
        is_whole: bool = False,
    ) -> None:
        self.samples = samples
        self.target, self.is_whole = target, is_whole
        self.at_least = at_least
        self.cache: ImageCache | None = None
        fitting = Fitting(preprocess, is_fast=at_least is not None)
        if samples.cache is not None and not is_whole and (view or samples.cache.fitting == fitting):
            self.cache = samples.cache
        self.preprocess = preprocess
        self.view = view
        self.seed = seed
        self.mirrored_half = mirrored_half(seed, len(samples.samples))

    def __len__(self) -> int:
        return len(self.samples.samples)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key
        try:
            pixels, value = self._fitted(index) if self.view is None else self._viewed(self.view, epoch, index)
        except (ImageError, StreamError) as error:
            return {"error": str(error), "index": index}
        image = torch.from_numpy(pixels).movedim(-1, -3)  # (C, H, W) or (V, C, H, W)
        return {"image": image, "target": value, "index": index}

    def _fitted(self, index: int) -> tuple[np.ndarray, Any]:
        images, value = self._load(index)
        if self.is_whole:
            return joined([as_array(image) for image in images]), np.array(value)
        return joined([self.preprocess.fit(image) for image in images]), self.target.fit(self.preprocess, value)

    def _viewed(self, view: View, epoch: int, index: int) -> tuple[np.ndarray, Any]:
        mirrored = bool(self.mirrored_half[index]) == (epoch % 2 == 0)
        images, value = self._load(index)
        with seeded(self.seed, epoch, index):
            others = self.target.partners(view, epoch, len(self))
            if not others:
                return self.target.apply_view(view, images, mirrored, value)
            parts = [(images, value), *map(self._load, others)]
            return self.target.apply_joined(view, parts, mirrored)

    def _load(self, index: int) -> tuple[list[Decoded], Any]:
        """Return a sample's decoded images and its value. Raises ImageError with the sentence for the user."""
        sample = self.samples.samples[index]
        if self.cache is not None:
            return self._of_cache(self.cache, index)
        try:
            paths = self.target.image_paths(sample)
            images = [self.preprocess.decode(path, self.at_least) for path in paths]
            value = self.target.load(sample)
        except ImageError as error:
            raise ImageError(bad_image_sentence(self.samples, index, error)) from error
        gaps = gaps_of(images)
        return images, value if gaps is None else self.target.without(value, gaps)

    def _of_cache(self, cache: ImageCache, index: int) -> tuple[list[Decoded], Any]:
        row, preprocess = cache.row(index), cache.fitting.preprocess
        pixels, channels = np.split(row, [preprocess.channels], axis=2)
        images = [image_of(part) for part in np.split(pixels, preprocess.images, axis=2)]
        return images, self.target.of_cached(preprocess, self.samples.samples[index], channels)


class WholeBatches:
    """Batches of cached images, each cut out of the mapped rows at once, or on a GPU that has room for all of them.

    `parts` gives the samples' indices (N,) of each batch, asked anew for every iteration. No loader processes: that a
    row is copied, 0.2 ms for 32 images of 128 pixels, takes less than to hand it from one process to another.
    """

    def __init__(
        self,
        samples: SampleList,
        cache: ImageCache,
        parts: Callable[[], list[np.ndarray]],
        device: torch.device,
        *,
        pin_memory: bool = False,
        target: Target = CLASS_LABEL,
    ) -> None:
        self.parts, self.pin_memory = parts, pin_memory
        self.pixels = cache.on(device)  # (N, H, W, C)
        place = self.pixels.device
        self.rows = torch.from_numpy(cache.rows).to(place)
        self.channels = cache.fitting.preprocess.channels
        self.targets: torch.Tensor | None = None  # in the rows
        if not target.cached_channels:
            values = [target.fit(cache.fitting.preprocess, target.load(sample)) for sample in samples.samples]
            self.targets = torch.from_numpy(target.collate(values)).to(place)  # (N, ...)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        parts = self.parts()
        if not parts:
            return
        indices = torch.from_numpy(np.concatenate(parts)).to(self.pixels.device)  # once, or each batch would wait
        for index in indices.split([len(part) for part in parts]):
            rows = self.pixels.index_select(0, self.rows[index])  # (N, H, W, C)
            images = rows[..., : self.channels].contiguous()
            targets = rows[..., self.channels].contiguous() if self.targets is None else self.targets[index]
            batch = {"image": images, "target": targets, "index": index}
            if self.pin_memory and not self.pixels.is_cuda:
                batch = {key: value.pin_memory() for key, value in batch.items()}
            yield {**batch, "image": batch["image"].permute(0, 3, 1, 2)}  # (N, C, H, W), channels last in memory

    def __len__(self) -> int:
        return len(self.parts())


Loader = DataLoader[Any] | WholeBatches


def training_loader(
    dataset: ImageDataset,
    batches: EpochBatches | EndlessBatches,
    workers: int,
    *,
    pin_memory: bool = False,
    device: torch.device | None = None,
) -> Loader:
    """Return the loader of the training batches; its processes stay alive between epochs.

    Of cached images without a view for each there are none, and the images may lie on `device` already.
    """
    if isinstance(batches, EpochBatches) and dataset.cache is not None and dataset.view is None:
        return _whole_batches(dataset, batches.parts, device, pin_memory)
    return _loader(dataset, batches, workers, pin_memory)


def validation_loader(
    dataset: ImageDataset,
    batch_size: int,
    workers: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool = False,
    device: torch.device | None = None,
) -> Loader:
    """Return the loader of one process's part of the validation images: every image once, none twice."""
    mine = np.arange(rank, len(dataset), world_size)
    parts = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    if dataset.cache is not None and dataset.view is None:
        return _whole_batches(dataset, lambda: parts, device, pin_memory)
    return _loader(dataset, [[(0, int(index)) for index in part] for part in parts], workers, pin_memory)


def collate(items: Sequence[dict[str, Any]], target: Target = CLASS_LABEL) -> dict[str, Any]:
    """Stack samples to {"image": uint8 (N, C, H, W), "target": (N, ...), "index": (N,)}; any error comes alone.

    The channels are last in memory. Of V views an image the image is (N V, C, H, W), the views of one side by side.
    """
    errors = list(dict.fromkeys(item["error"] for item in items if "error" in item))  # a shard has many images
    if errors:
        return {"errors": errors}
    images = torch.stack([item["image"].movedim(-3, -1) for item in items])  # (N, ..., H, W, C), as they lie in memory
    return {
        "image": images.flatten(0, -4).movedim(-1, -3),
        "target": torch.from_numpy(target.collate([item["target"] for item in items])),
        "index": torch.tensor([item["index"] for item in items], dtype=torch.int64),
    }


@contextmanager
def lost_loaders_reported() -> Iterator[None]:
    """Turn what torch raises where a loader process died into a LoaderProcessError, or a DecodeDeadlineError.

    It must lie around all that runs while there are loader processes: torch's signal handler raises wherever it
    interrupts, and a process that dies while it sends a batch leaves a broken connection.
    """
    try:
        yield
    except (RuntimeError, ConnectionResetError, ConnectionRefusedError, EOFError) as error:
        text, is_lost = first_line(error), not isinstance(error, RuntimeError)
        if not (is_lost or text == "received 0 items of ancdata" or "DataLoader worker" in str(error)):
            raise
        GUARD.check_expired()
        reason = str(error).rstrip().splitlines()[-1] if text.startswith("Caught") else text
        advice = "lower dataloader_workers, or give the machine more memory or shared memory (docker: --shm-size)"
        raise LoaderProcessError(f"a loader process died: {advice} ({reason})") from error


def end_processes(loader: Loader) -> None:
    """End a loader's processes: those that an error's traceback keeps alive would never let the program end."""
    iterator = getattr(loader, "_iterator", None)  # torch has no public way to end persistent workers
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None  # type: ignore[union-attr]


def enlarged(preprocess: Preprocess, scale: float) -> Preprocess:
    """Return the same preprocessing to an input size of `scale` times the sides."""
    return replace(preprocess, height=round(preprocess.height * scale), width=round(preprocess.width * scale))


def least_source_size(preprocess: Preprocess, scale: Sequence[float], ratio: Sequence[float]) -> tuple[int, int]:
    """Return the (width, height) of an image whose smallest random crop still has the net's input size."""
    width = preprocess.width / math.sqrt(scale[0] * ratio[0])
    return math.ceil(width), math.ceil(preprocess.height / math.sqrt(scale[0] / ratio[1]))


def start_loader_process(_: int) -> None:
    """Ignore Ctrl-C and its like, which reach the whole process group: the main process saves first."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has not all
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


def _whole_batches(
    dataset: ImageDataset, parts: Callable[[], list[np.ndarray]], device: torch.device | None, pin_memory: bool
) -> WholeBatches:
    assert dataset.cache is not None
    device = device or torch.device("cpu")
    return WholeBatches(dataset.samples, dataset.cache, parts, device, pin_memory=pin_memory, target=dataset.target)


def _loader(dataset: ImageDataset, batches: Any, workers: int, pin_memory: bool) -> DataLoader[Any]:
    GUARD.start()  # before the processes, which it watches too
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=functools.partial(collate, target=dataset.target),
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        worker_init_fn=start_loader_process,
    )
