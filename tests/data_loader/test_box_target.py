"""Boxes from every kind of annotation: the same objects, and a sentence for each mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_loader.bad_images import without
from data_loader.box_annotations import MAX_BYTES, read_annotation
from data_loader.box_classes import named_classes, read_yaml_names
from data_loader.box_target import Boxes, BoxSamples, BoxTarget
from data_loader.decoding import decode
from data_loader.errors import ImageError
from data_loader.list_reader import read_target_list
from data_loader.mask_classes import VOID, OtherClass
from data_loader.samples import ListError, SampleList
from tests.helpers.boxes import NAMES, SIZE, coco, scene, voc, write_boxes, write_coco, yolo


def looked_at(target: BoxTarget, samples: SampleList) -> tuple[BoxSamples, list[str]]:
    return target.scanned(samples, [target.scan(sample) for sample in samples.samples])


def values_of(samples: BoxSamples) -> list[tuple[list[Any], list[int]]]:
    loaded = [BoxTarget(2).load(sample) for sample in samples.samples]
    return [(np.round(boxes.boxes, 6).tolist(), boxes.labels.tolist()) for boxes in loaded]


def expected(count: int) -> list[tuple[list[Any], list[int]]]:
    made = []
    for number in range(count):
        objects = [] if number == count - 1 else scene(number)[1]
        made.append(([list(map(float, corners)) for _, *corners in objects], [NAMES.index(o[0]) for o in objects]))
    return made


def as_yolo(folder: Path) -> None:
    labels = folder / "train/labels"
    for number, path in enumerate(sorted(labels.iterdir())):
        path.unlink()
        if number < 5:  # the last has no objects, and no file
            path.with_suffix(".txt").write_text(yolo(scene(number)[1]), encoding="utf-8")


def test_every_format_gives_the_same_boxes(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=6, valid=2)
    target = BoxTarget(2)
    found, lines = looked_at(target, target.read_folder(str(tmp_path / "train")))
    assert values_of(found) == expected(6) and found.class_names == NAMES
    reds = sum(name == "red" for number in range(5) for name, *_ in scene(number)[1])
    total = sum(len(scene(number)[1]) for number in range(5))
    assert found.class_counts() == [total - reds, reds]
    assert lines == [f"{tmp_path}/train: objects: blue {total - reds}, red {reds}; 1 images without objects"]
    names = [f"images/{number:02d}.png----labels/{number:02d}.xml" for number in range(6)]
    (tmp_path / "train.txt").write_text("\n".join(names), encoding="utf-8")
    listed = read_target_list(tmp_path / "train.txt", tmp_path / "train", "----", target)
    assert values_of(looked_at(target, target.completed(listed))[0]) == expected(6)
    from_coco, _ = looked_at(target, target.read_folder(str(write_coco(tmp_path) / "train")))
    assert values_of(from_coco) == expected(6) and from_coco.class_names == NAMES
    assert [found.value for found in from_coco.classes] == [3, 7]
    as_yolo(tmp_path)
    of_yolo = BoxTarget(2, named_classes(NAMES))
    assert values_of(looked_at(of_yolo, of_yolo.read_folder(str(tmp_path / "train")))[0]) == expected(6)
    unnamed, _ = looked_at(target, target.read_folder(str(tmp_path / "train")))
    assert unnamed.class_names == ("0", "1") and values_of(unnamed) == expected(6)


def test_further_lists_take_the_classes_of_the_first(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=6, valid=3)
    target = BoxTarget(2).settled(BoxTarget(2).read_folder(str(tmp_path / "train")))
    (tmp_path / "valid/labels/00.xml").write_text(voc([("red", 1, 1, 20, 20)]), encoding="utf-8")
    (tmp_path / "valid/labels/01.xml").write_text(voc([]), encoding="utf-8")
    found, lines = looked_at(target, target.read_folder(str(tmp_path / "valid")))
    assert values_of(found)[0] == ([[1.0, 1.0, 20.0, 20.0]], [1]) and found.class_counts() == [0, 1]
    assert lines[1] == f"warning: {tmp_path}/valid: no object of blue"


def test_boxes_are_clipped_and_empty_ones_counted(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=2, valid=1)
    width, height = SIZE
    rows = [
        *(("red", -5, -3, 10.5, 9), ("red", 60, 50, 900, 700), ("blue", 30, 30, 30, 40), ("blue", 80, 5, 90, 20)),
        ("blue", 5, 5, 5.9, 40),
    ]
    (tmp_path / "train/labels/00.xml").write_text(voc(rows), encoding="utf-8")
    target = BoxTarget(2)
    found, lines = looked_at(target, target.read_folder(str(tmp_path / "train")))
    assert values_of(found)[0] == ([[0.0, 0.0, 10.5, 9.0], [60.0, 50.0, float(width), float(height)]], [1, 1])
    assert "3 of less than a pixel or outside their image, left out" in lines[0]


def test_difficult_objects_and_crowds_are_ignored(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=3, valid=1)
    (tmp_path / "train/labels/00.xml").write_text(voc([("red", 1, 1, 20, 20)], difficult=1), encoding="utf-8")
    target = BoxTarget(2)
    found, lines = looked_at(target, target.read_folder(str(tmp_path / "train")))
    boxes: Boxes = found.samples[0].target
    assert boxes.ignored.tolist() == [True] and "1 difficult or of a crowd, ignored" in lines[0]
    assert sum(found.class_counts()) == len(scene(1)[1])
    data = coco([("00.png", [("red", 1, 2, 11, 22), ("blue", 3, 4, 30, 40)])])
    data["annotations"][0]["iscrowd"] = 1
    del data["annotations"][1]["bbox"]
    data["annotations"][1]["segmentation"] = [[3, 4, 20, 9, 3, 40], [30, 5, 28, 6, 29, 7]]
    (tmp_path / "train/coco.json").write_text(json.dumps(data), encoding="utf-8")
    samples = target.read_annotations(
        str(tmp_path / "train/coco.json"), str(tmp_path / "train/images"), allow_outside_root=False
    )
    assert samples is not None
    boxes = looked_at(target, samples)[0].samples[0].target
    assert boxes.ignored.tolist() == [True, False]
    assert boxes.boxes.tolist() == [[1, 2, 11, 22], [3, 4, 30, 40]]


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_on_the_stored_pixels_of_a_turned_image(tmp_path: Path, orientation: int) -> None:
    """Where the marked pixels lie once Pillow has turned the image says where the box must be."""
    write_boxes(tmp_path, train=1, valid=1)
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[5:15, 20:50] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "train/images/00.png", exif=exif)
    for size, turned in (((60, 40), True), ((40, 60), False)):
        (tmp_path / "train/labels/00.xml").write_text(voc([("red", 20, 5, 50, 15)], size), encoding="utf-8")
        target = BoxTarget(1)
        found, _ = looked_at(target, target.read_folder(str(tmp_path / "train")))
        boxes: Boxes = found.samples[0].target
        rows, columns = np.nonzero(np.asarray(decode(str(tmp_path / "train/images/00.png")))[:, :, 0])
        marked = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert boxes.size == (40, 60)
        assert boxes.boxes.tolist() == ([marked] if turned else [[20, 5, 40, 15]])


def test_a_batch_has_one_rank() -> None:
    rows = [np.arange(12, dtype=np.float32).reshape(2, 6), np.zeros((0, 6), np.float32)]
    batch = BoxTarget(2).collate(rows)
    assert batch.shape == (2, 2, 6) and batch.dtype == np.float32
    np.testing.assert_array_equal(batch[0], rows[0])
    assert (batch[1] == -1).all()
    assert BoxTarget(2).collate(rows[1:]).shape == (1, 1, 6)


Write = Callable[[Path], Any]
BROKEN: dict[str, tuple[str | bytes, str]] = {
    "no XML": ("<annotation><object>", "it is no valid XML: "),
    "empty": ("", "it is empty"),
    "another root": ("<html></html>", 'its outermost element is "html", not "annotation"'),
    "entities": (
        '<!DOCTYPE annotation [<!ENTITY a "b">]><annotation>&a;</annotation>',
        "it declares a document type or entities",
    ),
    "deep": ("<annotation>" + "<a>" * 20 + "</a>" * 20 + "</annotation>", "deep in each other"),
    "no name": (voc([("", 1, 1, 2, 2)]), "object 1 has no name"),
    "two boxes": (
        voc([("red", 1, 1, 2, 2)]).replace("</bndbox>", "</bndbox><bndbox/>"),
        'object 1 ("red") has 2 bndbox',
    ),
    "other letters": (
        voc([("red", 1, 1, 2, 2)]).replace("object", "Object"),
        "its objects are no <object> right within",
    ),
    "deeper": (
        voc([("red", 1, 1, 2, 2)]).replace("<object>", "<objects><object>").replace("</object>", "</object></objects>"),
        "its objects are no <object> right within <annotation>",
    ),
    "a separator": (voc([("red", 1, 1, "1_0", 2)]), 'xmax must be a number, got "1_0"'),
    "not GBK": (b'<?xml version="1.0" encoding="GBK"?><annotation>\xff</annotation>', "not in the encoding that it"),
    "no box": ("<annotation><object><name>red</name></object></annotation>", 'object 1 ("red") has no bndbox'),
    "NaN": (voc([("red", "nan", 1, 2, 2)]), 'object 1 ("red"): xmin must be a number, got "nan"'),
    "no number": (voc([("red", 1, 1, "x", 2)]), 'xmax must be a number, got "x"'),
    "infinite": (voc([("red", 1, 1, "1e999", 2)]), 'xmax must be a number, got "1e999"'),
    "swapped x": (voc([("red", 40, 1, 20, 9)]), 'object 1 ("red"): xmin and xmax are swapped: 40 and 20'),
    "swapped y": (voc([("red", 4, 9, 20, 1)]), "ymin and ymax are swapped: 9 and 1"),
    "difficult": (voc([("red", 1, 1, 2, 2)], difficult=3), 'difficult must be 0 or 1, got "3"'),
    "another size": (voc([], (64, 64)), f"is of an image of 64x64, the image is {SIZE[0]}x{SIZE[1]}"),
    "swapped sides": (voc([], SIZE[::-1]), "; its sides are swapped"),
    "another encoding": (b'<?xml version="1.0" encoding="x-none"?><annotation/>', "it is no valid XML"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_annotation_is_a_sentence(name: str, tmp_path: Path) -> None:
    write_boxes(tmp_path, train=3, valid=1)
    text, sentence = BROKEN[name]
    path = tmp_path / "train/labels/00.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    target = BoxTarget(2, named_classes(NAMES))
    samples = target.read_folder(str(tmp_path / "train"))
    with pytest.raises(ImageError, match=re.escape(sentence)) as found:
        target.scan(samples.samples[0])
    assert str(found.value).startswith(f"its annotation {path}")
    kept, _ = looked_at(target, without(samples, {0}))
    assert len(kept.samples) == 2


@pytest.mark.parametrize("place", ["00.xml", "nothing"])
def test_a_link_that_leads_to_no_annotation(place: str, tmp_path: Path) -> None:
    """To itself, or to nothing: a bad sample, as such a link among the images is."""
    write_boxes(tmp_path, train=3, valid=1)
    path = tmp_path / "train/labels/00.xml"
    path.unlink()
    path.symlink_to(place)
    target = BoxTarget(2, named_classes(NAMES))
    samples = target.read_folder(str(tmp_path / "train"))
    with pytest.raises(ImageError, match=f"its annotation {path}: it cannot be read"):
        target.scan(samples.samples[0])


def test_a_large_annotation_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert read_annotation(str(path)).problem.startswith("it has more than 4 MB")


YOLO_BROKEN = {
    "0 0.5 0.5 0.1": "line 1 has 4 values; write class cx cy w h",
    "red 0.5 0.5 0.1 0.1": 'line 1: the class must be a whole number, got "red"',
    "2 0.5 0.5 0.1 0.1": "line 1: class 2 is outside 0..1",
    "\n1 0.5 0.5 nan 0.1": 'line 2: a coordinate must be a number, got "nan"',
    "1 50 50 20 20": "line 1: coordinates are shares of the image's sides, from 0 to 1, got [50.0, 50.0, 20.0, 20.0]",
    "1 0.5 0.5 0.2 0.2 0.5 0.5 2 0.4 0.4 2": "line 1: a polygon's coordinates are from 0 to 1, got 2; key points",
    "1 0.5 0.5 1_0 0.1": 'line 1: a coordinate must be a number, got "1_0"',
    "1 0.5 0.5 -0.1 0.1": "line 1: width and height must be at least 0, got -0.1 and 0.1",
}


@pytest.mark.parametrize("text", YOLO_BROKEN)
def test_a_broken_yolo_file_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert read_annotation(str(tmp_path / "a.txt"), NAMES).problem.startswith(YOLO_BROKEN[text])


def test_annotations_in_gbk(tmp_path: Path) -> None:
    text = '<?xml version="1.0" encoding="gb2312"?>' + voc([("红细胞", 1, 2, 30, 40)])
    (tmp_path / "a.xml").write_bytes(text.encode("gbk"))
    found = read_annotation(str(tmp_path / "a.xml"))
    assert found.names == ("红细胞",) and found.boxes.tolist() == [[1, 2, 30, 40]] and not found.problem


@pytest.mark.parametrize(("suffix", "other"), [(".xml", ".XML"), (".txt", ".Txt")])
def test_two_annotations_of_one_stem_are_a_problem(tmp_path: Path, suffix: str, other: str) -> None:
    write_boxes(tmp_path, train=2, valid=1)
    labels = tmp_path / "train/labels"
    for path in sorted(labels.iterdir()):
        path.rename(path.with_suffix(suffix))
    (labels / f"00{other}").write_text("", encoding="utf-8")
    if len(list(labels.iterdir())) != 3:
        pytest.skip("this file system knows no case")
    with pytest.raises(ListError, match="has the same stem: which of them counts"):
        BoxTarget(2).read_folder(str(tmp_path / "train"))


def test_more_objects_than_a_loss_can_hold_are_a_problem(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=2, valid=1)
    for path in (tmp_path / "train/labels").iterdir():
        path.unlink()
    (tmp_path / "train/labels/00.txt").write_text("0 .5 .5 .1 .1\n" * 20_001, encoding="utf-8")
    target = BoxTarget(2)
    with pytest.raises(ImageError, match="has 20,001 objects, more than 20,000 of one image; cut the image"):
        target.scan(target.read_folder(str(tmp_path / "train")).samples[0])


def test_yolo_polygons_have_boxes_around_them(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1 0.1 0.2 0.3 0.9 0.25 0.1", encoding="utf-8")
    found = read_annotation(str(tmp_path / "a.txt"), NAMES)
    assert found.boxes.tolist() == [[0.1, 0.1, 0.3, 0.9]] and found.names == ("red",)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("nc: 2\nnames: ['a b', \"c\"]\n", ("a b", "c")),
        ("names: [a, b,\n  c]\n", ("a", "b", "c")),
        ("names:\n  - red\n  - 'it''s'  \nnc: 2\n", ("red", "it's")),
        ("train: x\nnames:\n  1: b # second\n  0: a\n", ("a", "b")),
        ('names: {0: "person", 1: car}\n', ("person", "car")),
        ('names:\n- "\\u7ea2"\n', ("红",)),
    ],
)
def test_names_of_a_data_yaml(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text, encoding="utf-8")
    assert read_yaml_names(str(tmp_path / "data.yaml")) == names


@pytest.mark.parametrize("text", ["nc: 2\n", "names:\nnc: 2\n", "names: 3\n", "names: [a, a]\n", "names:\n  1: a\n"])
def test_a_data_yaml_without_names_is_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ListError, match=r"classes\.txt"):
        read_yaml_names(str(tmp_path / "data.yaml"))


def changed(**values: Any) -> dict[str, Any]:
    """Return COCO's JSON of one image with one object, with the first image's, object's or category's keys changed."""
    data = coco([("00.png", [("red", 1, 2, 11, 22)])])
    for kind, entry in values.items():
        data[kind][0 if kind != "categories" else 1].update(entry)
    return data


COCO_BROKEN: dict[str, tuple[Any, str]] = {
    "no COCO": ([1], 'expected COCO\'s {"images": [...]'),
    "no objects": ({"images": [3], "annotations": [], "categories": []}, "images must hold objects, got 3"),
    "gone": (changed(images={"file_name": "99.png"}), "image not found: "),
    "outside": (changed(images={"file_name": "../00.png"}), 'file_name "../00.png" leaves the root folder'),
    "twice": (
        {**changed(), "images": [*changed()["images"], {"id": 99, "file_name": "00.png"}]},
        "is there twice",
    ),
    "no image": (changed(annotations={"image_id": 77}), "1 image_id of annotations are of no image, such as 77"),
    "same id": (changed(categories={"id": 7}), 'categories "blue" and "red" have the same id 7'),
    "images of one id": (
        {**changed(), "images": [*changed()["images"], {**changed()["images"][0], "file_name": "01.png"}]},
        "2 images have the same id ",
    ),
    "same name": (changed(categories={"name": "red"}), '2 categories are called "red"'),
    "no name": (changed(categories={"name": ""}), "category 3 has no name"),
    "count": (changed(categories={"supercategory": "x", "id": 9}), ""),
}


@pytest.mark.parametrize(("head", "names"), [("colours", NAMES), ("red", ("blue", "red"))])
def test_an_id_0_that_heads_the_others_is_no_class(tmp_path: Path, head: str, names: tuple[str, ...]) -> None:
    """As Roboflow writes it: of a data set of one class it has this class's name."""
    write_boxes(tmp_path, train=2, valid=1)
    data = coco([("00.png", [("red", 1, 2, 11, 22)]), ("01.png", [])])
    data["categories"] = [{**entry, "supercategory": head} for entry in data["categories"] if entry["id"]]
    data["categories"].insert(0, {"id": 0, "name": head, "supercategory": "none"})
    file = tmp_path / "train/images/_annotations.coco.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    target = BoxTarget(2)
    found, _ = looked_at(target, target.read_folder(str(file.parent)))
    assert found.class_names == names and found.class_counts() == [0, 1]
    data["annotations"][0]["category_id"] = 0  # then it is a class
    file.write_text(json.dumps(data), encoding="utf-8")
    if head == "red":
        with pytest.raises(ListError, match='2 categories are called "red"'):
            target.read_folder(str(file.parent))
    else:
        assert BoxTarget(3).read_folder(str(file.parent)).class_names == (head, *names)


