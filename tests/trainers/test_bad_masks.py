"""Label sets with a mistake: each is told in one sentence before anything is trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import train
from configs.loading import process_config
from tests.helpers.masks import CLASSES, SIZE, mask_nets, write_config, write_scenes
from trainers.data.reading import read_data
from trainers.runtime.distributed import World

Break = Callable[[Path], Any]
LABELS = ("00.png", "01.png", "02.png")


@pytest.fixture(autouse=True)
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mask_nets(tmp_path, monkeypatch):
        yield


def each_label(change: Callable[[np.ndarray], Any], splits: tuple[str, ...] = ("train",)) -> Break:
    """Return what replaces every label image of some splits, uint8 (H, W) of values, by an image or pixels."""

    def replace(folder: Path) -> None:
        for split in splits:
            for path in sorted((folder / split / "labels").iterdir()):
                changed = change(np.asarray(Image.open(path)))
                image = changed if isinstance(changed, Image.Image) else Image.fromarray(changed)
                image.save(path)

    return replace


def first_label(write: Callable[[Path], Any]) -> Break:
    return lambda folder: write(folder / "train/labels/00.png")


def painted(colours: dict[int, tuple[int, int, int]]) -> Callable[[np.ndarray], np.ndarray]:
    table = np.zeros((256, 3), np.uint8)
    for value, colour in colours.items():
        table[value] = colour
    return lambda values: table[values]


def with_palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values + 20).convert("P")
    image.putdata((values + 20).ravel().tolist())
    image.putpalette([9, 8, 7] * 256)
    return image


def move(source: str, goal: str) -> Break:
    return lambda folder: shutil.move(folder / source, folder / goal)


def listed(text: str) -> Break:
    """Return what makes a list of the training images, and one more line."""

    def write(folder: Path) -> None:
        lines = [f"train/images/{name}----train/labels/{name}" for name in LABELS]
        (folder / "train.txt").write_text("\n".join([*lines, text]), encoding="utf-8")

    return write


def as_jpeg(folder: Path) -> None:
    for path in sorted((folder / "train/labels").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"))
        path.unlink()


def hidden_jpeg(path: Path) -> None:
    Image.open(path).save(path, format="JPEG")


def boxes(folder: Path) -> None:
    for path in (folder / "train/labels").iterdir():
        path.rename(path.with_suffix(".xml"))


def as_pairs(folder: Path) -> None:
    for name in "AB":
        shutil.copytree(folder / "train/images", folder / "train" / name)
    shutil.rmtree(folder / "train/images")


def into_another_folder(folder: Path) -> None:
    (folder / "other").mkdir()
    shutil.move(folder / "train", folder / "other/train")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


VOID_COLOURS = painted({0: (1, 2, 3), 3: (110, 193, 228), 7: (0, 0, 255)})
NEAR_COLOURS = painted({0: (154, 155, 155), 3: (110, 193, 229), 7: (0, 0, 254)})
CASES: dict[str, tuple[Break, str]] = {
    "a void colour": (each_label(VOID_COLOURS), "of the pixels are of no class (20% may be): colour 1,2,3 ("),
    "no known colour": (each_label(NEAR_COLOURS), "no pixel of any mask is of a class: found colour 154,155,155 ("),
    "0 and 255": (each_label(lambda values: (values == 0).astype(np.uint8) * 255), "(20% may be): value 255 ("),
    "values from 1": (each_label(lambda values: values + 1), "no pixel of any mask is of a class: found value 1 ("),
    "another palette": (each_label(with_palette), "no pixel of any mask is of a class: found colour 9,8,7 ("),
    "one class alone": (each_label(lambda values: values * 0), 'every pixel of every mask is of class "ground"'),
    "held out, too": (
        each_label(lambda values: values * 0, ("valid",)),
        "valid: every pixel of every mask is of class",
    ),
    "JPEG labels": (as_jpeg, "labels/00.jpg: a label image cannot be JPEG, which changes values and colours; save it"),
    "JPEG named png": (first_label(hidden_jpeg), "labels/00.png: a label image cannot be JPEG"),
    "a cut file": (first_label(cut), "labels/00.png: it is damaged"),
    "an empty file": (first_label(lambda path: path.write_bytes(b"")), "labels/00.png: it is empty (0 bytes)"),
    "a text": (first_label(lambda path: path.write_text("no image")), "it is not an image of a known format"),
    "another size": (
        first_label(lambda path: Image.new("L", (20, 20)).save(path)),
        f"labels/00.png is 20x20, the image {SIZE[0]}x{SIZE[1]}",
    ),
    "swapped sides": (first_label(lambda path: Image.new("L", SIZE[::-1]).save(path)), "; its sides are swapped"),
    "four inks": (
        first_label(lambda path: Image.new("CMYK", SIZE).save(path, format="TIFF")),
        "a label image of mode CMYK has no class values",
    ),
    "fractions": (
        first_label(lambda path: Image.new("F", SIZE, 0.5).save(path, format="TIFF")),
        "its values are no whole numbers",
    ),
    "a label is gone": (first_label(Path.unlink), "images/00.png: there is no mask 00.* in "),
    "an image is gone": (lambda folder: (folder / "train/images/01.png").unlink(), "there is no image 01.* in "),
    "two of a stem": (
        lambda folder: shutil.copy(folder / "train/labels/02.png", folder / "train/labels/02.bmp"),
        "has the same stem: which of them counts?",
    ),
    "no labels folder": (move("train/labels", "train/masks"), "expected the folders images/, labels/, but labels is"),
    "pairs": (as_pairs, "A/ and B/ are there: such data need a net for change detection, for pairs of images"),
    "boxes": (boxes, "it holds .xml files: boxes for object detection are no masks"),
    "a list without masks": (
        listed("train/images/03.png"),
        'train.txt:4: separator "----" is missing in "train/images',
    ),
    "a listed mask is gone": (
        listed("train/images/03.png----train/labels/99.png"),
        "train.txt:4: mask not found: ",
    ),
    "a mask outside": (listed("train/images/03.png----../03.png"), 'train.txt:4: path "../03.png" leaves the root'),
    "more classes": (
        lambda folder: (folder / "classes.json").write_text(json.dumps(CLASSES[:2])),
        "classes.json: 2 classes, but num_classes is 3",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_label_set_is_a_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, train=4, valid=2)
    spoil, sentence = CASES[name]
    spoil(tmp_path)
    lists = {"train_data_file": str(tmp_path / "train.txt"), "train_data_root_dir": str(tmp_path)}
    config = write_config(tmp_path, **(lists if (tmp_path / "train.txt").is_file() else {}))
    assert train.main(["--config", str(config)]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and "Traceback" not in captured.err
    assert "epoch" not in captured.out and not (tmp_path / "weights/net_last.pth").exists()


@pytest.mark.parametrize("bad_images", ["error", "skip"])
def test_both_splits_are_told_together(bad_images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first 20 of each, how many more there are, and every path once."""
    write_scenes(tmp_path, train=22, valid=2)
    as_jpeg(tmp_path)
    labels = tmp_path / "valid/labels"
    Image.open(labels / "00.png").convert("RGB").save(labels / "00.jpg")
    (labels / "00.png").unlink()
    assert train.main(["--config", str(write_config(tmp_path, bad_images=bad_images))]) == 2
    err = capsys.readouterr().err
    image = tmp_path / "valid/images/00.png"
    assert f"\n{image}: its mask {labels}/00.jpg: a label image cannot be JPEG" in err
    assert err.count(f"{tmp_path}/train/labels/") == 20 and "\n... and 2 more\n" in err
    assert f"{tmp_path}/train: {tmp_path}" not in err


