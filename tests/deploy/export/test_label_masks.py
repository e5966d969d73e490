"""The label images beside a verification's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from artifacts.metadata import ModelMetadata
from data_loader.mask_classes import MaskClass
from data_loader.preprocess import Preprocess
from deploy.export.label_masks import label_masks

CLASSES = (MaskClass("a", 0, (0, 0, 0), "a"), MaskClass("b", 7, (255, 0, 0), "b"))


def test_masks_are_found_by_their_stems(tmp_path: Path) -> None:
    metadata = ModelMetadata(
        ("a", "b"), Preprocess(4, 8), {"module": "m", "name": "n", "args": {}}, output="mask_logits",
        mask_classes=CLASSES,
    )  # fmt: skip
    truth = np.random.default_rng(0).integers(0, 2, (2, 8, 16), dtype=np.uint8)
    for place in ("images", "labels"):
        (tmp_path / place).mkdir()
    for name, mask in zip("xy", truth, strict=True):
        Image.new("RGB", (16, 8)).save(tmp_path / f"images/{name}.jpg")
        Image.fromarray(mask * 7).save(tmp_path / f"labels/{name}.png")
    files = [str(tmp_path / f"images/{name}.jpg") for name in "xy"]
    found = label_masks(files, metadata)
    assert found is not None and np.array_equal(found, truth[:, 1::2, 1::2])  # nearest neighbour of a half
    Image.new("RGB", (16, 8)).save(tmp_path / "images/z.jpg")
    assert label_masks([*files, str(tmp_path / "images/z.jpg")], metadata) is None  # one has no label image
    Image.new("L", (5, 8)).save(tmp_path / "labels/x.png")
    assert label_masks(files, metadata) is None  # of another size
    assert label_masks([str(tmp_path / "elsewhere.jpg")], metadata) is None
    assert label_masks([], metadata) is None
