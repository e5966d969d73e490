"""Objects found tile by tile: each once, whole, wherever tiles cut it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from artifacts.metadata import ModelMetadata
from data_loader.mask_classes import default_classes
from data_loader.preprocess import Preprocess
from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.tiled_boxes import Candidates, TiledBoxes, candidates_of, joined_objects
from deploy.inference.tiles import TiledPredictor

METADATA = ModelMetadata(
    ("red", "blue"),
    Preprocess(40, 48, mean=(0, 0, 0), std=(1, 1, 1)),
    {"module": "m", "name": "n", "args": {}},
    task="detection",
    output="boxes",
    thresholds={"score": 0.5, "nms_iou": 0.6},
)
POSITIONS = 32


class BlobBackend:
    """Finds connected red and blue areas of each image exactly; cut ones as far as they are seen."""

    name, device = "fake", "cpu"

    def __call__(self, images: np.ndarray) -> np.ndarray:
        outputs = np.full((len(images), POSITIONS, 6), -9, np.float32)
        for rows, image in zip(outputs, images, strict=True):
            number = 0
            for label, channel in ((0, 0), (1, 2)):
                for down, across in ndimage.find_objects(ndimage.label(image[channel] > 0.5)[0]):
                    rows[number, :4] = across.start, down.start, across.stop, down.stop
                    rows[number, 4 + label] = 1 + 0.001 * (across.stop - across.start) * (down.stop - down.start)
                    number += 1
        return outputs


def draw(size: tuple[int, int]) -> tuple[np.ndarray, set[tuple[int, tuple[int, ...]]]]:
    """Return an image with rectangles of up to 9 pixels, apart from each other, and these: label and box."""
    generator = np.random.default_rng(0)
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    found: set[tuple[int, tuple[int, ...]]] = set()
    for top in range(2, size[1] - 12, 12):
        for left in range(2, size[0] - 12, 12):
            width, height = (int(side) for side in generator.integers(4, 10, 2))
            label = int(generator.integers(2))
            pixels[top : top + height, left : left + width, 2 * label] = 255
            found.add((label, (left, top, left + width, top + height)))
    return pixels, found


@pytest.mark.parametrize("size", [(200, 150), (48, 40), (30, 20), (49, 300)])
def test_every_object_is_found_once_and_whole(size: tuple[int, int], tmp_path: Path) -> None:
    pixels, wanted = draw(size)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = TiledPredictor(BlobBackend(), METADATA, 0.25).predict_files([str(tmp_path / "a.png")], batch_size=3)
    assert isinstance(found, TiledBoxes) and found.size == size and found.geo is None
    assert len(found.objects) == len(wanted)
    assert {(one.label, tuple(round(value) for value in one.box)) for one in found.objects} == wanted
    scores = [one.score for one in found.objects]
    assert scores == sorted(scores, reverse=True)


def test_an_object_larger_than_the_overlap_is_kept_once(tmp_path: Path) -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[5:30, 20:80, 0] = 255  # wider than a tile: cut in each
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (found,) = TiledPredictor(BlobBackend(), METADATA, 0.5).predict_files([str(tmp_path / "a.png")])
    assert isinstance(found, BoxPrediction) and 1 <= len(found.objects) <= 2
    assert all(one.label == 0 and one.box[1] == 5 and one.box[3] == 30 for one in found.objects)


def test_parts_are_marked_by_the_border_that_cuts_them() -> None:
    outputs = np.full((1, 3, 6), -9, np.float32)
    outputs[0, :, :5] = [[0, 10, 9, 20, 5], [20, 10, 30, 20, 4], [40, 30, 48, 40, 3]]
    (inside,) = candidates_of(outputs, [(16, 8)], METADATA, (100, 100))
    assert inside.boxes.tolist() == [[16, 18, 25, 28], [36, 18, 46, 28], [56, 38, 64, 48]]
    assert inside.is_cut.tolist() == [True, False, True]
    (corner,) = candidates_of(outputs, [(0, 0)], METADATA, (48, 40))  # the whole image
    assert corner.is_cut.tolist() == [False] * 3


def test_classes_do_not_suppress_each_other() -> None:
    box = np.array([[0, 0, 10, 10]], np.float32)
    parts = [
        Candidates(box, np.array([label]), np.array([score], np.float32), np.array([is_cut]))
        for label, score, is_cut in ((0, 0.9, True), (1, 0.8, False), (0, 0.6, False))
    ]
    found = joined_objects(parts, 0.6)
    assert [(one.label, round(one.score, 2)) for one in found] == [(1, 0.8), (0, 0.6)]  # whole goes before cut


def test_a_smaller_copy_shows_the_same_objects() -> None:
    parts = [Candidates(np.array([[80.0, 40, 400, 160]]), np.array([1]), np.array([0.7]), np.array([False]))]
    classes = default_classes(METADATA.class_names)
    found = TiledBoxes("a", classes=classes, size=(1000, 400), objects=joined_objects(parts, 0.6))
    drawn = np.asarray(found.annotate(Image.new("RGB", (500, 200))))
    assert drawn[50, 40].tolist() == drawn[79, 199].tolist() == list(classes[1].color)
    assert drawn[50, 39].tolist() == drawn[50, 210].tolist() == [0, 0, 0]
