"""From sample lists to batches: datasets, the order of an epoch, its cut into steps, and loader processes."""

from __future__ import annotations

import functools
import itertools
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from common.errors import ProgramError, UserError
from common.formatting import first_line
from data_loader.augment import mirrored_half, mixed_seed, seeded
from data_loader.cache import CachedSamples, Fitting, ImageCache
from data_loader.preprocess import ImageError, Preprocess
from data_loader.samples import SampleList
from data_loader.targets import ClassLabel, Target

CLASS_LABEL = ClassLabel(0)  # loads and batches labels of any number of classes
Key = tuple[int, int]  # (epoch, index of the sample)


class BadImageError(UserError):
    """A listed image that cannot be read; the message names list, line, path and reason."""

    one_process = True  # of several, only the one that met the image knows of it


class LoaderProcessError(ProgramError):
    """A loader process that has died, usually for want of memory."""

    one_process = True


class ImageDataset(Dataset[dict[str, Any]]):
    """Samples -> {"image": uint8 (C, H, W), "target": value, "index": int}, or {"error": sentence, "index": int}.

    Without a view the image is fitted as in validation. With one, its random numbers, and where flips alternate whose
    turn it is, follow from (seed, epoch, index); several views of an image are (V, C, H, W). Of cached samples a view
    is made from the fitted image, and the file is not read. `at_least` (width, height) lets large JPEGs be decoded at
    a reduced size.
    """

    def __init__(
        self,
        samples: SampleList,
        preprocess: Preprocess,
        view: Callable[[Image.Image, bool], np.ndarray] | None = None,
        seed: int = 0,
        *,
        at_least: tuple[int, int] | None = None,
        target: Target = CLASS_LABEL,
    ) -> None:
        self.samples = samples
        self.target = target
        self.at_least = at_least
        self.cache: ImageCache | None = None
        fitting = Fitting(preprocess, is_fast=at_least is not None)
        if isinstance(samples, CachedSamples) and (view or samples.cache.fitting == fitting):
            self.cache = samples.cache
        self.preprocess = preprocess
        self.view = view
        self.seed = seed
        self.mirrored_half = mirrored_half(seed, len(samples.samples))

    def __len__(self) -> int:
        return len(self.samples.samples)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, index = key
        sample = self.samples.samples[index]
        try:
            decoded = self._image(index)
        except ImageError as error:
            return {"error": bad_image_sentence(self.samples, index, error), "index": index}
        value = self.target.load(sample)
        if self.view is None:
            pixels = self.preprocess.fit(decoded)
        else:
            mirrored = bool(self.mirrored_half[index]) == (epoch % 2 == 0)
            with seeded(self.seed, epoch, index):
                pixels, value = self.target.apply_view(self.view, decoded, mirrored, value)
        image = torch.from_numpy(pixels).movedim(-1, -3)  # (C, H, W) or (V, C, H, W)
        return {"image": image, "target": value, "index": index}

    def _image(self, index: int) -> Image.Image:
        if self.cache is not None:
            return self.cache.image(index)
        return self.preprocess.decode(self.samples.samples[index].path, self.at_least)


class WholeBatches:
    """Batches of cached images, each cut out of the mapped rows at once, or on a GPU that has room for all of them.

    `parts` gives the samples' indices (N,) of each batch, asked anew for every iteration. No loader processes: that a
    row is copied, 0.2 ms for 32 images of 128 pixels, takes less than to hand it from one process to another.
    """

    def __init__(
        self,
        samples: CachedSamples,
        parts: Callable[[], list[np.ndarray]],
        device: torch.device,
        *,
        pin_memory: bool = False,
        target: Target = CLASS_LABEL,
    ) -> None:
        self.parts, self.pin_memory = parts, pin_memory
        self.pixels = samples.cache.on(device)  # (N, H, W, C)
        place = self.pixels.device
        self.rows = torch.from_numpy(samples.cache.rows).to(place)
        values = [target.load(sample) for sample in samples.samples]
        self.targets = torch.from_numpy(target.collate(values)).to(place)  # (N, ...)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        parts = self.parts()
        if not parts:
            return
        indices = torch.from_numpy(np.concatenate(parts)).to(self.pixels.device)  # once, or each batch would wait
        for index in indices.split([len(part) for part in parts]):
            batch = {
                "image": self.pixels.index_select(0, self.rows[index]),
                "target": self.targets[index],
                "index": index,
            }
            if self.pin_memory and not self.pixels.is_cuda:
                batch = {key: value.pin_memory() for key, value in batch.items()}
            yield {**batch, "image": batch["image"].permute(0, 3, 1, 2)}  # (N, C, H, W), channels last in memory

    def __len__(self) -> int:
        return len(self.parts())


