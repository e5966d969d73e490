"""What a net starts from: published weights or a file's, beside the classes and the preprocessing of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from artifacts.checkpoint import WeightsFile, load_weights_file
from artifacts.class_names import are_numbers, compared, labels_by_name, listed, renamed
from artifacts.errors import CheckpointError
from artifacts.outputs import WITH_CLASSES
from artifacts.weights_packages import is_package, package_file, weights_package
from configs.schema import Config
from nets.support.pretrained import (
    KeptRows,
    LoadReport,
    load_start_weights,
    published_normalization,
    published_state_dict,
    reordered_head,
)
from trainers.tasks.table import task_of_config
from trainers.timm_weights import published_preprocess

Log = Callable[[str], None]
OF_UPDATE = ("channels", "mean", "std", "resize", "interpolation", "height", "width", "icc_profiles", "band_range")
OF_FINETUNE = ("channels", "mean", "std", "band_range")  # a new head may learn other sizes
TOLERANCE = 1e-4  # of a mean and a std, which files write with three digits


def load_into(net: nn.Module, config: Config, class_names: Sequence[str], log: Log) -> LoadReport:
    """Load the start weights of a config into a net, and log what was loaded and what does not go with the config.

    `class_names` are those of the training's lists; "update" puts the rows of the head into their order. Raises
    NetError, CheckpointError.
    """
    is_update = config.train_mode == "update"
    rows: KeptRows | None = None
    if config.pretrained_file == "torchvision":
        arguments = config.model_module_name, config.model_net_name, config.net_args()
        state, wanted = published_state_dict(*arguments), published_normalization(*arguments)
    elif is_package(config.pretrained_file):
        package = weights_package(config.pretrained_file)
        state = load_weights_file(package_file(config.pretrained_file)).weights
        wanted = {"mean": package.mean, "std": package.std}
    else:
        file = load_weights_file(config.start_weights())
        state, wanted = file.weights, published_preprocess(config)
        if file.note:
            log(f"{config.start_weights()}: {file.note}")
        if file.metadata is not None:
            values = vars(file.metadata.preprocess)
            wanted = {key: values[key] for key in (OF_UPDATE if is_update else OF_FINETUNE)}
        if is_update and class_names:
            state = _for_classes(net, file, class_names, config, log)
        elif not is_update:
            rows = _kept_rows(file, class_names, config)
    for line in other_preprocessing(wanted, config):
        log(line)
    report = load_start_weights(net, state, new_head=not is_update, kept_rows=rows)
    log(report.summary())
    if report.kept_rows:
        log(_kept_text(report.kept_rows, class_names))
    return report


def other_preprocessing(wanted: Mapping[str, Any], config: Config) -> list[str]:
    """Return a warning for each value that start weights were trained with and that a config has otherwise."""
    own = vars(task_of_config(config).preprocess(config))
    source = str(config.start_weights()) if config.starts_from_file() else "published weights"
    return [
        f"warning: {source}: trained with {key} {_text(value)}, but the config has {key} {_text(own[key])}"
        for key, value in wanted.items()
        if not (_are_equal(value, own[key]) or (key in ("mean", "std") and config.has_bands()))  # those are measured
    ]


def _for_classes(
    net: nn.Module, weights: WeightsFile, class_names: Sequence[str], config: Config, log: Log
) -> dict[str, torch.Tensor]:
    """Return the weights with the head's rows in the order of the classes. Raises CheckpointError for other classes."""
    file, state, its_names = config.start_weights(), weights.weights, weights.class_names
    if not its_names and weights.metadata is None:
        log(f"warning: {file} names no classes: its head is taken for {listed(class_names)}, in this order")
        return state
    if not _has_classes(weights):
        _check_dense_classes(weights, class_names, config)
        return state
    rows = labels_by_name(class_names, its_names)
    if rows is None or len(rows) != len(its_names):
        raise CheckpointError(
            f"{file}: its classes are not the lists': {compared(class_names, its_names)}; "
            'train_mode "finetune" takes the weights, and the head\'s rows of the classes in both'
        )
    if rows != tuple(range(len(rows))):
        log(f"{file}: {compared(class_names, its_names)}; the head's rows are put into the lists' order")
        return reordered_head(net, state, rows, _example(config))
    if text := renamed(class_names, its_names):
        log(f"warning: {file}: {text}; the weights go on under the new names, all other classes are kept")
    elif are_numbers(class_names) and not are_numbers(its_names):
        log(f"warning: the lists name no classes: {listed(its_names)} of {file} are called by their labels")
    return state


def _check_dense_classes(weights: WeightsFile, class_names: Sequence[str], config: Config) -> None:
    """Raise CheckpointError where a net of masks or boxes has other classes than the lists, or another order."""
    its_names = weights.class_names
    if weights.metadata is None or weights.metadata.output not in WITH_CLASSES:
        return
    if labels_by_name(class_names, its_names) != tuple(range(len(its_names))):
        raise CheckpointError(
            f"{config.start_weights()}: its classes are not the lists', in their order: "
            f'{compared(class_names, its_names)}; train_mode "finetune" takes the weights with a new head'
        )


def _kept_rows(weights: WeightsFile, class_names: Sequence[str], config: Config) -> KeptRows | None:
    """Return the classes of the lists that a file knows by name; None where it has none.

    Numbers are no names. `fit_head` fits all rows to the training images, so that it keeps none.
    """
    its_names = weights.class_names
    if config.fit_head or not _has_classes(weights) or are_numbers(class_names) or are_numbers(its_names):
        return None
    labels = {label: its_names.index(name) for label, name in enumerate(class_names) if name in its_names}
    return KeptRows(labels, len(its_names))


def _has_classes(weights: WeightsFile) -> bool:
    """Return whether the outputs of the net that a file is of are its classes."""
    return bool(weights.class_names) and (weights.metadata is None or weights.metadata.output == "logits")


def _kept_text(kept: Sequence[int], class_names: Sequence[str]) -> str:
    """Return which classes keep their row of the head, and which begin anew, in one line."""
    names = [class_names[label] for label in kept]
    new = [name for label, name in enumerate(class_names) if label not in kept]
    text = f"the head's rows of {len(names)} of {len(class_names)} classes are kept by name: {listed(names)}"
    return text + (f"; new: {listed(new)}" if new else "")


def _example(config: Config) -> torch.Tensor:
    """Return an input of the net (1, C, H, W) on which its outputs differ."""
    generator = torch.Generator().manual_seed(0)
    channels = task_of_config(config).preprocess(config).channels
    return torch.randn(1, channels, config.img_height, config.img_width, generator=generator)


def _are_equal(value: Any, own: Any) -> bool:
    if not isinstance(value, tuple) or any(isinstance(number, tuple) for number in (*value, *own)):
        return bool(value == own)
    if len(value) != len(own):  # grey beside colour: the first convolution takes the sum over the channels
        value, own = (sum(value) / len(value),), (sum(own) / len(own),)
    return all(abs(a - b) < TOLERANCE for a, b in zip(value, own, strict=True))


def _text(value: Any) -> str:
    return "[" + ", ".join(map(_text, value)) + "]" if isinstance(value, tuple) else _plain(value)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