PAIR_CASES: dict[str, tuple[Break, str]] = {
    "no second image": (lambda folder: (folder / "train/B/01.png").unlink(), "A/01.png: there is no second image 01.*"),
    "no first image": (lambda folder: (folder / "train/A/01.png").unlink(), "B/01.png: there is no image 01.* in "),
    "another size": (
        lambda folder: Image.new("RGB", (9, 9)).save(folder / "train/B/00.png"),
        f"it is {SIZE[0]}x{SIZE[1]}, but the second image ",
    ),
    "a split's parent": (
        into_another_folder,
        "other: expected the folders A/, B/, labels/, but A, B, labels is not there; its folder train is a split: name",
    ),
}


@pytest.mark.parametrize("name", PAIR_CASES)
def test_a_bad_set_of_pairs_is_a_sentence(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_scenes(tmp_path, train=4, valid=2, has_pairs=True)
    spoil, sentence = PAIR_CASES[name]
    spoil(tmp_path)
    root = tmp_path / ("other" if (tmp_path / "other").exists() else "train")
    config = write_config(tmp_path, model_net_name="TinyChange", num_classes=2, train_data_root_dir=str(root))
    assert train.main(["--config", str(config)]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("random_erasing=0.2", "random_erasing would blank pixels that the mask still names"),
        ("mixup_alpha=0.2", "mixup_alpha mixes labels of whole images, not masks"),
        ("balanced_sampling=true", "balanced_sampling draws images by their one class; use balanced_crops"),
        ("quarter_turns=true", "quarter_turns swap height and width, which must be equal, got 24 and 32"),
    ],
)
def test_keys_that_are_not_for_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str, sentence: str
) -> None:
    config = write_config(write_scenes(tmp_path, train=4, valid=2), img_width=32)
    for net in ("TinyMasks", "tiny"):  # a class, and a function that makes one
        assert train.main(["--config", str(config), "--set", change, "--set", f"model_net_name={net}"]) == 2
        assert sentence in capsys.readouterr().err


