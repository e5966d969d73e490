"""The rules of a config that need more than one key, or the disk. Types and ranges are in configs.schema."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.formatting import short_json
from common.paths import PACK_ENDING
from configs.schema import ON_CPU_ONLY, OWN_AVERAGE, Config

LEAST_STD = 1e-9  # an image divided by less has no float32
NET = ("model_module_name", "model_net_name")  # the keys that choose the net, and with it the task
Row = tuple[bool, str, tuple[str, ...]]  # whether a rule is broken, what to say then, and the keys that it reads


@dataclass(frozen=True)
class Problem:
    """A mistake in a config: its sentence, and the keys whose values the rule has read."""

    sentence: str
    keys: tuple[str, ...]


def find_contradictions(config: Config) -> list[Problem]:
    """Return the problems that are found in the values alone."""
    tables = (
        *(
            _of_pixels,
            _of_packs,
            _of_classes,
            _of_augmentation,
            _of_the_net,
            _of_unlabelled_images,
            _of_names,
            _of_the_schedule,
        ),
    )
    return [Problem(sentence, keys) for table in tables for is_broken, sentence, keys in table(config) if is_broken]


def find_missing_files(config: Config, to_come: Path | None) -> list[Problem]:
    """Return a problem for each file and folder that is not there; the file `to_come` is written before it is read."""
    problems = []
    for split in ("train", "val"):
        key, is_pattern = f"{split}_data_root_dir", needs_no_root(getattr(config, f"{split}_data_file"))
        if not is_pattern and not os.path.isdir(getattr(config, key)):  # noqa: PTH112  (a Path raises for a long name)
            problems.append(Problem(f'{key} "{getattr(config, key)}" is not a folder', (key,)))
    if config.semi and not needs_no_root(config.unlabelled_data_file):
        root = config.unlabelled_data_root_dir
        if not os.path.isdir(root):  # noqa: PTH112
            sentence = f'unlabelled_data_root_dir "{root}" is not a folder, and semi "{config.semi}" needs one'
            problems.append(Problem(sentence, ("unlabelled_data_root_dir", "semi")))
    for key in ("train_data_file", "val_data_file", "unlabelled_data_file", "class_names_file"):
        if getattr(config, key) and not _is_there(getattr(config, key)):
            problems.append(Problem(f'{key} "{getattr(config, key)}" {_what_is_wrong(getattr(config, key))}', (key,)))
    problems += [
        Problem(f'distill_from "{path}" is not a file', ("distill_from",))
        for path in config.distill_from
        if path != OWN_AVERAGE and not os.path.isfile(path)  # noqa: PTH113
    ]
    written = [os.path.realpath(path) for path in (config.best_checkpoint(), config.last_checkpoint())]
    problems += [
        Problem(f'distill_from "{path}" would be written over by this training', ("distill_from", "save_path"))
        for path in config.distill_from
        if os.path.isfile(path) and os.path.realpath(path) in written  # noqa: PTH113
    ]
    mode, weights = config.train_mode, config.start_weights()
    if config.starts_from_file() and weights != to_come and not os.path.exists(weights):  # noqa: PTH110
        own = () if config.pretrained_file else ("save_path", "save_name")
        keys = ("train_mode", "pretrained_path", "pretrained_file", *own)
        problems.append(Problem(f'train_mode "{mode}" starts from "{weights}", which is not a file', keys))
    return problems


def needs_no_root(list_file: str) -> bool:
    """Return whether a list is a pattern of a pack's shards, or is meant for one."""
    return list_file.endswith(PACK_ENDING) or ("*" in list_file and not _is_there(list_file))


def _what_is_wrong(file: str) -> str:
    """Return what is said of a list, or a pattern of shards, that is not there."""
    if not needs_no_root(file):
        return "is not a file"
    if not file.endswith(PACK_ENDING):
        return f"is a pattern, and one of a pack's shards must end in {PACK_ENDING}, such as packs/P-*{PACK_ENDING}"
    folder = os.path.dirname(file) or "."  # noqa: PTH120
    found = glob.glob(f"{folder}/*-of-*{PACK_ENDING}")  # noqa: PTH207
    packs = sorted({Path(path).name.rpartition("-of-")[0].rpartition("-")[0] for path in found})
    return f"fits no shard; in {folder} " + (f"are the packs {', '.join(packs[:5])}" if packs else "are none")


def _is_there(file: str) -> bool:
    """Return whether a file is there, or for a pattern of a pack's shards any of them; an address is not asked."""
    if file.endswith(PACK_ENDING):
        return "://" in file or bool(glob.glob(file))  # noqa: PTH207  (the folder may be a pattern, too)
    return os.path.isfile(file)  # noqa: PTH113


