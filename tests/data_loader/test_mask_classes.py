"""classes.json: what it may hold, what it becomes, and every mistake in it as a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.metadata import ModelMetadata
from artifacts.outputs import output_shape
from data_loader.mask_classes import MaskClass, default_classes, default_color, read_mask_classes
from data_loader.preprocess import IMAGENET_MEAN, Preprocess
from data_loader.samples import ListError

CLASSES = (MaskClass("background", 0, (155, 155, 155), "背景"), MaskClass("road", 3, (110, 193, 228), "道路"))


def read(folder: Path, content: Any) -> tuple[MaskClass, ...]:
    file = folder / "classes.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return read_mask_classes(file)


def test_every_spelling_gives_the_same_classes(tmp_path: Path) -> None:
    plain = [
        {"name": "background", "value": 0, "color": [155, 155, 155], "title": "背景"},
        {"name": "road", "value": "3", "colour": "#6EC1E4", "title": "道路", "class_number": 7},
    ]
    platform = [
        {"class_name": "background", "class_value": 0, "class_color": "155,155,155", "class_title": "背景"},
        {"class_name": "road", "class_value": 3, "class_color": "rgb(110, 193, 228)", "class_title": "道路"},
    ]
    assert read(tmp_path, plain) == read(tmp_path, platform) == CLASSES


def test_what_is_left_out_has_a_default(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    assert read(tmp_path, [{"name": name} for name in names]) == default_classes(names)
    assert [found.color for found in default_classes(["no", "yes"])] == [(0, 0, 0), (255, 255, 255)]
    published = {0: (0, 0, 0), 1: (128, 0, 0), 3: (128, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128)}  # VOC2012's
    assert {index: default_color(index) for index in published} == published
    assert len({default_color(index) for index in range(255)}) == 255


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[{]", "classes.json:1:3: not valid JSON"),
        ({"name": "a"}, "expected a list of classes such as"),
        ([], "expected a list of classes such as"),
        (["a"], "class 0 must be an object such as"),
        ([{"value": 1}], 'class 0 has no "name"'),
        ([{"name": "a", "value": 70_000}], 'class "a": value must be a whole number 0..65535, got 70000'),
        ([{"name": "a", "value": True}], 'class "a": value must be a whole number 0..65535, got true'),
        ([{"name": "a", "color": "300,0,0"}], 'class "a": color must be "R,G,B", each 0..255, got "300,0,0"'),
        ([{"name": "a", "color": [1, 2]}], 'class "a": color must be "R,G,B", each 0..255, got [1, 2]'),
        ([{"name": "a"}, {"name": "a"}], 'classes "a" and "a" have the same name a'),
        ([{"name": "a", "value": 1}, {"name": "b", "value": 1}], 'classes "a" and "b" have the same value 1'),
        (
            [{"name": "a", "color": "1,2,3"}, {"name": "b", "color": "1,2,3"}],
            'classes "a" and "b" have the same color 1,2,3',
        ),
        ([{"name": str(i)} for i in range(256)], "256 classes; label images can have 255 at most"),
    ],
)
def test_a_mistake_is_a_sentence(tmp_path: Path, content: Any, sentence: str) -> None:
    with pytest.raises(ListError) as raised:
        read(tmp_path, content)
    assert sentence in str(raised.value)


def test_metadata_hold_the_classes_and_the_shape_of_the_masks() -> None:
    preprocess = Preprocess(32, 48)
    net = {"module": "linknet_module", "name": "LinkNet34", "args": {}}
    metadata = ModelMetadata(
        ("background", "road"), preprocess, net, task="segmentation", output="mask_logits", mask_classes=CLASSES
    )
    assert ModelMetadata.from_dict(json.loads(metadata.to_json())) == metadata
    assert output_shape(metadata) == (None, 2, 32, 48)
    other = metadata.to_dict() | {"mask_classes": [found.to_dict() for found in reversed(CLASSES)]}
    with pytest.raises(ValueError, match="the metadata is damaged: mask_classes cannot be"):
        ModelMetadata.from_dict(other)
    with pytest.raises(ValueError, match="the metadata is damaged: a class cannot be"):
        ModelMetadata.from_dict(metadata.to_dict() | {"mask_classes": [{**CLASSES[0].to_dict(), "value": -1}]})
    assert "mask_classes" not in replace(metadata, mask_classes=()).to_dict()


def test_a_pair_is_one_image_of_twice_the_channels() -> None:
    preprocess, single = Preprocess(8, 8, channels=6, images=2), Preprocess(8, 8)
    assert preprocess.mean == IMAGENET_MEAN * 2 and preprocess.image_channels == 3
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess and "images" not in single.to_dict()
    generator = np.random.default_rng(0)
    first, second = generator.integers(0, 256, (2, 12, 10, 3), dtype=np.uint8)
    pair = preprocess(np.concatenate([first, second], axis=2))
    np.testing.assert_array_equal(pair, np.concatenate([single(first), single(second)]))
    pixels = generator.integers(0, 256, (2, 6, 8, 8), dtype=np.uint8)
    normalized = preprocess.normalize(torch.from_numpy(pixels))
    np.testing.assert_array_equal(normalized[:, 3:], single.normalize(torch.from_numpy(pixels[:, 3:])))
    with pytest.raises(ValueError, match="channels must be 2 to 128, with as many means and stds, got 3 with"):
        Preprocess(8, 8, channels=3, images=2)
