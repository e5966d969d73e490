"""The two sample lists that a config names, as its net learns from them; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifacts.class_names import compared, labels_by_name
from artifacts.metadata import class_names_of
from configs.schema import Config
from data_loader.list_reader import read_target_list, read_unlabelled
from data_loader.pack_list import read_pack
from data_loader.packs import is_pack
from data_loader.remote_packs import local_packs
from data_loader.samples import CLASS_NAMES_FILE, ListError, SampleList, names_beside
from data_loader.targets import ClassLabel, Target


def read_lists(
    config: Config, target: Target | None = None, *, check_files: bool = True
) -> tuple[SampleList, SampleList]:
    """Return the training and the validation list; without a target their classes' labels are read.

    `check_files` finds images that are not there. Raises ListError.
    """
    config = local_packs(config)
    target = target or ClassLabel(config.num_classes, class_names_of(config))
    if not config.learns_without_labels():
        train = _read_split(config, config.train_data_file, config.train_data_root_dir, target, check_files)
        target = target.settled(train)
        _check_names(config.val_data_file, train.class_names, config)
        return train, _read_split(config, config.val_data_file, config.val_data_root_dir, target, check_files)
    val = _read_split(config, config.val_data_file, config.val_data_root_dir, target, check_files)
    if is_pack(config.train_data_file):
        return read_pack(config.train_data_file, target.settled(val), needs_target=False), val
    train = read_unlabelled(
        config.train_data_file,
        config.train_data_root_dir,
        config.file_label_separator,
        val.class_names,
        check_files=check_files,
        allow_outside_root=config.allow_outside_root,
    )
    return train, val


def read_unlabelled_list(config: Config, class_names: Sequence[str], *, check_files: bool = True) -> SampleList | None:
    """Return the images that `semi` learns from without labels, None where it is off. Raises ListError."""
    if not config.semi:
        return None
    config = local_packs(config)
    file = config.unlabelled_data_file
    if is_pack(file):
        return read_pack(file, ClassLabel(len(class_names), tuple(class_names)), needs_target=False)
    return read_unlabelled(
        file,
        config.unlabelled_data_root_dir,
        config.file_label_separator,
        class_names,
        check_files=check_files,
        allow_outside_root=config.allow_outside_root,
    )


def _check_names(list_file: str, class_names: Sequence[str], config: Config) -> None:
    """Raise ListError where classes.txt beside the validation list gives its labels to other classes."""
    own = names_beside(list_file) if list_file and class_names else ()
    if not own or (config.class_names_file and set(own) != set(class_names)):
        return
    if labels_by_name(own, class_names) != tuple(range(len(class_names))):
        file = Path(list_file).parent / CLASS_NAMES_FILE
        raise ListError([f"{file}: its classes are not the training list's: {compared(own, class_names, 'training')}"])


def _read_split(config: Config, list_file: str, root: str, target: Target, check_files: bool) -> SampleList:
    if not list_file:
        return target.read_folder(root)
    if is_pack(list_file):
        return target.completed(read_pack(list_file, target))
    is_free = config.allow_outside_root
    if (found := target.read_annotations(list_file, root, allow_outside_root=is_free)) is not None:
        return found
    samples = read_target_list(
        list_file, root, config.file_label_separator, target, check_files=check_files, allow_outside_root=is_free
    )
    return target.completed(samples)