def _of_pixels(config: Config) -> Iterator[Row]:
    channels, std = config.num_channels, config.std
    for key, values in (("mean", config.mean), ("std", std)):
        sentence = f"{key} must have num_channels ({channels}) entries, got {len(values)}"
        yield len(values) not in (0, channels), sentence, (key, "num_channels")
    yield min(std, default=1) < LEAST_STD, f"std must be at least {LEAST_STD:g}, got {std}", ("std",)
    if isinstance(config.band_range, list):
        sentence = f"band_range must have num_channels ({channels}) entries, got {len(config.band_range)}"
        yield len(config.band_range) != channels, sentence, ("band_range", "num_channels")
        are_ranges = all(len(limits) == 2 and limits[0] < limits[1] for limits in config.band_range)
        sentence = f"band_range must have [low, high] with low < high for each band, got {config.band_range}"
        yield not are_ranges, sentence, ("band_range",)
    sentence = "band_type is for images of bands: set band_range, or leave it out"
    yield bool(config.band_type) and not config.has_bands(), sentence, ("band_type", "band_range", "num_channels")
    if channels not in (1, 3):
        got = f"num_channels {channels}"
        sentence = f"auto_augment is a policy for colours, and {got} is for bands"
        yield bool(config.auto_augment), sentence, ("auto_augment", "num_channels")
        sentence = f"random_grayscale is for images of 3 channels, got {got}"
        yield config.random_grayscale > 0, sentence, ("random_grayscale", "num_channels")
        sentence = f'augment_on "device" is for images of 1 or 3 channels, got {got}'
        yield config.augment_on == "device" and config.data_aug, sentence, ("augment_on", "num_channels")


def _of_packs(config: Config) -> Iterator[Row]:
    shards, key = config.streamed_shards, "streamed_shards"
    yield shards == 1, "streamed_shards must be 0, or at least 2: one is read while the next one comes", (key,)
    if not shards:
        return
    is_pack = config.train_data_file.endswith(PACK_ENDING)
    sentence = f'streamed_shards is for packs, not for train_data_file "{config.train_data_file}"'
    yield not is_pack, sentence, (key, "train_data_file")
    for other in ("balanced_sampling", "mosaic", "mixup_boxes", "copy_paste"):
        sentence = f"{other} draws from all images, and streamed_shards has few at a time; leave one out"
        yield bool(getattr(config, other)), sentence, (key, other)


def _of_augmentation(config: Config) -> Iterator[Row]:
    for key in ("random_crop_scale", "random_crop_ratio"):
        low, high = getattr(config, key)
        got = f"got [{low:g}, {high:g}]"
        yield not 0 < low <= high, f"{key} must be [low, high] with 0 < low <= high, {got}", (key,)
    yield low < 0.01 or high > 100, f"random_crop_ratio must be within 0.01 and 100, {got}", ("random_crop_ratio",)
    largest = config.random_crop_scale[1]
    yield largest > 1, f"random_crop_scale must be at most 1, got {largest:g}", ("random_crop_scale",)
    jitter = config.color_jitter
    sentence = f"color_jitter must be within 0 and 10, its hue at most 0.5, got {jitter}"
    yield min(jitter) < 0 or max(jitter) > 10 or jitter[3] > 0.5, sentence, ("color_jitter",)
    keys = ("quarter_turns", "img_height", "img_width")
    sides = f"{config.img_height} and {config.img_width}"
    sentence = f"quarter_turns swap height and width, which must be equal, got {sides}"
    yield config.quarter_turns and config.img_height != config.img_width, sentence, keys
    is_on_device = config.augment_on == "device"
    for key in ON_CPU_ONLY:
        sentence = f'{key} is for one image at a time; set augment_on to "cpu", or leave it out'
        yield is_on_device and bool(getattr(config, key)), sentence, (key, "augment_on")
    sentence = f'augment_on "device" crops bilinearly, not by "{config.interpolation}"'
    yield is_on_device and config.interpolation != "bilinear", sentence, ("augment_on", "interpolation")


def _of_classes(config: Config) -> Iterator[Row]:
    weights = config.class_weights
    if isinstance(weights, list):
        sentence = f"class_weights must have num_classes ({config.num_classes}) entries, got {len(weights)}"
        yield len(weights) != config.num_classes, sentence, ("class_weights", "num_classes")
        sentence = f"class_weights must be at least 0 and not all 0, got {short_json(weights)}"
        yield min(weights, default=0) < 0 or not any(weights), sentence, ("class_weights",)
    sentence = "balanced_sampling and class_weights both make up for rare classes; use one"
    yield config.balanced_sampling and bool(weights), sentence, ("balanced_sampling", "class_weights")


