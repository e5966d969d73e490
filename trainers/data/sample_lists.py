"""The two sample lists that a config names, as its net learns from them; needs no torch."""

from __future__ import annotations

from artifacts.metadata import class_names_of
from configs.schema import Config
from data_loader.list_reader import read_target_list, read_unlabelled
from data_loader.samples import SampleList
from data_loader.targets import ClassLabel, Target


def read_lists(
    config: Config, target: Target | None = None, *, check_files: bool = True
) -> tuple[SampleList, SampleList]:
    """Return the training and the validation list; without a target their classes' labels are read.

    `check_files` finds images that are not there. Raises ListError.
    """
    target = target or ClassLabel(config.num_classes, class_names_of(config))
    if not config.learns_without_labels():
        train = _read_split(config, config.train_data_file, config.train_data_root_dir, target, check_files)
        target = target.settled(train)
        return train, _read_split(config, config.val_data_file, config.val_data_root_dir, target, check_files)
    val = _read_split(config, config.val_data_file, config.val_data_root_dir, target, check_files)
    train = read_unlabelled(
        config.train_data_file,
        config.train_data_root_dir,
        config.file_label_separator,
        val.class_names,
        check_files=check_files,
        allow_outside_root=config.allow_outside_root,
    )
    return train, val


def _read_split(config: Config, list_file: str, root: str, target: Target, check_files: bool) -> SampleList:
    if not list_file:
        return target.read_folder(root)
    return read_target_list(
        list_file,
        root,
        config.file_label_separator,
        target,
        check_files=check_files,
        allow_outside_root=config.allow_outside_root,
    )
