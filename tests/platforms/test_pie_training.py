"""The platform's trainings, from traincfg.json to every key of `output/`, on small scenes with small nets."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import train as training_program
from artifacts.checkpoint import load_checkpoint
from common.paths import ROOT
from configs.schema import Config
from data_loader.bands import has_rasterio
from nets import net_interface
from nets.net_interface import build_net
from platforms.pie_engine import cli, nets, train
from platforms.pie_engine.files import OF_BOXES, OF_MASKS
from platforms.pie_engine.metrics import mask_rows
from platforms.pie_engine.nets import CHANGE, DETECTION, SEGMENTATION
from platforms.pie_engine.places import find_resume
from platforms.pie_engine.recipe import usable_gpus
from platforms.pie_engine.storage import new_client
from platforms.pie_engine.traincfg import TrainRequest
from tests.conftest import slow_but
from tests.helpers import boxes, masks, s3
from tests.helpers.pie import LABELS, MODELS, PICTURES, request, small_nets, training_log, write_data
from trainers.runtime import distributed

REAL_NETS = nets.NETS


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with small_nets(tmp_path, monkeypatch):
        yield


def mistakes(capsys: pytest.CaptureFixture[str]) -> str:
    """Run the program, which must refuse what it gets; return its sentences."""
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert "Process" not in out
    log = training_log()
    assert log["epochs"] == [] and log["best"] == "" and log["end_time"] == "" and log["create_time"]
    assert not list(Path("output/files").glob("*.th")) and not list(Path("output/picture").iterdir())
    return err


@pytest.mark.parametrize("task", [SEGMENTATION, CHANGE, DETECTION])
def test_a_training_leaves_everything(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    request(task, write_data(tmp_path / "data", task))
    for place in ("output/files/old.th", "output/picture/old.png", "output/deep/er/old"):
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        Path(place).write_text("of an earlier run")
    assert cli.main([]) == 0
    out, err = capsys.readouterr()
    assert out == "[Process: 1/2]\n[Process: 2/2]\n"
    assert "best checkpoint" in err and "last checkpoint" not in err  # which is removed
    found = {path.relative_to("output").as_posix() for path in Path("output").rglob("*") if path.is_file()}
    model = MODELS[task]
    names = (f"{model}.th", f"{model}.pth", "report.json", "report.html", "classes.json", "config.json")
    files = {f"files/{name}" for name in names}
    assert found == {"trainlog.json", *files, *(f"picture/{name}" for name in PICTURES[task])}

    log = training_log()
    description = OF_BOXES if task == DETECTION else OF_MASKS
    assert list(log) == ["training_id", "create_time", "description", "epochs", "best", "end_time"]
    assert log["training_id"] == "训练 1" and log["description"] == description
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    assert re.fullmatch(stamp, log["create_time"]) and re.fullmatch(stamp, log["end_time"])
    assert [epoch["epoch"] for epoch in log["epochs"]] == ["1", "2"]
    classes = [row["class_name"] for row in LABELS[task]]
    if task == CHANGE:
        classes = ["background", *classes]
    for epoch in log["epochs"]:
        assert list(epoch) == ["epoch", "train", "valid"]
        for split in ("train", "valid"):
            assert [row["class"] for row in epoch[split]] == ["all", *classes]
            assert set(epoch[split][0]["values"]) == set(description)
            for row in epoch[split][1:]:
                assert set(row["values"]) == set(description) - {"loss"}
                assert all(type(value) is float and 0 <= value <= 1 for value in row["values"].values())

    checkpoint = load_checkpoint(f"output/files/{model}.pth")
    best = log["epochs"][checkpoint.progress["best"]["epoch"] - 1]["valid"][0]["values"]
    assert log["best"] == {key: value for key, value in best.items() if key != "loss"}
    key = {SEGMENTATION: "mean_iou", CHANGE: "change_iou", DETECTION: "map50"}[task]
    if task != CHANGE:
        assert log["best"]["mAP" if task == DETECTION else "IoU"] == pytest.approx(checkpoint.progress["best"][key])
    report = json.loads(Path("output/files/report.json").read_text(encoding="utf-8"))
    assert "<svg" in Path("output/files/report.html").read_text(encoding="utf-8")  # and not that it could not be drawn
    assert (report["num_train"], report["num_val"]) == ((12, 6) if task == DETECTION else (10, 5))

    weights = torch.load(f"output/files/{model}.th", weights_only=True)
    deployed = checkpoint.deployed()
    assert type(weights) is dict and set(weights) == set(deployed)
    assert all(torch.equal(weights[name], deployed[name]) and weights[name].is_cpu for name in weights)
    size = boxes.SIZE if task == DETECTION else masks.SIZE
    for name in PICTURES[task]:
        with Image.open(f"output/picture/{name}") as image:
            assert (image.format, image.mode, image.size) == ("PNG", "RGB", size)


@pytest.mark.parametrize("task", [SEGMENTATION, CHANGE, DETECTION])
def test_the_training_is_that_of_train_py(task: str, tmp_path: Path) -> None:
    """With output's config.json the ordinary program gives the same figures, and the same weights to the bit."""
    request(task, write_data(tmp_path / "data", task))
    assert cli.main([]) == 0
    plain = tmp_path / "plain"
    assert training_program.main(["--config", "output/files/config.json", "--set", f"save_path={plain}"]) == 0
    reports = [json.loads((folder / "report.json").read_text()) for folder in (Path("output/files"), plain)]
    for key in ("curves", "best", "per_class"):
        assert reports[0][key] == reports[1][key] and reports[0][key]
    weights = torch.load(f"output/files/{MODELS[task]}.th", weights_only=True)
    expected = load_checkpoint(str(plain / f"{MODELS[task]}.pth")).deployed()
    assert list(weights) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    valid = training_log()["epochs"][-1]["valid"]
    keys = ("mAP", "ap50") if task == DETECTION else ("IoU", "iou")
    assert [row["values"][keys[0]] for row in valid[1:]] == [row[keys[1]] for row in reports[1]["per_class"]]


