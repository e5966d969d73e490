"""Which images a list means, and which of the net's labels they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from artifacts.metadata import ModelMetadata
from artifacts.sample_sources import FoundSamples, SamplesError, config_samples, listed_samples
from configs.schema import Config
from data_loader.preprocess import Preprocess
from data_loader.samples import NO_LABEL, ListError

NET = {"module": "resnet_module", "name": "resnet18", "args": {}}
NAMES = ("apple", "pear", "quince")


def metadata_of(*names: str) -> ModelMetadata:
    return ModelMetadata(names, Preprocess(8, 8), NET)


def config_of(root: Path, **changes: Any) -> Config:
    net = {"model_module_name": "resnet_module", "model_net_name": "resnet18", "num_classes": 3}
    folders = {"train_data_root_dir": str(root / "train"), "val_data_root_dir": str(root / "val")}
    return Config.model_validate(net | folders | changes)


def write_images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def write_list(folder: Path, labels: dict[str, int], name: str = "list.txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{path}----{label}\n" for path, label in labels.items()))
    return folder / name


def labels_of(found: FoundSamples) -> list[int]:
    return [sample.label for sample in found.samples]


# --- whose images


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    """Make three splits whose files have the same names."""
    for split in ("train", "val", "test"):
        write_images(tmp_path / split, "images/0.png", "images/1.png")
        write_list(tmp_path / split, {"images/0.png": 0, "images/1.png": 1})
    return tmp_path


def test_a_list_means_the_images_beside_it(splits: Path) -> None:
    """The config's roots hold files of the same names; the first of its roots was taken before."""
    config = config_of(splits, val_data_file=str(splits / "val/list.txt"))
    for split in ("test", "val", "train"):
        found = listed_samples(splits / split / "list.txt", config, metadata_of(*NAMES))
        assert found.samples[0].path == f"{splits}/{split}/images/0.png"
        assert str(found) == f"{splits}/{split}/list.txt (images below {splits}/{split})"


def test_the_configs_own_list_is_read_as_in_training(splits: Path) -> None:
    own = write_list(splits / "test", {"images/0.png": 0}, "val.txt")
    config = config_of(splits, val_data_file=str(own))
    assert listed_samples(own, config, metadata_of(*NAMES)).root == f"{splits}/val"


def test_several_roots_that_fit_are_asked_for(splits: Path) -> None:
    lists = write_list(splits / "lists", {"images/0.png": 0, "images/1.png": 1})
    with pytest.raises(SamplesError) as caught:
        listed_samples(lists, config_of(splits), metadata_of(*NAMES), flag="--calibrate")
    assert str(caught.value) == (
        f"{lists}: images of these names lie below {splits}/val and {splits}/train; name the right one with --list_root"
    )
    assert listed_samples(lists, config_of(splits), metadata_of(*NAMES), splits / "test").root == f"{splits}/test"
    one_root = config_of(splits, train_data_root_dir=str(splits / "val/../val"))  # the same folder twice
    assert listed_samples(lists, one_root, metadata_of(*NAMES)).root == f"{splits}/val"


def test_a_list_that_lost_images_does_not_take_another_splits(splits: Path) -> None:
    (splits / "test/images/1.png").unlink()
    with pytest.raises(SamplesError, match=r"lie below .*/test and .*/val and .*/train; name the right"):
        listed_samples(splits / "test/list.txt", config_of(splits), metadata_of(*NAMES))


# --- whose labels


def test_classes_txt_beside_a_list_decides_what_its_labels_mean(tmp_path: Path) -> None:
    write_images(tmp_path, "0.png", "1.png", "2.png")
    listed = write_list(tmp_path, {"0.png": 0, "1.png": 1, "2.png": 2})
    classes = tmp_path / "classes.txt"
    for text, labels in (
        ("quince\napple\npear", [2, 0, 1]),
        ("apple\npear\nquince", [0, 1, 2]),
        ("0\n1\n2", [0, 1, 2]),
    ):
        classes.write_text(text)
        found = listed_samples(listed, None, metadata_of(*NAMES))
        assert (labels_of(found), found.note) == (labels, "")
        assert labels_of(config_samples(str(listed), str(tmp_path), config_of(tmp_path), metadata_of(*NAMES))) == labels
    classes.write_text("apple\nplum\nquince")
    found = listed_samples(listed, None, metadata_of(*NAMES))
    assert labels_of(found) == [0, 1, 2]
    assert found.note == (
        f'warning: {listed}: class 1 is "plum" here, "pear" in the net; its labels are taken as the net\'s'
    )
    classes.write_text("plum\napple\nquince")
    with pytest.raises(ListError) as caught:
        listed_samples(listed, None, metadata_of(*NAMES))
    assert str(caught.value) == (
        f"{listed}: its classes are not the net's: "
        'in both: "apple", "quince"; new here: "plum"; only in the net: "pear"'
    )


