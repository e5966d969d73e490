"""The rules of a net and its task for a config, beyond the config's own; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifacts.errors import CheckpointError
from artifacts.hub_folder import weights_file
from artifacts.weights_packages import is_package, package_file, with_wanted_preprocess
from configs.loading import process_config
from configs.rules import NET, Problem
from configs.schema import Config
from nets.net_interface import check_model_args, check_names, declared_task
from nets.support.errors import NetError
from trainers.timm_weights import timm_problems, with_published_preprocess

MASK_TASKS = ("segmentation", "change_detection")
NOT_FOR_MASKS = {  # keys, and what to do
    "auto_augment": "moves images alone, without their masks; leave it out",
    "mosaic": "joins images with boxes, not masks; leave it out",
    "mixup_boxes": "blends images with boxes, not masks; leave it out",
    "random_erasing": "would blank pixels that the mask still names; leave it out",
    "mixup_alpha": "mixes labels of whole images, not masks; use copy_paste",
    "cutmix_alpha": "mixes labels of whole images, not masks; use copy_paste",
    "label_smoothing": "is not in the losses of masks; leave it out",
    "balanced_sampling": "draws images by their one class; use balanced_crops or class_weights for masks",
    "test_time_views": "averages the logits of whole images, not masks; leave it out",
    "fit_head": "fits a head on one label an image, not on masks; leave it out",
    "semi": "is for nets of classes alone; leave it out",
    "distill_method": "is for nets of classes alone; leave it out",
}
BOX_TASK = "detection"
NOT_FOR_BOXES = {
    "augment_on": 'moves images alone, without their boxes; set it to "cpu"',
    "auto_augment": "moves images alone, without their boxes; leave it out",
    "random_erasing": "would blank objects whose boxes stay; leave it out",
    "copy_paste": "pastes pixels with their masks, not boxes; use mosaic or mixup_boxes",
    "rotation_degrees": "would make boxes larger than their objects; use quarter_turns",
    "translate": "moves images alone, without their boxes; random_crop_scale moves both",
    "mixup_alpha": "mixes labels of whole images, not boxes; use mixup_boxes",
    "cutmix_alpha": "mixes labels of whole images, not boxes; leave it out",
    "label_smoothing": "is not in the loss of boxes; leave it out",
    "class_weights": "are not in the loss of boxes; use balanced_crops",
    "mask_loss": "is for masks, not for boxes; leave it out",
    "balanced_sampling": "draws images by their one class; use balanced_crops for boxes",
    "test_time_views": "averages the logits of whole images, not boxes; leave it out",
    "fit_head": "fits a head on one label an image, not on boxes; leave it out",
    "semi": "is for nets of classes alone; leave it out",
    "distill_method": "is for nets of classes alone; leave it out",
    "val_tiles": "are for nets that give masks; leave it out",
}
NEED_LABELS = ("label_smoothing", "class_weights", "balanced_sampling", "mixup_alpha", "cutmix_alpha")


def training_config(path: str | Path, overrides: Sequence[str] = (), *, check_files: bool = True) -> Config:
    """Read a config for a training: its net and start weights are checked too, and what they want is filled in.

    Raises ConfigError with all mistakes.
    """
    config = process_config(path, overrides, check_files=check_files, checks=[net_problems])
    return with_published_preprocess(with_wanted_preprocess(config))


def net_problems(config: Config) -> list[Problem]:
    """Return a problem for each thing that the config's net does not take; for `process_config`'s checks."""
    try:
        check_names(config.model_module_name, config.model_net_name)
    except NetError as error:
        return [Problem(sentence, NET) for sentence in str(error).splitlines()]
    problems = []
    try:
        check_model_args(config.model_module_name, config.model_net_name, config.net_args())
    except NetError as error:
        keys = (*NET, "model_type", "model_args")
        problems = [Problem(sentence, keys) for sentence in str(error).splitlines()]
    if config.learns_without_labels():
        hint = "leave it out, or put it into next_stage"
        for key in NEED_LABELS:
            if getattr(config, key):
                problems.append(Problem(f"{key} needs labels, which SimSiam does not learn from; {hint}", (key, *NET)))
        if not config.data_aug:
            sentence = "data_aug cannot be off: SimSiam learns from two different views of an image"
            problems.append(Problem(sentence, ("data_aug", *NET)))
    problems += _dense_problems(config)
    problems += timm_problems(config)
    if config.starts_from_file() and config.start_weights().is_dir():
        try:
            weights_file(config.start_weights())
        except CheckpointError as error:
            problems.append(Problem(str(error), ("pretrained_path", "pretrained_file")))
    if config.train_mode == "finetune" and is_package(config.pretrained_file):
        try:
            package_file(config.pretrained_file)
        except CheckpointError as error:
            problems.append(Problem(str(error), ("pretrained_file",)))
    if config.compile and (config.learns_without_labels() or config.model_module_name == "pim_module"):
        sentence = f"compile is for nets that are trained by their logits alone, not for {config.model_net_name}"
        problems.append(Problem(sentence, ("compile", *NET)))
    return problems


def _dense_problems(config: Config) -> list[Problem]:
    """Return a problem for each key that masks or boxes do not go with, or that needs them."""
    task = declared_task(config.model_module_name, config.model_net_name)
    problems = []
    if task != BOX_TASK and config.num_classes < 2:
        problems.append(Problem("num_classes must be at least 2: one alone is for detection", ("num_classes", *NET)))
    if task not in (*MASK_TASKS, BOX_TASK):
        sentences = {
            "balanced_crops": "balanced_crops choose a crop by its mask or boxes; this net learns from neither",
            "mosaic": "mosaic joins images with their boxes; this net learns from none",
            "mixup_boxes": "mixup_boxes blends images with their boxes; this net learns from none",
            "copy_paste": "copy_paste pastes pixels with their masks; this net learns from none",
            "val_tiles": "val_tiles are for nets that give masks; leave it out",
        }
        problems += [Problem(text, (key, *NET)) for key, text in sentences.items() if getattr(config, key)]
        return problems
    refused = NOT_FOR_BOXES if task == BOX_TASK else NOT_FOR_MASKS
    return problems + [
        Problem(f"{key} {reason}", (key, *NET))
        for key, reason in refused.items()
        if getattr(config, key) != Config.model_fields[key].default
    ]