def _of_the_net(config: Config) -> Iterator[Row]:
    is_simsiam = config.learns_without_labels()
    sentence = "horizontal_flip_alternates would mirror both of SimSiam's views alike; use horizontal_flip"
    yield config.horizontal_flip_alternates and is_simsiam, sentence, ("horizontal_flip_alternates", *NET)
    has_more_than_logits = is_simsiam or config.model_module_name == "pim_module"
    name = config.model_net_name
    sentence = f"test_time_views is for nets that are validated by their logits alone, not for {name}"
    yield config.test_time_views > 1 and has_more_than_logits, sentence, ("test_time_views", *NET)
    cannot_learn = has_more_than_logits or config.model_module_name == "torchvision_detectors_module"
    sentence = f"distill_from is for nets whose outputs are learnt as they are, not for {name}"
    yield bool(config.distill_from) and cannot_learn, sentence, ("distill_from", *NET)
    learns_itself = OWN_AVERAGE in config.distill_from
    sentence = f'distill_from "{OWN_AVERAGE}" is the average of the weights; set ema_decay, such as to 0.99'
    yield learns_itself and not config.ema_decay, sentence, ("distill_from", "ema_decay")
    reviews = bool(config.distill_from) and config.distill_method == "review"
    sentence = f'distill_method "review" learns other nets\' feature maps, not those of "{OWN_AVERAGE}"'
    yield reviews and learns_itself, sentence, ("distill_method", "distill_from")
    sentence = 'distill_method "review" looks into the net, which compile does not allow; leave one out'
    yield reviews and bool(config.compile), sentence, ("distill_method", "compile")
    mixes = bool(config.mixup_alpha or config.cutmix_alpha)
    sentence = 'distill_method "dkd" needs one class an image; leave mixup_alpha and cutmix_alpha out, or use "logits"'
    is_mixed = bool(config.distill_from) and config.distill_method == "dkd" and mixes
    yield is_mixed, sentence, ("distill_method", "mixup_alpha", "cutmix_alpha")
    inner = config.model_args.get("model_type", config.model_type)
    sentence = f'model_type is "{config.model_type}" but model_args.model_type is "{inner}"; keep one'
    yield config.model_type not in ("", inner), sentence, ("model_type", "model_args")
    sentence = f'fit_head is for train_mode "finetune", not for "{config.train_mode}"'
    yield config.fit_head and config.train_mode != "finetune", sentence, ("fit_head", "train_mode")
    keys = ("train_mode", "pretrained_file")
    sentence = 'train_mode "finetune" needs pretrained_file: a weights file, "package:NAME" or "torchvision"'
    yield config.train_mode == "finetune" and not config.pretrained_file, sentence, keys
    sentence = 'train_mode "update" goes on with the net\'s own weights; use "finetune" for published ones'
    yield config.train_mode == "update" and not config.starts_from_file(), sentence, keys


def _of_unlabelled_images(config: Config) -> Iterator[Row]:
    semi, name = f'semi "{config.semi}"', config.model_net_name
    for key in ("unlabelled_data_root_dir", "unlabelled_data_file"):
        sentence = f'{key} is for images without labels that semi learns from; set it to "fixmatch" or "mpl"'
        yield not config.semi and bool(getattr(config, key)), sentence, (key, "semi")
    if not config.semi:
        return
    has_more_than_logits = config.learns_without_labels() or config.model_module_name == "pim_module"
    sentence = f"{semi} is for nets that are trained by their logits alone, not for {name}"
    yield has_more_than_logits, sentence, ("semi", *NET)
    sentence = f"data_aug cannot be off: {semi} compares a weak and a strong view of an image"
    yield not config.data_aug, sentence, ("data_aug", "semi")
    sentence = f"distill_from and {semi} both teach the net beside its labels; put one of them into next_stage"
    yield bool(config.distill_from), sentence, ("distill_from", "semi")
    sentence = f"compile is for nets that are trained by labels alone, not with {semi}"
    yield bool(config.compile), sentence, ("compile", "semi")
    sentence = 'semi "mpl" multiplies gradients that fp16 would lose; set precision to "auto"'
    yield config.semi == "mpl" and config.precision == "fp16", sentence, ("precision", "semi")


def _of_names(config: Config) -> Iterator[Row]:
    gpus = [part.strip() for part in config.gpu_id.split(",")] if config.gpu_id not in ("", "cpu") else []
    are_numbers = all(gpu.isdecimal() for gpu in gpus)
    yield not are_numbers, f'gpu_id must be "0", several as "0,1", or "cpu", got "{config.gpu_id}"', ("gpu_id",)
    is_twice = are_numbers and len(set(map(int, gpus))) < len(gpus)
    yield is_twice, f'gpu_id names a GPU twice, got "{config.gpu_id}"', ("gpu_id",)
    name = config.save_name
    is_plain = Path(name).name == name and name not in (".", "..")
    yield not is_plain, f'save_name is a file name without folders, got "{name}"; put them in save_path', ("save_name",)
    is_taken = name.startswith(("report.json", "report.html"))
    yield is_taken, f'save_name cannot be the name of a report, got "{name}"', ("save_name",)


def _of_the_schedule(config: Config) -> Iterator[Row]:
    warmup, epochs = config.warmup_epochs, config.num_epochs
    sentence = f"warmup_epochs must not exceed num_epochs, got {warmup:g} > {epochs}"
    yield warmup > epochs, sentence, ("warmup_epochs", "num_epochs")
    low, high = config.min_learning_rate, config.learning_rate
    sentence = f"min_learning_rate must not exceed learning_rate, got {low:g} > {high:g}"
    yield low > high, sentence, ("min_learning_rate", "learning_rate")