def test_figures_are_those_of_the_pixels(tmp_path: Path) -> None:
    """Counted by hand from what the weights file's net predicts, at the net's input size."""
    data = write_data(tmp_path / "data", SEGMENTATION)
    request(SEGMENTATION, data, epochs=1)
    assert cli.main([]) == 0
    net = build_net(
        "tiny_masks_module", "TinyMasks", num_classes=3, num_channels=3, img_height=32, img_width=32, model_args={}
    )
    net.load_state_dict(torch.load("output/files/LinkNet34.th", weights_only=True))
    net.eval()
    true, predicted = [], []
    for path in sorted((data / "valid/images").iterdir()):
        image = np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        pixels = torch.from_numpy(((image - mean) / std).astype(np.float32)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            predicted.append(net(pixels)[0].argmax(0).numpy())
        label = Image.open(data / "valid/labels" / path.name).resize((32, 32), Image.Resampling.NEAREST)
        true.append(np.searchsorted([0, 3, 7], np.asarray(label)))
    y, p = np.stack(true), np.stack(predicted)
    rows = training_log()["epochs"][0]["valid"]
    for index, row in enumerate(rows[1:]):
        hits, t, f = ((y == index) & (p == index)).sum(), (y == index).sum(), (p == index).sum()
        expected = (hits / max(f, 1), hits / t, 2 * hits / (t + f), hits / (t + f - hits))
        for key, value in zip(("precision", "recall", "score", "IoU"), expected, strict=True):
            assert row["values"][key] == pytest.approx(value, abs=2e-3), (row, key)
    for key in ("precision", "recall", "score", "IoU"):
        assert rows[0]["values"][key] == pytest.approx(np.mean([row["values"][key] for row in rows[1:]]))


def test_means_leave_out_a_class_that_is_neither_there_nor_predicted() -> None:
    confusion = np.array([[6, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [3, 0, 0, 0]])  # d is never predicted
    rows = mask_rows(confusion, ["a", "b", "c", "d"], 1.5)
    zero = {"precision": 0.0, "recall": 0.0, "score": 0.0, "IoU": 0.0}
    a = {"precision": 6 / 9, "recall": 6 / 8, "score": 12 / 17, "IoU": 6 / 11}
    assert [row["values"] for row in rows[1:]] == [a, zero, zero, zero]
    third = {key: pytest.approx(value / 3) for key, value in a.items()}
    assert rows[0] == {"class": "all", "values": third | {"loss": 1.5}}


def test_boxes_of_classes_that_were_not_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", DETECTION)
    request(DETECTION, data, epochs=1, class_name="background,red", n_class=1)
    assert cli.main([]) == 0
    names = [name for number in range(11) for name, *_ in boxes.scene(number)[1]]
    err = capsys.readouterr().err
    left_out = f"boxes left out, of classes that are not chosen: blue ({names.count('blue')})"
    assert f"{data / 'train'}: {left_out}" in err and f"objects: red {names.count('red')}" in err
    assert [row["class"] for row in training_log()["epochs"][0]["train"]] == ["all", "red"]


def test_pictures_are_the_best_images(tmp_path: Path) -> None:
    """The label is in the classes' colours, black where it is ignored; the classes that were not chosen are ground."""
    data = write_data(tmp_path / "data", SEGMENTATION)
    for path in (data / "valid/labels").iterdir():
        values = np.array(Image.open(path))
        values[:2] = 99
        Image.fromarray(values).save(path)
    request(SEGMENTATION, data, epochs=1, class_name="background,water", n_class=1)
    assert cli.main([]) == 0
    image, label, pred = (np.asarray(Image.open(f"output/picture/{name}.png")) for name in ("image", "label", "pred"))
    source = next(p for p in (data / "valid/images").iterdir() if np.array_equal(np.asarray(Image.open(p)), image))
    values = np.asarray(Image.open(data / "valid/labels" / source.name))
    expected = np.where((values == 7)[..., None], (0, 0, 255), (155, 155, 155))
    expected[values == 99] = 0
    assert np.array_equal(label, expected)
    assert {tuple(pixel) for pixel in pred[2:].reshape(-1, 3)} <= {(0, 0, 255), (155, 155, 155)} and not pred[:2].any()
    assert [row["class"] for row in training_log()["epochs"][0]["valid"]] == ["all", "background", "water"]


def test_changes_of_several_kinds(tmp_path: Path) -> None:
    """Two kinds beside what stays as it was; their mean IoU decides which epoch is best."""
    data = write_data(tmp_path / "data", CHANGE)
    for path in data.glob("*/labels/*"):
        values = np.array(Image.open(path))
        values[:, : masks.SIZE[0] // 2][values[:, : masks.SIZE[0] // 2] == 255] = 9
        Image.fromarray(values).save(path)
    label = [*LABELS[CHANGE], {"class_name": "gone", "class_value": "9", "class_color": "0,255,0"}]
    request(CHANGE, data, label=label, class_name="change,gone", n_class="2", epochs=3)
    assert cli.main([]) == 0
    log = training_log()
    rows = [epoch["valid"] for epoch in log["epochs"]]
    assert [row["class"] for row in rows[0]] == ["all", "background", "change", "gone"]
    deciding = [np.mean([row["values"]["IoU"] for row in valid[2:]]) for valid in rows]
    best = rows[int(np.argmax(deciding))][0]["values"]
    assert log["best"] == {key: value for key, value in best.items() if key != "loss"}
    colours = {tuple(pixel) for pixel in np.asarray(Image.open("output/picture/label.png")).reshape(-1, 3)}
    assert colours <= {(0, 0, 0), (255, 255, 255), (0, 255, 0)} and len(colours) > 1
    weights = torch.load("output/files/siamese.th", weights_only=True)
    assert weights["layers.3.weight"].shape[0] == 3


def test_resume_path_takes_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", SEGMENTATION)
    request(SEGMENTATION, data, epochs=1)
    assert cli.main([]) == 0
    (tmp_path / "saved").mkdir()
    shutil.copy("output/files/LinkNet34.th", tmp_path / "saved")
    for place in (tmp_path / "saved", f"{tmp_path}/saved/", tmp_path / "saved/LinkNet34.th"):
        found = find_resume({"resume_path": str(place), "model_name": "LinkNet34"})
        assert Path(found) == tmp_path / "saved/LinkNet34.th"
    request(SEGMENTATION, data, epochs=1, resume_path=str(tmp_path / "saved"))
    assert cli.main([]) == 0
    assert "resume_path: 0 of 9 tensors left fresh\n" in capsys.readouterr().err
    request(SEGMENTATION, data, epochs=1, resume_path="output/files", class_name="background,water", n_class=1)
    assert cli.main([]) == 0  # its own output, which is not cleared away before it is read
    err = capsys.readouterr().err
    assert "resume_path: 2 of 9 tensors left fresh: layers.3.weight, layers.3.bias\n" in err
    assert "resume_path: 2 of the file's 9 tensors are not used: layers.3.weight, layers.3.bias\n" in err


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"a": torch.zeros(2)}, "LinkNet34.th is of another net: of its 1 tensors none has a name and a shape of the"),
        ({"weights": Path("x")}, "LinkNet34.th"),  # a pickle of more than tensors is not run
        (b"PK damaged", "LinkNet34.th"),
        (None, "resume_path: there is no file /nowhere/LinkNet34.th; leave it empty to train from the beginning"),
    ],
)
def test_resume_path_of_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: Any, sentence: str
) -> None:
    place = "/nowhere"
    if state is not None:
        torch.save(state, tmp_path / "LinkNet34.th")
        if isinstance(state, bytes):
            (tmp_path / "LinkNet34.th").write_bytes(state)
        place = str(tmp_path)
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), resume_path=place)
    assert sentence in mistakes(capsys)


