"""Masks from inference.py: at the image's own size, in files that other programs and this one read."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import inference
import inference_uncertain
from data_loader.mask_classes import VOID, MaskClass, read_mask_classes
from data_loader.masks import read_mask
from data_loader.preprocess import Preprocess
from deploy.inference import mask_prediction
from deploy.inference.image_writers import save_jpeg
from deploy.inference.mask_prediction import MaskPrediction, file_lookup, own_size
from tests.helpers.masks import CLASSES, VALUES, mask_nets, scene, trained_masks
from visualization.masks import laid_over, with_colours

NAMES = [found["name"] for found in CLASSES]


@pytest.fixture(autouse=True)
def tiny_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with mask_nets(tmp_path, monkeypatch):
        yield


def infer(*flags: Any) -> int:
    return inference.main([*map(str, flags), "--device", "cpu", "--workers", "1"])


def test_masks_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = trained_masks(tmp_path)
    big, truth = scene(7, (95, 61))
    (tmp_path / "new/deeper").mkdir(parents=True)
    Image.fromarray(big).save(tmp_path / "new/deeper/big.png")
    (tmp_path / "new/bad.png").write_bytes(b"")
    capsys.readouterr()
    flags = ["--weights", weights, "--image_dir", tmp_path / "new", "--save_images", tmp_path / "out"]
    assert infer(*flags, "--output", tmp_path / "out.csv") == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("error: it is empty (0 bytes)")
    with Image.open(tmp_path / "out/deeper/big.png.mask.png") as mask:
        assert (mask.mode, mask.size) == ("P", (95, 61))
        values = np.asarray(mask)
    assert set(np.unique(values)) <= set(VALUES)  # the values that the label images have
    assert (values == VALUES[truth]).mean() > 0.93  # borders are a pixel of the 24 x 24 input wide
    read = read_mask(str(tmp_path / "out/deeper/big.png.mask.png"), read_mask_classes(tmp_path / "classes.json"))
    assert np.array_equal(VALUES[read.indices], values) and not read.unknown  # a label image for this program, too
    with Image.open(tmp_path / "out/deeper/big.png.overlay.jpg") as overlay:
        assert overlay.width == 95 * 3 and overlay.height > 61 * 3
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert list(rows[0]) == ["file", "width", "height", "score", *(f"share_{name}" for name in NAMES), "error"]
    row = next(row for row in rows if row["file"].endswith("big.png"))
    assert (row["width"], row["height"]) == ("95", "61") and 0.5 < float(row["score"]) <= 1
    for name, value in zip(NAMES, VALUES, strict=True):
        assert float(row[f"share_{name}"]) == pytest.approx((values == value).mean(), abs=1e-6)
    largest = NAMES[int(np.argmax([(values == value).mean() for value in VALUES]))]
    assert lines[1].split()[1] == largest and lines[1].split()[2].endswith("%")


def test_a_folder_with_label_images_is_that_of_its_images(tmp_path: Path) -> None:
    weights = trained_masks(tmp_path)
    flags = ["--weights", weights, "--image_dir", tmp_path / "valid", "--output", tmp_path / "out.jsonl", "--quiet"]
    assert infer(*flags) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [Path(row["file"]).parent.name for row in rows] == ["images"] * 5
    assert list(rows[0]) == ["file", "width", "height", "score", "shares"] and list(rows[0]["shares"]) == NAMES
    assert sum(rows[0]["shares"].values()) == pytest.approx(1)


def test_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = trained_masks(tmp_path, model_net_name="TinyChange", num_classes=2)
    valid = tmp_path / "valid"
    common = ["--weights", weights, "--save_images", tmp_path / "out", "--quiet"]
    assert infer(*common, "--image_dir", valid, "--output", tmp_path / "out.json") == 0
    rows = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert [(row["file"], row["second_file"]) for row in rows] == [
        (f"{valid}/A/{number:02d}.png", f"{valid}/B/{number:02d}.png") for number in range(5)
    ]
    hits = [
        (np.asarray(Image.open(tmp_path / f"out/A/{number:02d}.png.mask.png")) > 0)
        == (np.asarray(Image.open(valid / f"labels/{number:02d}.png")) > 0)
        for number in range(5)
    ]
    assert np.mean(hits) > 0.9
    one = ["--image", valid / "A/03.png", "--second_image", valid / "B/03.png", "--output", tmp_path / "one.json"]
    assert infer(*common, *one) == 0
    (row,) = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert row == rows[3]
    capsys.readouterr()
    assert infer(*common, "--image", valid / "A/03.png") == 2
    assert "this net predicts for pairs; name the later image with --second_image" in capsys.readouterr().err
    (valid / "B/03.png").unlink()
    assert infer(*common, "--image_dir", valid) == 2
    assert f"{valid}/A/03.png: there is no second image 03.* in {valid}/B" in capsys.readouterr().err
    Image.new("RGB", (28, 30)).save(valid / "B/03.png")
    (valid / "B/04.png").write_bytes(b"")
    assert infer(*common, "--image_dir", valid, "--output", tmp_path / "out.json") == 1
    errors = [row.get("error", "") for row in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))]
    assert errors[3] == f"it is 28x24, but the second image {valid}/B/03.png is 28x30"
    assert errors[4] == f"{valid}/B/04.png: it is empty (0 bytes)" and not any(errors[:3])


def test_a_second_image_is_of_nets_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, image = trained_masks(tmp_path), tmp_path / "valid/images/00.png"
    assert infer("--weights", weights, "--image", image, "--second_image", image, "--output", tmp_path / "a.csv") == 2
    assert "this net predicts for one image, not for pairs" in capsys.readouterr().err


def test_without_folder_heat_maps_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = trained_masks(tmp_path)
    assert infer("--weights", weights, "--image_dir", tmp_path / "valid", "--heatmap", tmp_path / "maps") == 2
    assert "heat map" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(10, 6), (37, 24), (24, 37), (301, 40), (12, 400), (9, 9), (1, 1)])
@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_logits_come_back_to_where_the_image_was(resize: str, size: tuple[int, int]) -> None:
    """The classes are the image's own, half of it each: after fitting and back they are where they were."""
    preprocess = Preprocess(24, 32, resize=resize)
    width, height = size
    truth = np.zeros((height, width), np.uint8)
    truth[:, width // 2 :] = 1
    image = Image.fromarray(np.repeat(truth[:, :, None] * 255, 3, axis=2))
    fitted = preprocess.fit(image)[:, :, 0].astype(np.float32)
    found = own_size(np.stack([127.5 - fitted, fitted - 127.5]), preprocess, size)
    assert found.shape == (height, width) and found.dtype == np.uint8
    seen = found != VOID
    assert seen.all() or resize == "crop"
    scale = max(width / 32, height / 24)  # a pixel of the input in the image's
    far = np.abs(np.arange(width) - width / 2 + 0.5) > scale + 1
    right = found[:, far] == truth[:, far]
    assert (right | ~seen[:, far]).all()
    if resize == "crop" and min(size) > 1:  # the share that 32:24 leaves
        part = min(width / height * 24 / 32, height / width * 32 / 24)
        assert seen.mean() == pytest.approx(part, abs=2 / min(width, height))


def test_an_image_of_which_nothing_reached_the_net_has_no_class() -> None:
    preprocess = Preprocess(24, 32, resize="letterbox")
    assert (own_size(np.zeros((2, 24, 32), np.float32), preprocess, (5, 400)) == VOID).all()  # 0.3 columns wide


def test_enlarging_is_bilinear_and_does_not_depend_on_the_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(4, 12, 16)).astype(np.float32)
    wanted = torch.nn.functional.interpolate(torch.from_numpy(logits)[None], (101, 77), mode="bilinear")[0].argmax(0)
    preprocess = Preprocess(12, 16)
    whole = own_size(logits, preprocess, (77, 101))
    assert (whole == wanted.numpy()).mean() > 0.999
    monkeypatch.setattr(mask_prediction, "BAND_ROWS", 7)
    assert np.array_equal(own_size(logits, preprocess, (77, 101)), whole)