@pytest.mark.parametrize("name", COCO_BROKEN)
def test_a_broken_coco_file_is_a_sentence(name: str, tmp_path: Path) -> None:
    write_boxes(tmp_path, train=2, valid=1)
    data, sentence = COCO_BROKEN[name]
    file = tmp_path / "train/images/_annotations.coco.json"
    file.write_text(json.dumps(data), encoding="utf-8")
    if not sentence:
        assert [found.value for found in BoxTarget(2).read_folder(str(file.parent)).classes] == [7, 9]
        return
    with pytest.raises(ListError, match=re.escape(sentence)):
        BoxTarget(2).read_folder(str(file.parent))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({"category_id": 5}, "category_id 5 is none of the categories"),
        ({"bbox": [1, 2, -3, 4]}, "width and height of bbox must be at least 0, got -3 and 4"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox must be [x, y, width, height]"),
        ({"bbox": [1, 2, 10**400, 4]}, "bbox must be [x, y, width, height]"),
        ({"bbox": [1, 2, 3]}, "bbox must be [x, y, width, height], got [1, 2, 3]"),
        ({"bbox": []}, "has neither bbox nor polygons"),
        ({"iscrowd": "1"}, 'iscrowd must be 0 or 1, got "1"'),
        ({"iscrowd": 2}, "iscrowd must be 0 or 1, got 2"),
    ],
)
def test_a_broken_object_of_coco_is_its_images_problem(tmp_path: Path, entry: dict[str, Any], sentence: str) -> None:
    write_boxes(tmp_path, train=2, valid=1)
    file = tmp_path / "train/images/_annotations.coco.json"
    file.write_text(json.dumps(changed(annotations=entry)), encoding="utf-8")
    target = BoxTarget(2)
    with pytest.raises(ImageError, match=re.escape(sentence)):
        target.scan(target.read_folder(str(file.parent)).samples[0])


