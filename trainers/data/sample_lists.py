"""The two sample lists that a config names, as its net learns from them; needs no torch."""

from __future__ import annotations

from artifacts.metadata import class_names_of
from configs.schema import Config
from data_loader.samples import ListError, SampleList, read_class_folders, read_list, read_unlabelled


def read_lists(config: Config, *, check_files: bool = True) -> tuple[SampleList, SampleList]:
    """Read the training and the validation list; `check_files` finds images that are not there. Raises ListError."""
    names = class_names_of(config)
    if not config.learns_without_labels():
        train = _read_split(config, config.train_data_file, config.train_data_root_dir, names, check_files)
        names = train.class_names
        return train, _read_split(config, config.val_data_file, config.val_data_root_dir, names, check_files)
    val = _read_split(config, config.val_data_file, config.val_data_root_dir, names, check_files)
    train = read_unlabelled(
        config.train_data_file,
        config.train_data_root_dir,
        config.file_label_separator,
        val.class_names,
        check_files=check_files,
        allow_outside_root=config.allow_outside_root,
    )
    return train, val


def _read_split(config: Config, list_file: str, root: str, names: tuple[str, ...], check_files: bool) -> SampleList:
    if list_file:
        return read_list(
            list_file,
            root,
            config.file_label_separator,
            config.num_classes,
            names,
            check_files=check_files,
            allow_outside_root=config.allow_outside_root,
        )
    samples = read_class_folders(root, names)
    if len(samples.class_names) != config.num_classes:
        found = len(samples.class_names)
        raise ListError([f"{root}: {found} class folders, but num_classes is {config.num_classes}"])
    return samples