def classes(*values: int) -> tuple[MaskClass, ...]:
    return tuple(MaskClass(f"c{value}", value, (value % 256, 1, 2)) for value in values)


def test_values_of_the_files() -> None:
    assert file_lookup(classes(0, 255))[[0, 1, VOID]].tolist() == [0, 255, 254]
    assert file_lookup(classes(9, 4))[[0, 1, VOID]].tolist() == [9, 4, 255]
    assert file_lookup(classes(0, 300))[[0, 1, VOID]].tolist() == [0, 1, 255]  # no byte: indices


def test_an_overlay_shows_the_image_where_a_class_is_black() -> None:
    image = Image.new("RGB", (300, 200), (100, 100, 100))
    indices = np.zeros((200, 300), np.uint8)
    indices[50:100, 50:100] = 1
    indices[150:] = VOID
    made = np.asarray(laid_over(image, indices, [(0, 0, 0), (200, 0, 0)]))
    assert made[10, 10].tolist() == [100, 100, 100] and made[75, 75].tolist() == [150, 50, 50]
    assert made[75, 50].tolist() == [200, 0, 0] and made[180, 10].tolist() == [25, 25, 25]
    assert laid_over(Image.new("RGB", (5000, 10)), np.zeros((10, 5000), np.uint8), [(1, 2, 3)]).size == (2048, 4)
    legend = with_colours(image, [(f"a long name {number}", (number, 0, 0)) for number in range(9)])
    assert legend.width == 300 and legend.height > 300


