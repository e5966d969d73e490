"""From a config and its lists to a trainer: net, start weights, loss, images, views."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from artifacts.checkpoint import load_weights
from artifacts.metadata import build_metadata, preprocess_of
from common import malloc
from configs.schema import Config
from data_loader.augment import AugmentSettings, BatchMixer, TrainingView, TwoViews
from data_loader.batch_augment import BatchViews
from data_loader.loaders import ImageDataset, enlarged, least_source_size, net_seed
from data_loader.preprocess import Preprocess
from data_loader.samples import NO_LABEL, ListError, SampleList
from nets.net_interface import build_net
from nets.pim_module import PIM
from nets.simsiam_module import SimSiam
from nets.support.gradient_checkpointing import enable_gradient_checkpointing
from nets.support.pretrained import load_start_weights, published_state_dict
from trainers.evaluation.feature_probes import plain_batches
from trainers.optim.optimizer import FreezeError, freeze_parameters
from trainers.reporting.tensorboard_logger import TrainingLogger
from trainers.runtime.device import choose_precision
from trainers.runtime.distributed import World
from trainers.tasks.classification import ClassifyTask, balanced_class_weights
from trainers.tasks.pim import PimLossWeights, PimTask
from trainers.tasks.simsiam import SimSiamTask
from trainers.train_state import Progress
from trainers.trainer import Trainer


def build_trainer(
    config: Config,
    net: torch.nn.Module,
    train: SampleList,
    val: SampleList,
    *,
    device: torch.device,
    world: World | None = None,
    logger: TrainingLogger | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] = lambda text: None,
    show_progress: bool = False,
    kind: type[Trainer] = Trainer,
) -> Trainer:
    """Give the trainer that train.py trains with. Raises ListError.

    What is left out is that of one process that begins, and logs and shows nothing.
    """
    if device.type == "cpu":
        malloc.keep_freed_memory()
    task = build_task(config, net, train, val, device, log)
    metadata = replace(build_metadata(config, train.class_names), output=task.output)
    return kind(
        config,
        task,
        training_images(config, train, metadata.preprocess, task.views),
        validation_images(config, val, metadata.preprocess),
        metadata,
        device=device,
        precision=choose_precision(config.precision, device),
        world=world or World(),
        logger=logger or TrainingLogger("", enabled=False),
        progress=progress or Progress(),
        log=log,
        augment=batch_views(config, metadata.preprocess, task.views),
        show_progress=show_progress,
    )


def build_start_net(config: Config, log: Callable[[str], None], *, with_weights: bool = True) -> torch.nn.Module:
    """Build the net with its start weights, as `train_mode` says. Raises NetError, CheckpointError, FreezeError."""
    torch.manual_seed(net_seed(config.seed))
    fresh: set[str] = set()
    net = build_net(
        config.model_module_name,
        config.model_net_name,
        num_classes=config.num_classes,
        num_channels=config.num_channels,
        img_height=config.img_height,
        img_width=config.img_width,
        model_args=config.net_args(),
    )
    if config.train_mode != "fromscratch" and with_weights:
        published = config.pretrained_file == "torchvision"
        if published:
            weights = published_state_dict(config.model_module_name, config.model_net_name, config.net_args())
        else:
            weights = load_weights(config.start_weights())
        report = load_start_weights(net, weights, new_head=config.train_mode == "finetune")
        log(report.summary())
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


def build_task(
    config: Config,
    net: torch.nn.Module,
    train: SampleList,
    val: SampleList,
    device: torch.device,
    log: Callable[[str], None] = lambda text: None,
) -> ClassifyTask:
    """Put the loss around the net. Raises ListError where there is nothing to measure it by."""
    if isinstance(net, SimSiam):
        known = train if train.is_labelled else val
        if len(known.samples) < 2:
            raise ListError([f"{known.origin}: one image has no neighbours; the kNN accuracy needs two and more"])
        unknown = sum(sample.label == NO_LABEL for sample in train.samples)
        why = f"each other's, as {unknown} training images have no label of the {config.num_classes} classes"
        log(f"kNN: a validation image's neighbours are {why if unknown else 'the training pictures'}")
        return SimSiamTask(
            net,
            plain_batches(known, preprocess_of(config), config.dataloader_workers, device),
            bank_is_validation=known is val,
            neighbours=config.simsiam_knn_neighbours,
            seed=config.seed,
            stops_on_collapse=config.simsiam_on_collapse == "stop",
        )
    weights = config.class_weights
    if weights == "balanced":
        weights = balanced_class_weights(train.class_counts())
    mixer = None
    if config.mixup_alpha or config.cutmix_alpha:
        mixer = BatchMixer(config.num_classes, config.mixup_alpha, config.cutmix_alpha)
    options: dict[str, Any] = {
        "label_smoothing": config.label_smoothing,
        "class_weights": list(weights),
        "mixer": mixer,
    }
    if isinstance(net, PIM):
        terms = PimLossWeights(
            stages=config.pim_stages_weight,
            selected=config.pim_selected_weight,
            dropped=config.pim_dropped_weight,
            combiner=config.pim_combiner_weight,
        )
        return PimTask(net, terms, **options)
    return ClassifyTask(net, **options)


def training_images(config: Config, samples: SampleList, preprocess: Preprocess, views: int) -> ImageDataset:
    """Give the images to learn from: views of them, or fitted ones where batches are augmented, or nothing is."""
    is_fast = config.fast_decode != "off"
    if not (config.data_aug or views > 1):
        return ImageDataset(samples, preprocess, at_least=_size(preprocess) if is_fast else None)
    if config.augment_on == "device":
        source = enlarged(preprocess, config.fitted_scale)
        return ImageDataset(samples, source, at_least=_size(source) if is_fast else None)
    settings = _augment_settings(config)
    view = TrainingView(preprocess, settings)
    least = least_source_size(preprocess, settings.random_crop_scale, settings.random_crop_ratio)
    return ImageDataset(
        samples,
        preprocess,
        TwoViews(view) if views > 1 else view,
        config.seed,
        at_least=least if is_fast else None,
    )


def validation_images(config: Config, samples: SampleList, preprocess: Preprocess) -> ImageDataset:
    """Give the images to validate on, decoded in full unless `fast_decode` says "all"."""
    return ImageDataset(samples, preprocess, at_least=_size(preprocess) if config.fast_decode == "all" else None)


def batch_views(config: Config, preprocess: Preprocess, views: int) -> BatchViews | None:
    """Give the augmentation of a whole batch, or nothing where each image is augmented by itself, or none."""
    if config.augment_on == "cpu" or not (config.data_aug or views > 1):
        return None
    return BatchViews(_augment_settings(config), views, (preprocess.height, preprocess.width))


def _size(preprocess: Preprocess) -> tuple[int, int]:
    return preprocess.width, preprocess.height


def _augment_settings(config: Config) -> AugmentSettings:
    return AugmentSettings(**config.model_dump(include=set(AugmentSettings.__dataclass_fields__)))