Loader = DataLoader[Any] | WholeBatches


@dataclass(frozen=True)
class Step:
    """One optimizer step: its batches' places in the epoch's order, [start, stop) over all processes."""

    batches: tuple[tuple[int, int], ...]

    @property
    def num_samples(self) -> int:
        """Images of the step over all batches and processes."""
        return self.batches[-1][1] - self.batches[0][0]


def plan_epoch(
    num_samples: int, batch_size: int, world_size: int = 1, accumulation_steps: int = 1, start: int = 0
) -> list[Step]:
    """Cut an epoch's order, from place `start` on, into optimizer steps; every image is used exactly once.

    A rest too small for batch norm (fewer than two images a process) joins the batch before it; but for such a rest,
    the cut depends on batch_size * world_size alone, so that several processes do what one with a bigger batch does.
    A rest after `start` that has no batch before it, which only a changed batch size can leave, is given up.
    """
    whole = batch_size * world_size
    smallest = world_size * min(2, batch_size)
    if num_samples - start < smallest:
        return []
    edges = [*range(start, num_samples, whole), num_samples]
    if len(edges) > 2 and edges[-1] - edges[-2] < smallest:
        del edges[-2]
    batches = list(itertools.pairwise(edges))
    groups = [batches[first : first + accumulation_steps] for first in range(0, len(batches), accumulation_steps)]
    return [Step(tuple(group)) for group in groups]


