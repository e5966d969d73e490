"""The batches of a training on its device: loaded, copied, augmented and normalised there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from configs.schema import Config
from data_loader.augment import mirrored_half
from data_loader.bad_images import checked
from data_loader.batch_augment import BatchViews
from data_loader.epoch_plan import EpochBatches, Step, epoch_order, plan_epoch
from data_loader.loaders import ImageDataset, end_processes, training_loader, validation_loader
from data_loader.preprocess import Preprocess
from data_loader.shard_order import ShardOrder
from trainers.data.shard_prefetch import ShardPrefetch
from trainers.data.unlabelled import UnlabelledBatches
from trainers.runtime.device import DeviceCopy, Runtime, memory_layout
from trainers.runtime.out_of_memory import IMAGES, LastBatch
from trainers.tasks.base import Batch


class Batches:
    """One process's part of the training and of the validation batches.

    The images leave the loaders as uint8 and are augmented and normalised on the device: four times fewer bytes travel.
    """

    def __init__(
        self,
        config: Config,
        train_data: ImageDataset,
        val_data: ImageDataset,
        preprocess: Preprocess,
        runtime: Runtime,
        augment: BatchViews | None = None,
        unlabelled: ImageDataset | None = None,
    ) -> None:
        self.config, self.train_data, self.val_data = config, train_data, val_data
        self.preprocess, self.runtime, self.augment = preprocess, runtime, augment
        self.last = LastBatch()
        self.num_train = len(train_data)
        samples = train_data.samples.samples
        self._groups = train_data.target.groups(samples) if config.balanced_sampling else None
        device, world = runtime.device, runtime.world
        self._shards: ShardOrder | None = None
        self._prefetch: ShardPrefetch | None = None
        if config.streamed_shards:
            paths = [sample.path for sample in samples]
            self._shards = ShardOrder(paths, config.streamed_shards // 2, config.seed, shuffle=config.shuffle)
            if world.local_rank == 0 and train_data.cache is None:
                self._prefetch = ShardPrefetch(self._shards)
        self._mirrored_half = torch.from_numpy(mirrored_half(config.seed, self.num_train)).to(device)
        self._copy = DeviceCopy(device, is_asynchronous=config.async_loading)
        self._layout = memory_layout(config)
        self._part = EpochBatches(world.rank, world.size)
        pin, workers = device.type == "cuda" and config.async_loading, config.dataloader_workers
        self.unlabelled: UnlabelledBatches | None = None
        if unlabelled is not None:
            self.unlabelled = UnlabelledBatches(unlabelled, config.unlabelled_per_labelled, workers, runtime)
        self.train_loader = training_loader(train_data, self._part, workers, pin_memory=pin, device=device)
        self.val_batch_size = 1 if config.val_tiles else config.val_batch_size or 2 * config.batch_size
        self.val_loader = validation_loader(
            val_data,
            self.val_batch_size,
            workers,
            rank=world.rank,
            world_size=world.size,
            pin_memory=pin,
            device=device,
        )

    def num_updates(self) -> int:
        """Return how many batches each process learns from in the whole training."""
        return self.config.num_epochs * sum(len(step.batches) for step in self.plan())

    def plan(self, start: int = 0) -> list[Step]:
        """Return the steps of an epoch, over all processes, of which `start` images are done."""
        config = self.config
        return plan_epoch(self.num_train, config.batch_size, self.runtime.world.size, config.accumulation_steps, start)

    def training(self, epoch: int, steps: list[Step]) -> Iterator[Batch]:
        """Yield the batches of an epoch's steps. Raises BadImageError."""
        self._part.set_epoch(epoch, self._order(epoch), steps)
        batches: Iterator[dict[str, Any]] = iter(self.train_loader)
        if self._prefetch is not None:
            batches = self._prefetched(self._prefetch, batches, epoch, steps)
        if self.unlabelled is not None:
            others = self.unlabelled.training(epoch * self.num_train, steps)
            both = zip(batches, others, strict=True)
            batches = ({**checked(batch), "unlabelled": views} for batch, views in both)
        return self._moved(batches, epoch)

    def validation(self) -> Iterator[Batch]:
        """Yield the validation batches. Raises BadImageError."""
        for batch in self.val_loader:
            moved = self._normalized(self._copy(checked(batch)))
            self.last = LastBatch.of("val_batch_size", moved)
            yield moved

    def of(self, data: ImageDataset) -> Iterator[Batch]:
        """Yield this process's batches of other images, as those of a validation. Raises BadImageError."""
        world, workers = self.runtime.world, self.config.dataloader_workers
        loader = validation_loader(data, self.val_batch_size, workers, rank=world.rank, world_size=world.size)
        try:
            for batch in loader:
                yield self._normalized(self._copy(checked(batch)))
        finally:
            end_processes(loader)

    def shared_batches(self, num_images: int) -> int:
        """Return how many batches of a validation of so many images every process has at least."""
        return -(-(num_images // self.runtime.world.size) // self.val_batch_size)

    def close(self) -> None:
        """End the loader processes."""
        for loader in (self.train_loader, self.val_loader):
            end_processes(loader)
        if self.unlabelled is not None:
            self.unlabelled.close()
        if self._prefetch is not None:
            self._prefetch.close()

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of an epoch's images as indices (N,)."""
        if self._shards is not None:
            return self._shards.order(epoch)
        shuffle = self.config.shuffle
        return epoch_order(self.num_train, epoch, self.config.seed, shuffle=shuffle, groups=self._groups)

    @staticmethod
    def _prefetched(
        prefetch: ShardPrefetch, batches: Iterator[dict[str, Any]], epoch: int, steps: list[Step]
    ) -> Iterator[dict[str, Any]]:
        for start, _ in [edges for step in steps for edges in step.batches]:
            prefetch.reached(epoch, start)
            yield next(batches)

    def _moved(self, batches: Iterator[dict[str, Any]], epoch: int) -> Iterator[Batch]:
        for batch in batches:
            moved = self._copy(checked(batch))
            if self.augment is not None:
                mirrored = self._mirrored_half[moved["index"]] == (epoch % 2 == 0)
                moved["image"], moved["target"] = self.augment.of_batch(moved["image"], moved["target"], mirrored)
            moved = self._normalized(moved)
            self.last = LastBatch.of("batch_size", moved)
            yield moved

    def _normalized(self, batch: Batch) -> Batch:
        names = [name for name in IMAGES if name in batch]
        images = {name: self.preprocess.normalize(batch[name]) for name in names}
        return {**batch, **{name: value.contiguous(memory_format=self._layout) for name, value in images.items()}}