def unlink(name: str) -> Write:
    return lambda folder: (folder / name).unlink()


FOLDERS: dict[str, tuple[Write, str]] = {
    "no annotation": (unlink("labels/01.xml"), "images/01.png: there is no annotation 01.xml in"),
    "no image": (unlink("images/01.png"), "labels/01.xml: there is no image 01.* in"),
    "both kinds": (lambda folder: (folder / "labels/00.txt").write_text(""), "it holds 3 .xml and 1 .txt files"),
    "an unknown class": (
        lambda folder: (folder / "labels/01.xml").write_text(voc([("green", 1, 1, 9, 9)])),
        'objects of unknown classes: "green" (1); the first is in ',
    ),
    "no objects": (
        lambda folder: [path.write_text(voc([])) for path in (folder / "labels").iterdir()],
        "not one object in 3 images",
    ),
    "masks": (
        lambda folder: [path.rename(path.with_suffix(".png")) for path in (folder / "labels").iterdir()],
        "it holds label images: masks are for a segmentation net",
    ),
    "no folder": (lambda folder: (folder / "labels").rename(folder / "other"), "but labels/ is not there"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_folder_is_a_sentence(name: str, tmp_path: Path) -> None:
    write_boxes(tmp_path, train=3, valid=1)
    spoil, sentence = FOLDERS[name]
    spoil(tmp_path / "train")
    target = BoxTarget(2, named_classes(NAMES))
    with pytest.raises(ListError, match=re.escape(sentence)):
        looked_at(target, target.read_folder(str(tmp_path / "train")))


def test_the_parent_of_splits_and_another_number_of_classes_are_sentences(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=6, valid=1)
    with pytest.raises(ListError, match=r"its folder train is a split: name .*/train instead"):
        BoxTarget(2).read_folder(str(tmp_path))
    with pytest.raises(ListError, match=r"its annotations: 2 classes, but num_classes is 3: blue \(\d+\), red \(\d+\)"):
        BoxTarget(3).read_folder(str(tmp_path / "train"))
    (tmp_path / "train/labels/00.xml").write_text("<", encoding="utf-8")
    with pytest.raises(ListError, match=r"num_classes is 3: (.|\n)*labels/00\.xml: it is no valid XML"):
        BoxTarget(3).read_folder(str(tmp_path / "train"))


def test_objects_of_classes_that_the_net_does_not_have(tmp_path: Path) -> None:
    write_boxes(tmp_path)
    blue, red = named_classes(NAMES)
    for index, label in ((VOID, None), (0, 0)):
        target = BoxTarget(1, (red,), others=(OtherClass(blue, index),))
        samples = target.read_folder(str(tmp_path / "train"))
        for sample, number in zip(samples.samples, range(11), strict=False):
            objects = scene(number)[1]
            kept = [list(map(float, box)) for name, *box in objects if name == "red" or label is not None]
            assert target.scan(sample)[0].boxes.tolist() == kept and not sample.target.labels.any()