def test_what_the_service_answers() -> None:
    logits = np.array([[[1, 0, 0, 0]], [[0, 1, 1, 0.5]]], np.float32)  # (2, 1, 4)
    preprocess = Preprocess(1, 4, resize="crop")
    made = MaskPrediction("a.png", classes(0, 7), (4, 3), 0.5, preprocess, logits)  # its middle row is seen
    assert made.indices.tolist() == [[VOID] * 4, [0, 1, 1, 1], [VOID] * 4]
    values = made.response()
    assert values["shares"] == {"c0": 1 / 12, "c7": 3 / 12} and "file" not in values
    assert values["classes"][1] == {"name": "c7", "title": "", "value": 7, "color": [7, 1, 2]}
    with Image.open(io.BytesIO(base64.b64decode(values["mask"].removeprefix("data:image/png;base64,")))) as mask:
        assert np.array_equal(np.asarray(mask), np.array([0, 7, *[255] * 254])[made.indices])
    assert made.to_dict() == {"file": "a.png", "width": 4, "height": 3, "score": 0.5, "shares": values["shares"]}


def test_masks_without_a_calibration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, images = str(trained_masks(tmp_path)), str(tmp_path / "valid")
    for flags, text in (
        (["--calibrate", images], "5 images are too few for at most 0.1 wrong among the accepted pixels"),
        (["--image_dir", images], "it is not calibrated"),
    ):
        assert inference_uncertain.main(["--weights", weights, *flags, "--device", "cpu"]) == 2
        assert text in capsys.readouterr().err
    assert inference_uncertain.main(["--weights", weights, "--evaluate", images, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "mean IoU" in out and "accepted" not in out


def test_names_too_long_for_a_file_system_are_cut_and_stay_apart(tmp_path: Path) -> None:
    names = ["x" * 250 + ending for ending in ("1", "2")]
    for name in names:
        save_jpeg(tmp_path / "out", f"deeper/{name}", ".answer.jpg", Image.new("RGB", (8, 8)))
    made = [path.name for path in (tmp_path / "out/deeper").iterdir()]
    assert len(made) == 2 and all(len(name) <= 255 and name.endswith(".answer.jpg") for name in made)
