"""traincfg.json as the platform writes it, and a sentence for everything that can be wrong in it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from platforms.pie_engine.classes import classes_of_boxes, classes_of_masks
from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.nets import CHANGE, DETECTION, SEGMENTATION, find_net
from platforms.pie_engine.traincfg import parse_values, read_request, read_values

# The contract's example.
EXAMPLE = """{"auto_termination": 0, "batch_size": 4, "class_name": "airplane",
 "dataset_id": "49779ee7-1d00-4884-bf9a-dbc0802651e3",
 "epochs": 80, "gpu_num": 1,
 "label": "[{\\"class_name\\":\\"airplane\\",\\"class_value\\":1,\\"class_title\\":\\"飞机\\",
   \\"class_color\\":\\"255,0,0\\"}]",
 "learning_rate": 0.0003, "load_size": "608,608", "model_name": "yolov4", "n_class": "1", "resume_path": "",
 "training_id": "57fc8152-c4f5-44b5-a25d-bc043a624d4b"}""".replace("\n   ", "")
LABEL = [
    {"class_name": "background", "class_value": 0, "class_title": "背景", "class_color": "155,155,155"},
    {"class_name": "road", "class_value": 3, "class_title": "道路", "class_color": "110,193,228"},
    {"class_name": "water", "class_value": 7, "class_title": "水体", "class_color": "0,0,255"},
]
VALUES: dict[str, Any] = {
    "training_id": "t",
    "dataset_id": "d",
    "class_name": "background,road,water",
    "label": LABEL,
    "n_class": 2,
    "load_size": "64,96",
    "model_name": "linknet34",
    "learning_rate": 0.01,
    "epochs": 3,
    "batch_size": 4,
}


def problems_of(**changes: Any) -> list[str]:
    values = {key: value for key, value in (VALUES | changes).items() if value is not ...}
    with pytest.raises(RequestError) as error:
        read_request(values)
    return error.value.problems


def test_the_contracts_example() -> None:
    request = read_request(parse_values(EXAMPLE, "traincfg.json"))
    assert (request.width, request.height, request.epochs, request.batch_size, request.gpu_num) == (608, 608, 80, 4, 1)
    assert request.learning_rate == 0.0003 and request.chosen == ("airplane",) and request.patience() == 0
    (entry,) = request.entries
    assert (entry.name, entry.value, entry.color, entry.title) == ("airplane", 1, (255, 0, 0), "飞机")
    assert request.notes == () and request.training_id == "57fc8152-c4f5-44b5-a25d-bc043a624d4b"
    classes = classes_of_boxes(request, ["airplane", "ship"])
    assert [found.name for found in classes.classes] == ["airplane"] and classes.others[0][0].name == "ship"


def test_numbers_may_be_texts() -> None:
    texts = {"learning_rate": " 1e-2 ", "epochs": "3", "batch_size": "4", "n_class": " 2", "load_size": " 64 , 96 "}
    label = str([{**row, "class_value": str(row["class_value"]), "class_number": 5} for row in LABEL])  # Python quotes
    as_texts = read_request(VALUES | texts | {"label": label, "auto_termination": "1", "gpu_num": "0"})
    as_numbers = read_request(VALUES | {"auto_termination": True, "gpu_num": 0, "epochs": 3.0})
    assert as_texts == as_numbers and as_numbers.auto_termination
    assert read_request(VALUES | {"label": json.dumps(LABEL)}) == read_request(VALUES)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        *(("608", (608, 608)), (608, (608, 608)), ("48,80", (64, 64)), ("16,17", (32, 32)), ("1,9000", (32, 8192))),
        *(("112,144", (128, 128)), ("100,200", (96, 192))),  # half to even, as Python rounds
    ],
)
def test_sizes_are_multiples_of_32(given: Any, size: tuple[int, int]) -> None:
    request = read_request(VALUES | {"load_size": given})
    assert (request.width, request.height) == size
    assert bool(request.notes) == (given not in ("608", 608))
    assert all("multiples of 32 px" in line for line in request.notes)


def test_auto_termination_waits_for_a_tenth_of_the_epochs() -> None:
    patience = [read_request(VALUES | {"auto_termination": 1, "epochs": epochs}).patience() for epochs in (3, 100, 105)]
    assert patience == [10, 10, 11]


def test_what_is_ignored_is_named() -> None:
    request = read_request(VALUES | {"priority": 3, "user": "x", "n_class": 3})
    assert request.notes == (
        "keys that are ignored: priority, user",
        "warning: n_class is 3, which counts the background too; there are 2 classes",
    )


def test_a_misspelt_key_is_named_beside_the_mistakes() -> None:
    problems = problems_of(learning_rates=0.1, user="x", epochs=0)
    assert problems[1:] == ["keys that are ignored: learning_rates (did you mean learning_rate?), user"]
    assert problems[0].startswith("epochs must be")
    (line,) = read_request(VALUES | {f"x{number}": 1 for number in range(10_000)}).notes
    assert line.endswith(", x18, x19 and 9980 more")


def test_a_chinese_comma_is_one_unless_a_name_holds_it() -> None:
    request = read_request(VALUES | {"class_name": "background\uff0croad, water"})
    assert request.chosen == ("background", "road", "water")
    name = "road\uff0cpath"
    label = [LABEL[0], {**LABEL[1], "class_name": name}]
    assert read_request(VALUES | {"class_name": f"background,{name}", "label": label, "n_class": 1}).chosen[1] == name


LABEL_SENTENCE = "label is data, and was not run; "
CASES: list[tuple[dict[str, Any], str]] = [
    ({"epochs": ...}, 'key "epochs" is missing'),
    ({"epochs": ..., "epoch": 3}, 'key "epochs" is missing; "epoch" is there: did you mean "epochs"?'),
    ({"epochs": 0}, "epochs must be a whole number from 1 to 1000000, or a text of one, got 0"),
    ({"epochs": "2.5"}, 'epochs must be a whole number from 1 to 1000000, or a text of one, got "2.5"'),
    ({"epochs": True}, "epochs must be a whole number from 1 to 1000000, or a text of one, got true"),
    ({"batch_size": [4]}, "batch_size must be a whole number from 1 to 1000000, or a text of one, got [4]"),
    ({"gpu_num": -1}, "gpu_num must be a whole number from 0 to 1000000, or a text of one, got -1"),
    ({"learning_rate": "0"}, 'learning_rate must be a number above 0, or a text of one, got "0"'),
    ({"learning_rate": float("nan")}, "learning_rate must be a number above 0, or a text of one, got NaN"),
    ({"learning_rate": "fast"}, 'learning_rate must be a number above 0, or a text of one, got "fast"'),
    ({"auto_termination": 2}, "auto_termination must be 0 or 1, got 2"),
    ({"load_size": "64,x"}, 'load_size must be "W,H" in pixels, such as "608,608", or one number for a square, got'),
    ({"load_size": "64,-96"}, 'load_size must be "W,H" in pixels'),
    ({"model_name": ".hidden"}, "model_name must be a name of letters, digits, - _ and ., 100 at most, without a dot"),
    ({"model_name": "../net"}, "model_name must be a name of letters, digits, - _ and ., 100 at most, without a dot"),
    ({"training_id": None}, "training_id must be a text, got null"),
    ({"class_name": ["road"]}, 'class_name must be "background,building": names with commas between them, got'),
    ({"class_name": " , "}, "class_name must be"),
    ({"n_class": 5}, "class_name has 2 classes without background, 3 with it, got 5"),
    ({"n_class": "two"}, "n_class must be the number of classes without background: class_name has 2 classes"),
    (
        {"class_name": "background,raod,water"},
        "class_name names classes without an entry in label: raod; class_name has background, raod, water, "
        'label has background, road, water; did you mean "road"?',
    ),
    ({"class_name": "background,road,road"}, 'class_name has "road" twice'),
    (
        {"label": '[{"class_name": __import__("os").getcwd()}]'},
        LABEL_SENTENCE + 'line 1, column 17 holds code, "__import__(\\"os\\").getcwd()"',
    ),
    ({"label": "[{]"}, LABEL_SENTENCE + "line 1, column 3: not a list of objects: Expecting property name"),
    ({"label": "[" * 100_000}, LABEL_SENTENCE + "it is longer or nested more deeply than a list of classes"),
    ({"label": '[{"class_name": "a", "class_name": "b"}]'}, LABEL_SENTENCE + 'key "class_name" is given twice'),
    ({"label": "{}"}, LABEL_SENTENCE + "it must be a list of objects such as"),
    ({"label": '[{"class_name": "a"}, 3]'}, LABEL_SENTENCE + "it must be a list of objects such as"),
    ({"label": 3}, LABEL_SENTENCE + "it must be a list of objects such as"),
    ({"label": [*LABEL, {"class_value": 9}]}, "label: entry 4 has no class_name"),
    (
        {"label": [{**LABEL[0], "class_color": "256,0,0"}]},
        'label: entry 1 ("background"): class_color must be "R,G,B", each 0..255, got "256,0,0"',
    ),
    (
        {"label": [LABEL[0], {"class_name": "road", "class_value": 3}]},
        'label: entry 2 ("road"): class_color must be "R,G,B", each 0..255, got null',
    ),
    (
        {"label": [LABEL[0], {**LABEL[1], "class_value": 65536}]},
        'label: entry 2 ("road"): class_value must be a whole number 0..65535, got 65536',
    ),
    (
        {"label": [LABEL[0], {**LABEL[1], "class_color": "rgb(155,155,155)"}, LABEL[2]]},
        'label: "background" and "road" have the same class_color 155,155,155',
    ),
    (
        {"label": [*LABEL, {**LABEL[1], "class_value": 9, "class_color": "1,2,3"}]},
        'label: "road" and "road" have the same class_name road',
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), CASES)
def test_every_mistake_has_its_sentence(changes: dict[str, Any], sentence: str) -> None:
    problems = problems_of(**changes)
    assert len(problems) == 1 and sentence in problems[0], problems


def test_all_mistakes_are_told_at_once() -> None:
    problems = problems_of(epochs=0, batch_size="x", label="x", load_size=..., n_class=9)
    assert [problem.split(" ")[0] for problem in problems] == ["key", "label", "epochs", "batch_size", "n_class"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"epochs": 3,\n "batch_size" 4}', "x.json:2:15: not valid JSON: Expecting ':' delimiter"),
        ("[1]", 'x.json:1:1: expected an object {"training_id": ..., ...}, got [1]'),
        ('{"epochs": 3,\n  "epochs": 4}', 'x.json:2:3: key "epochs" is given twice'),
        ('{"training_id": "\\ud800"}', r"x.json: a text in it holds half of a character pair (such as \ud800)"),
        ("[" * 100_000, "x.json:1:1: not valid JSON"),
        ('{"epochs": ' + "[" * 900 + "]" * 900 + "}", "x.json: nested more than 50 levels deep"),
    ],
)
def test_no_object(text: str, sentence: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_values(text, "x.json")
    assert sentence in str(error.value)


def test_thousands_of_keys() -> None:
    """Of which one is there twice; what is nested in fewer than 50 levels is no mistake."""
    rows = [f'"key{number}": 1' for number in range(20_000)]
    with pytest.raises(RequestError, match='key "key5" is given twice'):
        parse_values("{" + ",".join([*rows, rows[5]]) + "}", "x.json")
    assert parse_values('{"a": ' + "[" * 49 + "]" * 49 + "}", "x.json")


def test_the_file_and_the_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "traincfg.json"
    with pytest.raises(RequestError, match=r"traincfg.json: there is no such file .current folder: .*--traincfg"):
        read_values(file, io.StringIO(""))
    assert read_values(file, io.StringIO('{\n"epochs": 3\n}\nmore')) == {"epochs": 3}  # as far as the object goes
    with pytest.raises(RequestError, match="standard input:1:8: not valid JSON"):
        read_values(file, io.StringIO('{"a": 1'))
    file.write_bytes(b"\xef\xbb\xbf" + b'{"epochs": 4}')
    assert read_values(file, io.StringIO("{}")) == {"epochs": 4}
    file.write_bytes(b'{"a": 1,\n"b": "\xff"}')
    with pytest.raises(RequestError, match=r"traincfg.json:2: it is no UTF-8 text"):
        read_values(file)


def test_classes_of_masks() -> None:
    """The index is the place in label; what was not chosen is background, or ignored without one."""
    label = [LABEL[2], LABEL[0], LABEL[1], {"class_name": "car", "class_value": 9, "class_color": "9,9,9"}]
    request = read_request(VALUES | {"label": label, "class_name": "background,water", "n_class": 1})
    classes = classes_of_masks(request, SEGMENTATION)
    assert [found.name for found in classes.classes] == ["water", "background"]
    assert [(found.name, name) for found, name in classes.others] == [("road", "background"), ("car", "background")]
    assert [found.name for found in classes_of_masks(request, CHANGE).classes] == ["background", "water"]

    request = read_request(VALUES | {"label": label, "class_name": "road,water"})
    classes = classes_of_masks(request, SEGMENTATION)
    assert [found.name for found in classes.classes] == ["water", "road"]
    assert [(found.name, name) for found, name in classes.others] == [("background", None), ("car", None)]
    assert [found.name for found in classes_of_masks(request, CHANGE).classes] == ["background", "water", "road"]

    request = read_request(VALUES | {"label": LABEL[1:]})
    first = classes_of_masks(request, SEGMENTATION).classes[0]
    assert (first.name, first.value, first.color) == ("background", 0, (0, 0, 0))
    rows = json.loads(classes_of_masks(request, CHANGE).json_text())
    assert [row["name"] for row in rows] == ["background", "road", "water"] and rows[2]["value"] == 7


@pytest.mark.parametrize(
    ("label", "chosen", "sentence"),
    [
        ([LABEL[0], {**LABEL[1], "class_value": 0}], "background,road", '"road" have the same class_value 0'),
        ([{**LABEL[1], "class_color": "0,0,0"}], "background,road", '"road" has the colour 0,0,0 of the background'),
        ([{**LABEL[1], "class_value": "0"}], "background,road", '"background" and "road" have the same class_value 0'),
        ([LABEL[1]], "road", "one class alone (road) leaves nothing to learn; add background to class_name"),
    ],
)  # fmt: skip
def test_classes_that_masks_cannot_tell_apart(label: Any, chosen: str, sentence: str) -> None:
    request = read_request(VALUES | {"label": label, "class_name": chosen, "n_class": 1})
    with pytest.raises(RequestError) as error:
        classes_of_masks(request, SEGMENTATION)
    assert sentence in str(error.value)


def test_classes_of_boxes() -> None:
    """Background is none; equal values do no harm, since they are not in the data."""
    label = [{**row, "class_value": 1} for row in LABEL]
    request = read_request(VALUES | {"label": label, "class_name": "background,water,road"})
    classes = classes_of_boxes(request, ["road", "car", "car", "background"])
    assert [found.name for found in classes.classes] == ["road", "water"]
    assert [(found.name, name) for found, name in classes.others] == [("car", None), ("background", None)]
    rows = json.loads(classes.json_text())
    for key in ("value", "color"):
        assert len({json.dumps(row[key]) for row in rows}) == 4
    request = read_request(VALUES | {"class_name": "background", "n_class": "0"})
    with pytest.raises(RequestError, match="class_name has no class but background"):
        classes_of_boxes(request, [])


@pytest.mark.parametrize(
    ("task", "name", "net"),
    [
        *((SEGMENTATION, "LinkNet-34", "linknet34"), (SEGMENTATION, "deeplab_v3plus", "deeplabv3plus")),
        *((DETECTION, "YOLO", "Detector"), (DETECTION, "yolo_v4", "Detector")),
        *((CHANGE, "linknet34", "siamese_linknet34"), (CHANGE, "Siamese", "siamese_linknet34")),
        (CHANGE, "FC-Siam-diff", "fc_siam_diff"),
    ],
)
def test_names_of_nets(task: str, name: str, net: str) -> None:
    found, problem = find_net(task, name)
    assert found is not None and found.keys["model_net_name"] == net and not problem


def test_names_of_other_nets() -> None:
    start = "model_name must be a net for segmentation, which the data are for: linknet34, deeplabv3plus, got "
    assert find_net(SEGMENTATION, "yolov4") == (None, start + '"yolov4"; it is a net for detection')
    assert find_net(SEGMENTATION, "linknet43") == (None, start + '"linknet43"; did you mean "linknet34"?')
    assert find_net(SEGMENTATION, "unet") == (None, start + '"unet"')