def test_bad_masks_are_skipped_and_counted(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=5, valid=2)
    cut(tmp_path / "train/labels/03.png")
    lines: list[str] = []
    config = process_config(write_config(tmp_path, bad_images="skip", max_bad_share=0.2))
    samples, _, skipped = read_data(config, World(), lines.append)
    assert len(samples.samples) == 4 and [row["path"][-6:] for row in skipped] == ["03.png"]
    assert "1 of 5 images cannot be read and are skipped" in "\n".join(lines)
    values = [np.asarray(Image.open(sample.target.path)) for sample in samples.samples]
    expected = [sum(int((mask == value).sum()) for mask in values) for value in (0, 3, 7)]
    assert samples.class_counts() == expected and sum(expected) == 4 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize("folder", ["A", "B"])
def test_damaged_images_of_pairs_are_skipped_too(tmp_path: Path, folder: str) -> None:
    write_scenes(tmp_path, train=5, valid=2, has_pairs=True)
    cut(tmp_path / f"train/{folder}/01.png")  # whose header, and so its size, is still there
    changes = {"model_net_name": "TinyChange", "num_classes": 2, "bad_images": "skip"}
    config = process_config(write_config(tmp_path, max_bad_share=0.2, **changes))
    samples, _, skipped = read_data(config, World(), lambda line: None)
    assert len(samples.samples) == 4 and [Path(row["path"]).name for row in skipped] == ["01.png"]
    assert f"train/{folder}/01.png" in skipped[0]["path"] + skipped[0]["reason"]


def test_a_little_void_is_told_once_for_a_split(tmp_path: Path) -> None:
    write_scenes(tmp_path, train=3, valid=2)

    def with_border(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[0] = 99
        return values

    each_label(with_border)(tmp_path)
    lines: list[str] = []
    read_data(process_config(write_config(tmp_path)), World(), lines.append)
    told = [line for line in lines if "of no class" in line]
    pixels = 3 * SIZE[0]
    share = f"{1 / SIZE[1]:.1%} of the pixels are of no class, and ignored: value 99 ({pixels} pixels)"
    assert told == [f"{tmp_path}/train: {share}"]