def test_a_list_of_some_classes_has_the_nets_labels(tmp_path: Path) -> None:
    write_images(tmp_path, "0.png", "1.png")
    listed = write_list(tmp_path, {"0.png": 0, "1.png": 1})
    (tmp_path / "classes.txt").write_text("pear\nquince\n")
    assert labels_of(listed_samples(listed, None, metadata_of(*NAMES))) == [1, 2]


def test_class_names_file_of_the_config_names_its_own_lists(tmp_path: Path) -> None:
    write_images(tmp_path / "val", "0.png")
    listed = write_list(tmp_path, {"0.png": 0})
    (tmp_path / "names.txt").write_text("quince\napple\npear")
    (tmp_path / "classes.txt").write_text("apple\npear\nquince")
    config = config_of(tmp_path, val_data_file=str(listed), class_names_file=str(tmp_path / "names.txt"))
    assert labels_of(listed_samples(listed, config, metadata_of(*NAMES))) == [2]


@pytest.mark.parametrize("names", [("0", "1", "2"), ("1", "2", "10")])
def test_folders_named_by_numbers_where_a_split_lacks_one(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Labels 1 and 2 of three; the natural order of the two folders would give 0 and 1."""
    for split in ("val", "train"):
        write_images(tmp_path / split, f"{names[1]}/a.png", f"{names[2]}/a.png")
    config, metadata = config_of(tmp_path), metadata_of(*names)
    assert labels_of(config_samples("", str(tmp_path / "val"), config, metadata)) == [1, 2]
    assert labels_of(config_samples("", str(tmp_path / "train"), config, metadata)) == [1, 2]
    assert labels_of(listed_samples(tmp_path / "val", config, metadata)) == [1, 2]


def test_folders_of_a_net_whose_classes_have_no_names(tmp_path: Path) -> None:
    """Bare weights: all folders in their natural order are the classes, as in training; two of three tell nothing."""
    write_images(tmp_path, "all/cat/a.png", "all/dog/a.png", "all/eel/a.png", "some/dog/a.png", "some/eel/a.png")
    metadata = metadata_of("0", "1", "2")
    assert labels_of(config_samples("", str(tmp_path / "all"), config_of(tmp_path), metadata)) == [0, 1, 2]
    assert labels_of(listed_samples(tmp_path / "all", None, metadata)) == [0, 1, 2]
    with pytest.raises(ListError, match='folder "dog" is not one of the 3 class names'):
        config_samples("", str(tmp_path / "some"), config_of(tmp_path), metadata)


def test_a_folder_without_labels_says_why(tmp_path: Path) -> None:
    write_images(tmp_path, "a/apple/0.png", "a/plum/0.png", "b/apple/0.png", "b/1.png", "c/x/0.png")
    metadata = metadata_of(*NAMES)
    notes = {}
    for name in "abc":
        found = listed_samples(tmp_path / name, None, metadata)
        assert set(labels_of(found)) == {NO_LABEL}
        notes[name] = found.note
    assert notes == {
        "a": f'{tmp_path}/a: its images have no labels: folder "plum" is none of the net\'s classes',
        "b": f"{tmp_path}/b: its images have no labels: images lie beside its class folders",
        "c": "",
    }


def test_images_of_masks_have_no_labels(tmp_path: Path) -> None:
    metadata = ModelMetadata(NAMES, Preprocess(8, 8), NET, output="mask_logits")
    write_images(tmp_path / "val", "images/0.png", "images/1.png", "labels/0.png", "labels/1.png")
    (tmp_path / "val" / "list.txt").write_text("images/0.png----labels/0.png\nimages/1.png----labels/1.png\n")
    expected = [str(tmp_path / "val" / "images" / name) for name in ("0.png", "1.png")]
    config = config_of(tmp_path, val_data_file=str(tmp_path / "val" / "list.txt"))
    of_list = config_samples(config.val_data_file, config.val_data_root_dir, config, metadata)
    of_folders = config_samples("", config.val_data_root_dir, config, metadata)
    named = listed_samples(tmp_path / "val" / "list.txt", None, metadata)
    loose = listed_samples(tmp_path / "val" / "images", None, metadata)
    for found in (of_list, of_folders, named, loose):
        assert [sample.path for sample in found.samples] == expected
        assert labels_of(found) == [NO_LABEL, NO_LABEL]
