"""The rules of a config that need more than one key, or the disk. A key's own type and range stand in its schema."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.formatting import short_json
from configs.schema import ON_CPU_ONLY, Config

LEAST_STD = 1e-9  # an image divided by less has no float32
NET = ("model_module_name", "model_net_name")  # the keys that choose the net, and with it the task


@dataclass(frozen=True)
class Problem:
    """A mistake in a config: its sentence, and the keys whose values the rule has read."""

    sentence: str
    keys: tuple[str, ...]


Rule = Callable[[Config], Iterator[Problem]]


def find_contradictions(config: Config) -> list[Problem]:
    """Return the problems that are found in the values alone."""
    rules: tuple[Rule, ...] = (
        _normalization_fits_the_channels,
        _std_is_not_zero,
        _crop_ranges_are_ordered,
        _crops_have_pixels,
        _color_jitter_is_within_bounds,
        _class_weights_fit_the_classes,
        _device_augmentation_is_possible,
        _views_of_simsiam_differ,
        _test_time_views_suit_the_net,
        _rare_classes_are_weighted_once,
        _gpus_can_be_chosen,
        _model_type_is_given_once,
        _start_weights_are_named,
        _save_name_is_a_file_name,
        _texts_hold_no_nul,
        _warmup_ends_in_the_training,
        _learning_rate_falls,
    )
    return [problem for rule in rules for problem in rule(config)]


def find_missing_files(config: Config, to_come: Path | None) -> list[Problem]:
    """Return a problem for each file and folder that is not there; the file `to_come` is written before it is read."""
    problems = []
    for key in ("train_data_root_dir", "val_data_root_dir"):
        if not os.path.isdir(getattr(config, key)):  # noqa: PTH112  (a Path raises where a name is too long)
            problems.append(Problem(f'{key} "{getattr(config, key)}" is not a folder', (key,)))
    for key in ("train_data_file", "val_data_file", "class_names_file"):
        if getattr(config, key) and not os.path.isfile(getattr(config, key)):  # noqa: PTH113
            problems.append(Problem(f'{key} "{getattr(config, key)}" is not a file', (key,)))
    mode, weights = config.train_mode, config.start_weights()
    reads_a_file = mode == "update" or (mode == "finetune" and config.pretrained_file not in ("", "torchvision"))
    if reads_a_file and weights != to_come and not os.path.isfile(weights):  # noqa: PTH113
        keys = ("train_mode", "pretrained_path", "pretrained_file", *(() if config.pretrained_file else SAVED))
        problems.append(Problem(f'train_mode "{mode}" starts from "{weights}", which is not a file', keys))
    return problems


SAVED = ("save_path", "save_name")  # the keys that name the best checkpoint


def _normalization_fits_the_channels(config: Config) -> Iterator[Problem]:
    for key in ("mean", "std"):
        count = len(getattr(config, key))
        if count and count != config.num_channels:
            sentence = f"{key} must have num_channels ({config.num_channels}) entries, got {count}"
            yield Problem(sentence, (key, "num_channels"))


def _std_is_not_zero(config: Config) -> Iterator[Problem]:
    if any(value < LEAST_STD for value in config.std):
        yield Problem(f"std must be at least {LEAST_STD:g}, got {config.std}", ("std",))


def _crop_ranges_are_ordered(config: Config) -> Iterator[Problem]:
    for key in ("random_crop_scale", "random_crop_ratio"):
        low, high = getattr(config, key)
        if not 0 < low <= high:
            yield Problem(f"{key} must be [low, high] with 0 < low <= high, got [{low:g}, {high:g}]", (key,))


def _crops_have_pixels(config: Config) -> Iterator[Problem]:
    low, high = config.random_crop_ratio
    if low < 0.01 or high > 100:
        sentence = f"random_crop_ratio must be within 0.01 and 100, got [{low:g}, {high:g}]"
        yield Problem(sentence, ("random_crop_ratio",))
    if config.random_crop_scale[1] > 1:
        sentence = f"random_crop_scale must be at most 1, got {config.random_crop_scale[1]:g}"
        yield Problem(sentence, ("random_crop_scale",))


def _color_jitter_is_within_bounds(config: Config) -> Iterator[Problem]:
    jitter = config.color_jitter
    if min(jitter) < 0 or max(jitter) > 10 or jitter[3] > 0.5:
        sentence = f"color_jitter must be within 0 and 10, its hue at most 0.5, got {jitter}"
        yield Problem(sentence, ("color_jitter",))


def _class_weights_fit_the_classes(config: Config) -> Iterator[Problem]:
    weights = config.class_weights
    if not isinstance(weights, list):
        return
    if len(weights) != config.num_classes:
        sentence = f"class_weights must have num_classes ({config.num_classes}) entries, got {len(weights)}"
        yield Problem(sentence, ("class_weights", "num_classes"))
    if any(value < 0 for value in weights) or not any(weights):
        sentence = f"class_weights must be at least 0 and not all 0, got {short_json(weights)}"
        yield Problem(sentence, ("class_weights",))


def _device_augmentation_is_possible(config: Config) -> Iterator[Problem]:
    if config.augment_on != "device":
        return
    for key in ON_CPU_ONLY:
        if getattr(config, key):
            sentence = f'{key} is for one image at a time; set augment_on to "cpu", or leave it out'
            yield Problem(sentence, (key, "augment_on"))
    if config.interpolation != "bilinear":
        sentence = f'augment_on "device" crops bilinearly, not by "{config.interpolation}"'
        yield Problem(sentence, ("augment_on", "interpolation"))


def _views_of_simsiam_differ(config: Config) -> Iterator[Problem]:
    if config.horizontal_flip_alternates and config.learns_without_labels():
        sentence = "horizontal_flip_alternates would mirror both of SimSiam's views alike; use horizontal_flip"
        yield Problem(sentence, ("horizontal_flip_alternates", *NET))


def _test_time_views_suit_the_net(config: Config) -> Iterator[Problem]:
    if config.test_time_views > 1 and (config.learns_without_labels() or config.model_module_name == "pim_module"):
        name = config.model_net_name
        sentence = f"test_time_views is for nets that are validated by their logits alone, not for {name}"
        yield Problem(sentence, ("test_time_views", *NET))


def _rare_classes_are_weighted_once(config: Config) -> Iterator[Problem]:
    if config.balanced_sampling and config.class_weights:
        sentence = "balanced_sampling and class_weights both make up for rare classes; use one"
        yield Problem(sentence, ("balanced_sampling", "class_weights"))


def _gpus_can_be_chosen(config: Config) -> Iterator[Problem]:
    if config.gpu_id not in ("", "cpu") and not all(part.strip().isdecimal() for part in config.gpu_id.split(",")):
        sentence = f'gpu_id must be "0", several as "0,1", or "cpu", got "{config.gpu_id}"'
        yield Problem(sentence, ("gpu_id",))
    elif len(set(config.gpu_ids())) != len(config.gpu_ids()):
        yield Problem(f'gpu_id names a GPU twice, got "{config.gpu_id}"', ("gpu_id",))


def _model_type_is_given_once(config: Config) -> Iterator[Problem]:
    inner = config.model_args.get("model_type", config.model_type)
    if config.model_type and inner != config.model_type:
        sentence = f'model_type is "{config.model_type}" but model_args.model_type is "{inner}"; keep one'
        yield Problem(sentence, ("model_type", "model_args"))


def _start_weights_are_named(config: Config) -> Iterator[Problem]:
    keys = ("train_mode", "pretrained_file")
    if config.train_mode == "finetune" and not config.pretrained_file:
        yield Problem('train_mode "finetune" needs pretrained_file: a weights file, or "torchvision"', keys)
    if config.train_mode == "update" and config.pretrained_file == "torchvision":
        sentence = 'train_mode "update" goes on with the net\'s own weights; use "finetune" for published ones'
        yield Problem(sentence, keys)


def _save_name_is_a_file_name(config: Config) -> Iterator[Problem]:
    name = config.save_name
    if Path(name).name != name or name in (".", ".."):
        sentence = f'save_name is a file name without folders, got "{name}"; put them in save_path'
        yield Problem(sentence, ("save_name",))
    elif name.startswith(("report.json", "report.html")):
        yield Problem(f'save_name cannot be the name of a report, got "{name}"', ("save_name",))


def _texts_hold_no_nul(config: Config) -> Iterator[Problem]:
    for key, value in config:
        if isinstance(value, str) and "\0" in value:
            yield Problem(f"{key} holds a NUL character", (key,))


def _warmup_ends_in_the_training(config: Config) -> Iterator[Problem]:
    if config.warmup_epochs > config.num_epochs:
        sentence = f"warmup_epochs must not exceed num_epochs, got {config.warmup_epochs:g} > {config.num_epochs}"
        yield Problem(sentence, ("warmup_epochs", "num_epochs"))


def _learning_rate_falls(config: Config) -> Iterator[Problem]:
    low, high = config.min_learning_rate, config.learning_rate
    if low > high:
        sentence = f"min_learning_rate must not exceed learning_rate, got {low:g} > {high:g}"
        yield Problem(sentence, ("min_learning_rate", "learning_rate"))