def epoch_order(
    num_samples: int, epoch: int, seed: int, *, shuffle: bool = True, groups: np.ndarray | None = None
) -> np.ndarray:
    """Return the order of an epoch's images as indices (N,), the same on every process.

    With the `groups` of the samples (N,) every group is drawn equally often: images of a rare one come several times,
    and some others not at all.
    """
    generator = np.random.default_rng([seed, epoch, 0])
    if groups is None:
        return generator.permutation(num_samples) if shuffle else np.arange(num_samples)
    numbers = np.unique(groups)
    share = -(-num_samples // len(numbers))
    drawn = []
    for number in numbers:
        members = np.flatnonzero(groups == number)
        rounds = [generator.permutation(members) for _ in range(-(-share // len(members)))]
        drawn.append(np.concatenate(rounds)[:share])
    return generator.permutation(np.concatenate(drawn))[:num_samples]


class EpochBatches:
    """The batch sampler of one process: its part of every batch, as (epoch, index) keys. Set the epoch first."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self.order: np.ndarray = np.empty(0, np.int64)
        self.steps: list[Step] = []

    def set_epoch(self, epoch: int, order: np.ndarray, steps: list[Step]) -> None:
        """Choose what the next iteration gives."""
        self.epoch, self.order, self.steps = epoch, order, steps

    def __iter__(self) -> Iterator[list[Key]]:
        for part in self.parts():
            yield [(self.epoch, int(index)) for index in part]

    def parts(self) -> list[np.ndarray]:
        """Return the indices of this process's images in each batch."""
        edges = [edge for step in self.steps for edge in step.batches]
        return [np.array_split(self.order[start:stop], self.world_size)[self.rank] for start, stop in edges]

    def __len__(self) -> int:
        return sum(len(step.batches) for step in self.steps)


def training_loader(
    dataset: ImageDataset,
    batches: EpochBatches,
    workers: int,
    *,
    pin_memory: bool = False,
    device: torch.device | None = None,
) -> Loader:
    """Return the loader of the training batches; its processes stay alive between epochs.

    Of cached images without a view for each there are none, and the images may lie on `device` already.
    """
    if dataset.cache is not None and dataset.view is None:
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
    errors = [item["error"] for item in items if "error" in item]
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
    """Turn what torch raises where a loader process died into a LoaderProcessError.

    It must lie around all that runs while there are loader processes: torch's signal handler raises wherever it
    interrupts, and a process that dies while it sends a batch leaves a broken connection.
    """
    try:
        yield
    except (RuntimeError, ConnectionResetError, ConnectionRefusedError, EOFError) as error:
        text, is_lost = first_line(error), not isinstance(error, RuntimeError)
        if not (is_lost or text == "received 0 items of ancdata" or "DataLoader worker" in str(error)):
            raise
        reason = str(error).rstrip().splitlines()[-1] if text.startswith("Caught") else text  # the last line says why
        advice = "lower dataloader_workers, or give the machine more memory or shared memory (docker: --shm-size)"
        raise LoaderProcessError(f"a loader process died: {advice} ({reason})") from error


def end_processes(loader: Loader) -> None:
    """End a loader's processes: those that an error's traceback keeps alive would never let the program end."""
    iterator = getattr(loader, "_iterator", None)  # torch has no public way to end persistent workers
    if iterator is not None:
        iterator._shutdown_workers()
        loader._iterator = None  # type: ignore[union-attr]


def checked(batch: dict[str, Any]) -> dict[str, Any]:
    """Raise BadImageError where an image of the batch could not be read."""
    if "errors" in batch:
        raise BadImageError("\n".join(batch["errors"]))
    return batch


def bad_image_sentence(samples: SampleList, index: int, reason: Exception | str) -> str:
    """Say which listed image cannot be read, where it is listed, and why."""
    return f"{samples.where(index)}: {samples.samples[index].path}: {reason}"


def find_bad_images(
    samples: SampleList, preprocess: Preprocess, workers: int, indices: Sequence[int]
) -> Iterator[tuple[int, str] | None]:
    """Decode listed images; give, in order, None for a good one and (index, sentence) for a bad one."""

    def look(index: int) -> tuple[int, str] | None:
        try:
            preprocess.decode(samples.samples[index].path)
        except ImageError as error:
            return index, bad_image_sentence(samples, index, error)
        return None

    block = 1024
    with ThreadPoolExecutor(max(1, workers)) as pool:  # Pillow decodes outside Python's lock
        for first in range(0, len(indices), block):
            yield from pool.map(look, indices[first : first + block])


def without(samples: SampleList, bad: set[int]) -> SampleList:
    """Return the list without some of its samples."""
    keep = [index for index in range(len(samples.samples)) if index not in bad]
    changes: dict[str, Any] = {"samples": tuple(samples.samples[index] for index in keep)}
    if samples.line_numbers:
        changes["line_numbers"] = tuple(samples.line_numbers[index] for index in keep)
    if isinstance(samples, CachedSamples):
        changes["cache"] = samples.cache.chosen(keep)
    return replace(samples, **changes)


def enlarged(preprocess: Preprocess, scale: float) -> Preprocess:
    """Return the same preprocessing to an input size of `scale` times the sides."""
    return replace(preprocess, height=round(preprocess.height * scale), width=round(preprocess.width * scale))


def least_source_size(preprocess: Preprocess, scale: Sequence[float], ratio: Sequence[float]) -> tuple[int, int]:
    """Return the (width, height) of an image whose smallest random crop still has the net's input size."""
    width = preprocess.width / math.sqrt(scale[0] * ratio[0])
    return math.ceil(width), math.ceil(preprocess.height / math.sqrt(scale[0] / ratio[1]))


def net_seed(seed: int) -> int:
    """Return the seed of the initial weights."""
    return mixed_seed(seed, 1)


def step_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of everything random in one step on one process (dropout, mixup): nothing is left to be saved."""
    return mixed_seed(seed, 2, step, rank)


def start_loader_process(_: int) -> None:
    """Leave Ctrl-C and its like, which reach the whole process group, to the main process, which saves first."""
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has not all
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    torch.set_num_threads(1)


def _whole_batches(
    dataset: ImageDataset, parts: Callable[[], list[np.ndarray]], device: torch.device | None, pin_memory: bool
) -> WholeBatches:
    assert isinstance(dataset.samples, CachedSamples)
    device = device or torch.device("cpu")
    return WholeBatches(dataset.samples, parts, device, pin_memory=pin_memory, target=dataset.target)


def _loader(dataset: ImageDataset, batches: Any, workers: int, pin_memory: bool) -> DataLoader[Any]:
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
