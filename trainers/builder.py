"""From a config and its lists to a trainer: net, start weights, loss, images, views."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from common import malloc
from configs.schema import Config
from data_loader.augment import AugmentSettings, WeakAndStrongView, training_view
from data_loader.batch_augment import BatchViews
from data_loader.epoch_plan import net_seed, unlabelled_seed
from data_loader.loaders import ImageDataset, enlarged, least_source_size
from data_loader.preprocess import Preprocess
from data_loader.samples import SampleList
from data_loader.targets import CLASS_LABEL, Target
from nets.net_interface import build_net
from nets.support.gradient_checkpointing import enable_gradient_checkpointing
from trainers.data.batches import Batches
from trainers.optim.norm_momentum import raise_norm_momentum
from trainers.optim.optimizer import FreezeError, freeze_parameters
from trainers.reporting.reporter import Reporter
from trainers.runtime.device import Runtime
from trainers.start_weights import load_into
from trainers.tasks.base import Setup
from trainers.tasks.table import task_of_config, task_of_net
from trainers.tasks.teachers import teachers_of
from trainers.train_state import Progress
from trainers.trainer import Trainer

MakeBatchViews = Callable[[Preprocess, AugmentSettings], BatchViews]
MakeView = Callable[[Preprocess, AugmentSettings], Callable[..., Any]]


def build_trainer(
    config: Config,
    net: torch.nn.Module,
    train: SampleList,
    val: SampleList,
    *,
    runtime: Runtime,
    reporter: Reporter | None = None,
    progress: Progress | None = None,
    unlabelled: SampleList | None = None,
    start_weights: Mapping[str, str] | None = None,
) -> Trainer:
    """Return the trainer that train.py trains with; without reporter and progress one that begins, and is silent.

    `unlabelled` are the images of `semi`. `start_weights` is where they come from, for the metadata.
    Raises ListError, NetError.
    """
    if runtime.device.type == "cpu":
        malloc.keep_freed_memory()
    reporter = reporter or Reporter()
    task = task_of_net(net, config).from_setup(net, Setup(config, train, val, runtime.device, reporter.log))
    metadata = replace(task.new_metadata(config, train), start_weights=dict(start_weights or {}))
    preprocess, target = metadata.preprocess, task.target(config)
    progress = progress or Progress()
    task.teachers = teachers_of(config, metadata, runtime.device)
    view = preprocess
    if task.teachers is not None:
        view = task.teachers.view
        if config.distill_method == "review":
            task.companion = task.teachers.review_features(net)
        task.teachers.epochs = lambda: progress.epoch + progress.consumed / max(1, len(train.samples))
    batches = Batches(
        config,
        training_images(config, train, view, task.views, target, task.training_view),
        validation_images(config, val, preprocess, target),
        preprocess,
        runtime,
        batch_views(config, view, task.views, task.batch_views),
        None if unlabelled is None else unlabelled_images(config, unlabelled, preprocess),
    )
    trainer = Trainer(config, task, batches, metadata, runtime, reporter, progress)
    if config.batch_norm_momentum == "auto":
        trainer.learner.get_ready()  # what is held is in eval mode then
        raise_norm_momentum(net, batches.num_updates(), reporter.log)
    return trainer


def build_start_net(
    config: Config, log: Callable[[str], None], class_names: Sequence[str] = (), *, with_weights: bool = True
) -> torch.nn.Module:
    """Return the net with its start weights, as `train_mode` says, its head in the order of the lists' classes.

    Logs what was loaded, and where the weights want another mean or std. Raises NetError, CheckpointError, FreezeError.
    """
    torch.manual_seed(net_seed(config.seed))
    fresh: set[str] = set()
    net = build_net(
        config.model_module_name,
        config.model_net_name,
        num_classes=config.num_classes,
        num_channels=task_of_config(config).preprocess(config).channels,
        img_height=config.img_height,
        img_width=config.img_width,
        model_args=config.net_args(),
    )
    if config.train_mode != "fromscratch" and with_weights:
        report = load_into(net, config, class_names, log)
        fresh = {*report.skipped_head, *report.missing, *(name for name, _, _ in report.skipped_shape)}
    if config.freeze:
        frozen = freeze_parameters(net, config.freeze)
        if random := [name for name in frozen if name in fresh]:
            raise FreezeError(
                f"freeze: {random[0]} and {len(random) - 1} more of the frozen parameters were not loaded, and would "
                "stay random; another model_type, stem or input size than the weights' may be why"
            )
        log(f"{len(frozen)} parameters are frozen")
    if config.gradient_checkpointing:
        enable_gradient_checkpointing(net)
    return net


def training_images(
    config: Config,
    samples: SampleList,
    preprocess: Preprocess,
    views: int,
    target: Target = CLASS_LABEL,
    make_view: MakeView | None = None,
) -> ImageDataset:
    """Return the images to learn from: views of them, or fitted ones where batches are augmented, or nothing is."""
    is_fast = config.fast_decode != "off"
    if not (config.data_aug or views > 1):
        return ImageDataset(samples, preprocess, at_least=_size(preprocess) if is_fast else None, target=target)
    if config.augment_on == "device":
        source = enlarged(preprocess, config.fitted_scale)
        return ImageDataset(samples, source, at_least=_size(source) if is_fast else None, target=target)
    settings = _augment_settings(config)
    view = make_view(preprocess, settings) if make_view else training_view(preprocess, settings, views)
    least = least_source_size(preprocess, settings.random_crop_scale, settings.random_crop_ratio)
    return ImageDataset(
        samples,
        preprocess,
        view,
        config.seed,
        at_least=least if is_fast else None,
        target=target,
    )


def unlabelled_images(config: Config, samples: SampleList, preprocess: Preprocess) -> ImageDataset:
    """Return the images without labels, each in a weak and a strong view."""
    settings = _augment_settings(config)
    least = least_source_size(preprocess, settings.random_crop_scale, settings.random_crop_ratio)
    return ImageDataset(
        samples,
        preprocess,
        WeakAndStrongView(preprocess, settings),
        unlabelled_seed(config.seed),
        at_least=least if config.fast_decode != "off" else None,
    )


def validation_images(
    config: Config, samples: SampleList, preprocess: Preprocess, target: Target = CLASS_LABEL
) -> ImageDataset:
    """Return the images to validate on, decoded in full unless `fast_decode` says "all"."""
    least = _size(preprocess) if config.fast_decode == "all" else None
    return ImageDataset(samples, preprocess, at_least=least, target=target, is_whole=bool(config.val_tiles))


def batch_views(
    config: Config, preprocess: Preprocess, views: int, make_views: MakeBatchViews | None = None
) -> BatchViews | None:
    """Return the augmentation of a whole batch, or nothing where each image is augmented by itself, or none."""
    if config.augment_on == "cpu" or not (config.data_aug or views > 1):
        return None
    settings = _augment_settings(config)
    if make_views:
        return make_views(preprocess, settings)
    return BatchViews(settings, views, (preprocess.height, preprocess.width))


def _size(preprocess: Preprocess) -> tuple[int, int]:
    return preprocess.width, preprocess.height


def _augment_settings(config: Config) -> AugmentSettings:
    return AugmentSettings(**config.model_dump(include=set(AugmentSettings.__dataclass_fields__)))