@pytest.mark.parametrize(
    ("task", "change", "sentence"),
    [
        (SEGMENTATION, {"model_name": "yolov4"}, "model_name must be a net for segmentation"),
        (DETECTION, {"model_name": "linknet34"}, 'yolov4, yolo, got "linknet34"; it is a net for segmentation'),
        (SEGMENTATION, {"dataset_path": "/nowhere"}, "/nowhere: there is no such folder with a data set"),
        (SEGMENTATION, {"dataset_path": ""}, "no data set: dataset_id, and the environment's AI_DATASET_ID, are empty"),
        (SEGMENTATION, {"dataset_path": "", "dataset_id": "x"}, "the environment's PIE_DATASET_ROOT is not set"),
        (DETECTION, {"class_name": "car", "n_class": 1, "label": [{**LABELS[DETECTION][0], "class_name": "car"}]},
         "train: no object is of a chosen class: found "),
        (SEGMENTATION, {"label": [{**row, "class_value": 90 + i, "class_color": f"{i},1,2"} for i, row in
                                  enumerate(LABELS[SEGMENTATION])]}, "found value 0 ("),
    ],
)  # fmt: skip
def test_requests_that_do_not_fit_their_data(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    change: Any,
    sentence: str,
) -> None:
    for name in ("PIE_DATASET_ROOT", "AI_DATASET_ID"):
        monkeypatch.delenv(name, raising=False)
    request(task, write_data(tmp_path / "data", task), **change)
    assert sentence in mistakes(capsys)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "traincfg.json: there is no such file (current folder: "),
        ("{1}", "traincfg.json:1:2: not valid JSON: Expecting property name"),
        ("[]", 'traincfg.json:1:1: expected an object {"training_id": ...'),
        ('{"epochs": 1, "epochs": 2}', 'traincfg.json:1:15: key "epochs" is given twice'),
    ],
)
def test_no_request(
    text: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    if text is not None:
        Path("traincfg.json").write_text(text, encoding="utf-8")
    assert sentence in mistakes(capsys)


@pytest.mark.parametrize("task", [SEGMENTATION, CHANGE, DETECTION])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_an_empty_split(task: str, split: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without pictures, or not there at all."""
    data = write_data(tmp_path / "data", task)
    request(task, data)
    for path in [*data.glob(f"{split}/*/*")]:
        if path.suffix == ".png" and (path.parent.name != "labels" or split == "valid"):
            path.unlink()
    err = mistakes(capsys)
    assert f"{data / split}" in err, err
    shutil.rmtree(data / split)
    err = mistakes(capsys)
    assert str(data / split) in err or f"{data}: no data for any task" in err, err
    assert f"{data / ('valid' if split == 'train' else 'train')}" not in err.replace(f"{data}: no data", "")


def test_a_folder_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train").symlink_to("train")
    request(SEGMENTATION, tmp_path / "data")
    text = f"{tmp_path}/data/train: the folder cannot be read: {os.strerror(errno.ELOOP)}"
    assert text in mistakes(capsys)
    long = "x/" * 3000
    request(SEGMENTATION, tmp_path, dataset_path=long, resume_path=f"{long}y", epochs=0)
    err = mistakes(capsys)
    assert err.count(os.strerror(errno.ENAMETOOLONG)) == 2 and "epochs must be" in err
    request(SEGMENTATION, tmp_path, dataset_path="a\0b")
    assert "there is no such folder with a data set" in mistakes(capsys)


def test_a_request_and_its_data_are_judged_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", SEGMENTATION)
    (data / "train/labels/00.png").unlink()
    (data / "valid/images/01.png").unlink()
    request(SEGMENTATION, data, model_name="unet")
    err = mistakes(capsys)
    assert "00.png: there is no mask 00.*" in err and "01.png: there is no image 01.*" in err and "unet" in err
    request(SEGMENTATION, data, epochs=0, model_name="unet", resume_path="/nowhere")
    err = mistakes(capsys)
    assert "epochs must be" in err and '"unet"' in err and "resume_path: there is no file" in err


def test_many_files_without_a_partner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", CHANGE)
    for number in range(10, 35):
        shutil.copy(data / "train/A/00.png", data / f"train/A/{number}.png")
    request(CHANGE, data)
    err = mistakes(capsys)
    assert err.count("there is no second image") == 20 and f"... and 30 more in {data}/train" in err


def test_where_the_data_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIE_DATASET_ROOT", str(tmp_path))
    monkeypatch.setenv("AI_DATASET_ID", "data")
    data = write_data(tmp_path / "data", SEGMENTATION)
    for changes in ({"dataset_path": ...}, {"dataset_path": ..., "dataset_id": None}):
        request(SEGMENTATION, data, epochs=1, **changes)
        assert cli.main([]) == 0 and capsys.readouterr().out == "[Process: 1/1]\n"
    request(SEGMENTATION, data, dataset_path=..., dataset_id=57)  # and not that of the environment
    assert f"{tmp_path}/57: there is no such folder with a data set" in mistakes(capsys)
    request(SEGMENTATION, data, dataset_path=..., dataset_id="../data")
    assert 'dataset_id must be the name of a folder below PIE_DATASET_ROOT, got "../data"' in mistakes(capsys)
    (tmp_path / "empty/train").mkdir(parents=True)
    (tmp_path / "empty/train/pictures").mkdir()
    request(SEGMENTATION, data, dataset_path=str(tmp_path / "empty"))
    assert "no data for any task: expected train/ and valid/ with images/ and labels/" in mistakes(capsys)


def test_bad_samples_are_skipped_up_to_one_percent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data", SEGMENTATION)
    path = data / "train/images/03.png"
    path.write_bytes(path.read_bytes()[:200])
    request(SEGMENTATION, data, epochs=1)
    assert "03.png" in mistakes(capsys)
    for number in range(10, 100):
        for kind in ("images", "labels"):
            shutil.copy(data / f"train/{kind}/04.png", data / f"train/{kind}/{number}.png")
    assert cli.main([]) == 0
    report = json.loads(Path("output/files/report.json").read_text(encoding="utf-8"))
    assert report["num_train"] == 99 and [Path(row["path"]).name for row in report["skipped_images"]] == ["03.png"]


def test_an_early_stop_ends_with_its_line_and_the_best_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainRequest, "patience", lambda self: 2 * self.auto_termination)
    request(
        SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), epochs=40, learning_rate=1e-9, auto_termination=1
    )
    assert cli.main([]) == 0
    log = training_log()
    count = len(log["epochs"])
    assert count < 40
    lines = [f"[Process: {number}/40]" for number in range(1, count + 1)]
    assert capsys.readouterr().out.splitlines() == lines and log["end_time"]
    weights = torch.load("output/files/LinkNet34.th", weights_only=True)
    best = load_checkpoint("output/files/LinkNet34.pth")
    assert best.progress["best"]["epoch"] == count - 2
    assert all(torch.equal(value, best.deployed()[name]) for name, value in weights.items())


def test_one_image_a_batch(tmp_path: Path) -> None:
    for side, expected in (("32", (2, 1)), ("64", (1, 2))):
        data = tmp_path / side
        request(SEGMENTATION, write_data(data, SEGMENTATION), epochs=1, batch_size=1, load_size=side)
        assert cli.main([]) == 0
        config = load_checkpoint("output/files/LinkNet34.pth").config
        assert (config["batch_size"], config["accumulation_steps"]) == expected


def test_gpus_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), epochs=1, gpu_num=2, load_size="64,32")
    assert cli.main([]) == 0
    config = load_checkpoint("output/files/LinkNet34.pth").config
    assert (config["img_width"], config["img_height"], config["quarter_turns"]) == (64, 32, False)
    text = "warning: gpu_num is 2, but torch can use 0 GPUs here: training on the CPU"
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wanted", "there", "used", "warning"),
    [
        *((0, 2, 0, ""), (1, 2, 1, ""), (2, 2, 2, "")),
        (4, 2, 2, "warning: gpu_num is 4, but torch can use 2 GPUs here: training on 2 of them"),
        (1, 0, 0, "warning: gpu_num is 1, but torch can use 0 GPUs here: training on the CPU"),
    ],
)
def test_how_many_gpus_are_used(
    wanted: int, there: int, used: int, warning: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    lines: list[str] = []
    assert usable_gpus(wanted, lines.append) == used and lines == [warning] * bool(warning)


@pytest.mark.parametrize(
    ("gpus", "batch_size", "side", "expected"),
    [
        *((0, 4, "64", ("cpu", 4, 1)), (1, 4, "64", ("0", 4, 1)), (1, 1, "64", ("0", 1, 2)), (1, 1, "32", ("0", 2, 1))),
        *((2, 8, "64", ("0,1", 4, 1)), (3, 8, "64", ("0,1,2", 3, 1)), (2, 1, "64", ("0,1", 1, 2))),
        *((2, 2, "64", ("0,1", 1, 1)), (2, 2, "32", ("0,1", 2, 1))),  # a map of one pixel has no statistics
    ],
)
def test_the_batch_of_each_gpu(
    gpus: int, batch_size: int, side: str, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their shares are the batch together, rounded up, and each can be normalised."""
    configs: list[Config] = []
    monkeypatch.setattr(train, "usable_gpus", lambda wanted, log: gpus)
    monkeypatch.setattr(train, "train", lambda config, *args: configs.append(config))
    monkeypatch.setattr(train, "finish", lambda *args: None)
    request(SEGMENTATION, write_data(tmp_path / "data", SEGMENTATION), batch_size=batch_size, load_size=side)
    assert cli.main([]) == 0
    (config,) = configs
    assert (config.gpu_id, config.batch_size, config.accumulation_steps) == expected


@pytest.mark.slow
def test_several_processes_leave_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two processes on the CPU, with a net that they can import: complete, and every image counted once."""
    monkeypatch.setattr(nets, "NETS", REAL_NETS)
    monkeypatch.setattr(net_interface, "NETS_DIR", ROOT / "nets")
    data = write_data(tmp_path / "data", CHANGE)
    request(CHANGE, data, epochs=2, model_name="fc-siam-diff")
    made = train.make_config
    monkeypatch.setattr(train, "make_config", lambda *args: made(*args).model_copy(update={"num_processes": 2}))
    assert cli.main([]) == 0
    assert capfd.readouterr().out == "[Process: 1/2]\n[Process: 2/2]\n"
    log = training_log()
    assert [epoch["epoch"] for epoch in log["epochs"]] == ["1", "2"]
    report = json.loads(Path("output/files/report.json").read_text(encoding="utf-8"))
    pixels = sum(Image.open(path).resize((32, 32)).size[0] * 32 for path in (data / "valid/labels").iterdir())
    assert np.sum(report["confusion"]) == pixels
    assert torch.load("output/files/fc-siam-diff.th", weights_only=True)


WORKER = """
import os, sys
from pathlib import Path
import pytest
from platforms.pie_engine import cli
from tests.helpers.masks import mask_nets

with pytest.MonkeyPatch.context() as patch, mask_nets(Path(sys.argv[1], os.environ["RANK"]), patch):
    sys.exit(cli.main(["--worker", sys.argv[2]]))
"""


@pytest.mark.slow
def test_two_processes_equal_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As two GPUs would have it: half of the batch for each, one line an epoch, and the figures of one process."""
    (net,) = nets.NETS[SEGMENTATION]
    keys = {**net.keys, "model_args": {"norm": False}}  # each process would have batch statistics of its own
    monkeypatch.setattr(nets, "NETS", {SEGMENTATION: (nets.Net(net.names, keys),)})
    (tmp_path / "data").mkdir()
    data = masks.write_scenes(tmp_path / "data", train=12)  # whole batches: a rest of one image for each is left out
    request(SEGMENTATION, data, gpu_num=2)
    made: Any = train.make_config
    launched = distributed.launch

    def launch(command: Sequence[str], count: int) -> int:
        assert command[:3] == ["-m", "platforms.pie_engine", train.WORKER] and count == 2
        for rank in range(count):
            (tmp_path / f"{rank}").mkdir()
        return launched([str(tmp_path / "worker.py"), str(tmp_path), *command[3:]], count)

    def config(*args: Any) -> Any:
        found = made(*args[:6], 2, *args[7:])
        assert (found.gpu_id, found.batch_size) == ("0,1", 2)
        return found.model_copy(update={"gpu_id": "cpu", "num_processes": 2})

    assert cli.main([]) == 0
    one, weights = training_log(), torch.load("output/files/LinkNet34.th", weights_only=True)
    capfd.readouterr()
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setattr(train, "make_config", config)
    monkeypatch.setattr(distributed, "launch", launch)
    assert cli.main([]) == 0
    assert capfd.readouterr().out == "[Process: 1/2]\n[Process: 2/2]\n"
    two = training_log()
    for mine, theirs in zip(one["epochs"], two["epochs"], strict=True):
        for split in ("train", "valid"):
            for row, other in zip(mine[split], theirs[split], strict=True):
                assert other == {"class": row["class"], "values": pytest.approx(row["values"], abs=1e-3)}
    for name, value in torch.load("output/files/LinkNet34.th", weights_only=True).items():
        assert torch.allclose(value, weights[name], atol=1e-4)


@pytest.mark.parametrize("task", slow_but([SEGMENTATION], [SEGMENTATION, CHANGE, DETECTION]))
def test_a_training_from_a_store_is_the_same(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The figures are those of the same data in a folder; a damaged object is a bad sample, and called by its key."""
    pytest.importorskip("boto3", reason="requirements-pie.txt")
    pytest.importorskip("moto", reason="the S3 server of these tests: pip install moto[server]")
    data = write_data(tmp_path / "data", task)
    request(task, data)
    assert cli.main([]) == 0
    expected = training_log()
    with s3.moto_server() as port:
        for name, value in s3.environment(f"http://127.0.0.1:{port}").items():
            monkeypatch.setenv(name, value)
        client = new_client()
        client.create_bucket(Bucket=s3.BUCKET)
        s3.upload(client, data, "sets/d1/")
        client.put_object(
            Bucket=s3.BUCKET, Key="weights/start.th", Body=Path(f"output/files/{MODELS[task]}.th").read_bytes()
        )
        monkeypatch.setenv("PIE_DATASET_ROOT", f"s3://{s3.BUCKET}/sets")
        request(task, data, dataset_path=..., dataset_id="d1")
        assert cli.main([]) == 0
        log = training_log()
        assert (log["epochs"], log["best"]) == (expected["epochs"], expected["best"])
        capsys.readouterr()
        resume = f"s3://{s3.BUCKET}/weights/start.th"
        request(task, data, dataset_path=..., dataset_id="d1", epochs=1, resume_path=resume)
        assert cli.main([]) == 0
        err = capsys.readouterr().err
        assert "tensors left fresh" in err and "objects, 0 of them fetched" in err
        request(task, data, dataset_path=f"s3://{s3.BUCKET}/sets/none", epochs=0)
        err = mistakes(capsys)
        assert "epochs must be" in err and f"s3://{s3.BUCKET}/sets/none/: no data for any task" in err
        client.delete_object(
            Bucket=s3.BUCKET, Key="sets/d1/train/labels/01" + (".xml" if task == DETECTION else ".png")
        )
        request(task, data, dataset_path=f"s3://{s3.BUCKET}/sets/d1/")
        assert f"s3://{s3.BUCKET}/sets/d1/train/" in mistakes(capsys)


def with_infrared(folder: Path, coordinates: bool) -> None:
    """Make all pictures of a data set TIFFs with a fourth band of 8 bits."""
    tifffile = pytest.importorskip("tifffile")
    keys = (1, 1, 0, 1, 1024, 0, 1, 1)
    for path in sorted(folder.rglob("images/*.png")):
        pixels = np.asarray(Image.open(path))
        tags = [(34735, 3, len(keys), keys, True)] if coordinates else []
        bands = np.dstack([pixels, 255 - pixels[:, :, :1]])
        tifffile.imwrite(
            path.with_suffix(".tif"), bands, photometric="rgb", extrasamples=["unassalpha"], extratags=tags
        )
        path.unlink()


@pytest.mark.parametrize("coordinates", [True, False])
def test_a_fourth_band(tmp_path: Path, coordinates: bool) -> None:
    """Near infrared in a TIFF with a coordinate system, else transparency."""
    data = write_data(tmp_path / "data", SEGMENTATION)
    with_infrared(data, coordinates)
    request(SEGMENTATION, data, epochs=1)
    assert cli.main([]) == 0
    checkpoint = load_checkpoint("output/files/LinkNet34.pth")
    assert checkpoint.metadata.preprocess.channels == (4 if coordinates else 3)
    weights = torch.load("output/files/LinkNet34.th", weights_only=True)
    assert weights["layers.0.weight"].shape[1] == (4 if coordinates else 3)
    assert np.asarray(Image.open("output/picture/image.png")).shape == (masks.SIZE[1], masks.SIZE[0], 3)


@pytest.mark.parametrize("are_bands", [True, False])
def test_pictures_that_differ_in_bands_or_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], are_bands: bool
) -> None:
    """The first one with others, and one among ordinary pictures; both files are named."""
    tifffile = pytest.importorskip("tifffile")
    data = write_data(tmp_path / "data", SEGMENTATION)
    pixels = np.asarray(Image.open(data / "train/images/03.png"))
    if are_bands:
        with_infrared(data, True)
    else:
        (data / "train/images/03.png").unlink()
        pixels = np.dstack([pixels, pixels[:, :, :2]])
    tifffile.imwrite(data / "train/images/03.tif", pixels, photometric="rgb")
    request(SEGMENTATION, data)
    first = data / f"train/images/00.{'tif' if are_bands else 'png'}"
    kinds = (
        ("colours or grey of 8 bits", "4 bands of uint8")
        if are_bands
        else ("5 bands of uint8", "colours or grey of 8 bits")
    )
    if not are_bands and not has_rasterio():
        pytest.skip("rasterio")
    err = mistakes(capsys)
    text = f"{data}/train/images/03.tif: it has {kinds[0]}, but {first} has {kinds[1]}; all pictures of a data set"
    assert text in err, err


def test_a_store_without_boto3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    request(SEGMENTATION, tmp_path, dataset_path="s3://bucket/sets/d1", resume_path="s3://bucket/runs/1")
    err = mistakes(capsys)
    text = "reading from S3 needs boto3, which is not installed: pip install -r requirements-pie.txt"
    assert err.count(text) == 2 and f"resume_path: {text}" in err
