"""The tianji platform: its files against the contract's own examples, its flags, and its failures."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from artifacts.checkpoint import load_checkpoint
from artifacts.metadata import ModelMetadata
from common.atomic_io import ResultsError
from common.paths import ROOT
from configs.loading import ConfigError, process_config
from configs.schema import Config
from data_loader.preprocess import Preprocess, as_array
from data_loader.samples import Sample, SampleList
from deploy.inference.class_prediction import ClassPrediction
from platforms.base import PlatformError, write_text
from platforms.tianji import cli, recipes
from platforms.tianji import train as training
from platforms.tianji.dataset import read_dataset, split_valid
from platforms.tianji.evaluate import measure_accuracy, model_of
from platforms.tianji.files import Runs, generated_name, new_evaluation_path
from platforms.tianji.recipes import FixedKeys, make_config, read_annotation, requested_model
from platforms.tianji.response import ROUTE, entry
from tests.conftest import CLASSES, write_image
from trainers.config_checks import net_problems

# The contract's examples, verbatim.
TRAINED = """{"recom_model": "FGVC_PIM",
 "gened_model_name": "FGVC_PIM_autotables-2503-train-1",
 "metric_type": "acc", "metric_value": 81.6506,
 "used_models": "FGVC_PIM",
 "model_path": "/app/tianji/runs/models/0",
 "model_params": {},
 "eval_result": {"FGVC_PIM": {"eval": {"acc": 81.6506}}},
 "predict_prob": {},
 "train_consuming": {"FGVC_PIM": {"total": 793.2808, "train_time": 681.339, "valid_time": 100.2668}}}"""
TESTED = """{"model_path": "/app", "predict_result_filename": "evaluation_1649929022.json", "preview_data": {},
 "test_result": {"FGVC_PIM": {"test": {"acc": 81.563}}}, "predict_prob": {},
 "test_consuming": {"FGVC_PIM": {"test": 42.2669}}}"""

QUICK = {  # on top of the recipes
    "num_epochs": 1,
    "img_height": 32,
    "img_width": 32,
    "batch_size": 8,
    "precision": "fp32",
    "is_tensorboard": False,
}
QUICK_PIM = QUICK | {
    "train_mode": "fromscratch",
    "pretrained_file": "",
    "model_args": {"model_type": "resnet18", "fpn_size": 8},
}
QUICK_SIMSIAM = QUICK | {
    "model_type": "resnet18",
    "next_stage": {"num_epochs": 1},
    "model_args": {"projector_size": 16, "predictor_size": 8},
}


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make 21 images to train on and to test on, one of each 21 damaged, and 15 to validate on."""
    root = tmp_path_factory.mktemp("labelled")
    for split, count, seed in (("train", 21, 0), ("valid", 15, 100), ("test", 21, 200)):
        (root / split / "annotations").mkdir(parents=True)
        for number in range(count):
            path = root / split / "images" / CLASSES[number % 3] / f"{number}.png"
            write_image(path, number % 3, seed + number)
            if number == 20:
                path.write_bytes(path.read_bytes()[:200])
    return root


@pytest.fixture(scope="module")
def unlabelled(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the same dataset without class folders in train."""
    root = tmp_path_factory.mktemp("unlabelled")
    for split in ("valid", "test"):
        (root / split).symlink_to(labelled / split)
    (root / "train" / "images").mkdir(parents=True)
    for number in range(20):
        image = labelled / "train" / "images" / CLASSES[number % 3] / f"{number}.png"
        (root / "train" / "images" / image.name).symlink_to(image)
    return root


@pytest.fixture(scope="module")
def pim(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train FGVC_PIM, with an export that fails; return the runs folder and the metric file's values."""
    runs = tmp_path_factory.mktemp("pim_runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "EXPORTS", ("abacus",))
        assert train(labelled, runs, QUICK_PIM) == 0
    return runs, metric_of(runs)


@pytest.fixture(scope="module")
def simsiam(unlabelled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Train SimSiam from unlabelled images, with its export."""
    runs = tmp_path_factory.mktemp("simsiam_runs")
    assert train(unlabelled, runs, QUICK_SIMSIAM, "--trial_name", "试验 1") == 0
    return runs, metric_of(runs)


def train(dataset: Path, runs: Path, settings: dict[str, Any], *flags: str) -> int:
    given = ["--annotation_data", json.dumps({"advance_settings": settings}), "--device", "cpu"]
    return cli.train(["--dataset_path", str(dataset), "--runs_dir", str(runs), *given, *flags])


def test_model(dataset: Path, runs: Path, folder: str | Path, name: str) -> int:
    where = ["--model_path", str(folder), "--used_model", name, "--device", "cpu", "--runs_dir", str(runs)]
    return cli.test(["--dataset_path", str(dataset), *where])


test_model.__test__ = False  # it is no test


def metric_of(runs: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((runs / "metric" / "trial.txt").read_text(encoding="ascii"))
    return values


def shape(value: Any) -> Any:
    """Return a value with its keys in their order, and its numbers and texts as their types."""
    if isinstance(value, dict):
        return [(key, shape(item)) for key, item in value.items()]
    return type(value).__name__


def as_model(text: str, model: str) -> Any:
    return shape(json.loads(text.replace("FGVC_PIM", model)))


def share_right(report: Path) -> float:
    """Return the accuracy by a report's confusion matrix."""
    confusion = json.loads(report.read_text(encoding="utf-8"))["confusion"]
    return sum(row[label] for label, row in enumerate(confusion)) / sum(map(sum, confusion))


def test_pim_writes_the_contracts_metric(pim: tuple[Path, dict[str, Any]]) -> None:
    runs, metric = pim
    assert shape(metric) == as_model(TRAINED, "FGVC_PIM")
    folder = Path(metric["model_path"])
    assert folder.is_absolute() and folder.parent == runs / "models"
    assert metric["recom_model"] == metric["used_models"] == "FGVC_PIM"
    assert metric["gened_model_name"] == "FGVC_PIM_autotables-2503-train-1"
    expected = round(100 * share_right(folder / "report.json"), 4)  # percent
    assert metric["metric_value"] == metric["eval_result"]["FGVC_PIM"]["eval"]["acc"] == expected
    seconds = metric["train_consuming"]["FGVC_PIM"]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert seconds["train_time"] == round(report["train_seconds"], 4) > 0
    assert seconds["valid_time"] == round(report["validation_seconds"], 4) > 0
    assert seconds["total"] > seconds["train_time"] + seconds["valid_time"]


def test_the_model_folders_are_complete(pim: tuple[Path, dict[str, Any]], simsiam: tuple[Path, dict[str, Any]]) -> None:
    both = {"classes.txt", "config.json", "report.html", "report.json"}
    lists = {"pretraining_train.txt", "refinement_train.txt", "refinement_valid.txt"}
    exported = {"model.onnx", "export_report.json"}
    assert names_in(pim[1]) == {
        "FGVC_PIM_autotables-2503-train-1.pth",
        *both,
    }  # its export failed, and took nothing away
    assert names_in(simsiam[1]) == {"SimSiam_试验 1.pth", "pretraining", *both, *lists, *exported}
    for metric in (pim[1], simsiam[1]):  # train.py can go on with it
        config = process_config(Path(metric["model_path"]) / "config.json", checks=[net_problems])
        trained = load_checkpoint((config.next_config() or config).best_checkpoint())
        assert trained.config == (config.next_config() or config).model_dump()


def names_in(metric: dict[str, Any]) -> set[str]:
    return {path.name for path in Path(metric["model_path"]).iterdir()}


def test_class_names_and_damaged_images_are_listed(pim: tuple[Path, dict[str, Any]]) -> None:
    folder = Path(pim[1]["model_path"])
    names_written = (folder / "classes.txt").read_text(encoding="utf-8").split()
    assert sorted(names_written) == sorted(CLASSES)  # the folders' own
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [Path(skipped["path"]).name for skipped in report["skipped_images"]] == ["20.png"]


def test_an_evaluation_is_the_contracts(
    pim: tuple[Path, dict[str, Any]], labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(pim[1]["model_path"])
    expected = round(100 * share_by_hand(folder / "FGVC_PIM_autotables-2503-train-1.pth", labelled), 4)
    written = set()
    for name in ("FGVC_PIM_autotables-2503-train-1", "FGVC_PIM_autotables-2503-train-1.pth"):
        assert test_model(labelled, tmp_path, folder, name) == 0
        metric = metric_of(tmp_path)
        assert shape(metric) == as_model(TESTED, "FGVC_PIM")
        evaluation = folder / metric["predict_result_filename"]
        assert evaluation.read_bytes() == (tmp_path / "metric" / "trial.txt").read_bytes()
        assert metric["test_result"]["FGVC_PIM"]["test"]["acc"] == expected
        assert metric["model_path"] == str(folder)
        assert metric["test_consuming"]["FGVC_PIM"]["test"] > 0
        assert "1 of 21 images of test have no prediction and are left out" in capsys.readouterr().err
        written.add(evaluation.name)
    assert len(written) == 2  # a second has one evaluation


def share_by_hand(weights: Path, dataset: Path) -> float:
    """Return the accuracy on the 20 good test images, one by one, by the net itself."""
    from deploy.backends.loading import load_torch

    backend, metadata = load_torch(weights, "cpu", None)
    right = 0
    for number in range(20):
        name = CLASSES[number % 3]
        image = metadata.preprocess.decode(dataset / "test" / "images" / name / f"{number}.png")
        with torch.inference_mode():
            logits = backend.net(torch.from_numpy(metadata.preprocess(as_array(image))[None]))
        right += metadata.class_names[int(logits.argmax())] == name
    return right / 20


def test_simsiam_learns_from_four_fifths_of_valid(simsiam: tuple[Path, dict[str, Any]], unlabelled: Path) -> None:
    _, metric = simsiam
    assert shape(metric) == as_model(TRAINED, "SimSiam")
    assert metric["gened_model_name"] == "SimSiam_试验 1"
    folder = Path(metric["model_path"])
    assert (folder / "SimSiam_试验 1.pth").is_file() and (folder / "pretraining" / "encoder.pth").is_file()
    assert metric["metric_value"] == round(share_right(folder / "report.json"), 4)  # a share
    parts = {name: lines_of(folder / f"refinement_{name}.txt") for name in ("train", "valid")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 12, "valid": 3}
    for part, each in (("train", 4), ("valid", 1)):
        assert sorted(line.split("/")[0] for line in parts[part]) == sorted(CLASSES * each)
    listed = sorted(line.partition("----")[0] for part in parts.values() for line in part)
    images = unlabelled / "valid" / "images"
    assert listed == sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))  # none twice
    assert sorted(lines_of(folder / "pretraining_train.txt")) == sorted(f"{number}.png" for number in range(20))
    seconds = [json.loads(path.read_text(encoding="utf-8")) for path in folder.rglob("report.json")]
    assert len(seconds) == 2
    consumed = metric["train_consuming"]["SimSiam"]
    assert consumed["train_time"] == pytest.approx(sum(report["train_seconds"] for report in seconds), abs=1e-4)
    assert consumed["valid_time"] == pytest.approx(sum(report["validation_seconds"] for report in seconds), abs=1e-4)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_simsiam_is_evaluated_as_a_share(
    simsiam: tuple[Path, dict[str, Any]], unlabelled: Path, tmp_path: Path
) -> None:
    folder = Path(simsiam[1]["model_path"])
    expected = round(share_by_hand(folder / "SimSiam_试验 1.pth", unlabelled), 4)
    for name in ("SimSiam_试验 1", "model.onnx"):
        assert test_model(unlabelled, tmp_path, folder, name) == 0
        metric = metric_of(tmp_path)
        assert shape(metric) == as_model(TESTED, "SimSiam")
        assert metric["test_result"]["SimSiam"]["test"]["acc"] == expected


def test_the_encoder_alone_classifies_nothing(
    simsiam: tuple[Path, dict[str, Any]], unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(simsiam[1]["model_path"]) / "pretraining"
    assert test_model(unlabelled, tmp_path, folder, "encoder") == 2
    assert "client_test.py: this net gives features, not classes" in capsys.readouterr().err


def test_labelled_images_are_refined_on_and_all_of_valid_measures(labelled: Path, tmp_path: Path) -> None:
    dataset = read_dataset(labelled)
    first = training.prepare("SimSiam", "SimSiam_a", tmp_path, dataset, "cpu", QUICK_SIMSIAM)
    second = first.next_config()
    assert second is not None
    train_images, valid_images = (str(labelled / split / "images") for split in ("train", "valid"))
    listed = lines_of(Path(first.train_data_file))
    assert len(listed) == 21 and not any("----" in line for line in listed)  # no labels for the pretraining
    assert (first.train_data_root_dir, first.val_data_file) == (train_images, "")
    assert (second.train_data_root_dir, second.train_data_file) == (train_images, "")
    assert (second.val_data_root_dir, second.val_data_file) == (valid_images, "")
    assert (second.num_epochs, second.batch_size, second.img_height) == (1, 32, 32)  # settings and recipe
    assert second.best_checkpoint() == tmp_path / "SimSiam_a.pth"
    assert second.start_weights() == first.best_checkpoint()
    assert not [path for path in tmp_path.rglob("*.txt") if "test/" in path.read_text(encoding="utf-8")]


def test_files_that_are_no_images_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "valid"):
        for name in ("cat/1.png", "cat/2.heic", "dog/3.png"):
            path = tmp_path / split / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    read_dataset(tmp_path)
    notes = capsys.readouterr().err.splitlines()
    assert [note.partition(" (")[0] for note in notes] == [
        f"note: {tmp_path}/{split}/images: left out, as no images: 1 .heic" for split in ("train", "valid")
    ]


@pytest.mark.parametrize(("count", "kept"), [(1, 0), (2, 1), (3, 1), (5, 1), (7, 1), (8, 2), (10, 2), (60, 12)])
def test_a_fifth_of_every_class_is_measured_on(count: int, kept: int) -> None:
    valid = many(count)
    learnt, measured = split_valid(valid, 0)
    for label in (0, 1):
        own = [sample for sample in measured if sample.label == label]
        assert len(own) == (kept if label == 0 else 2)  # the other class has 10
    assert sorted([*learnt, *measured], key=lambda sample: sample.path) == sorted(
        valid.samples, key=lambda sample: sample.path
    )


def many(count: int) -> SampleList:
    counts = {0: count, 1: 10}
    samples = [Sample(f"/v/{label}/{number:02}.jpg", label) for label, n in counts.items() for number in range(n)]
    return SampleList(tuple(samples), ("a", "b"), "/v", "/v")


def test_the_draw_follows_from_the_seed() -> None:
    assert split_valid(many(60), 3) == split_valid(many(60), 3)
    assert split_valid(many(60), 3) != split_valid(many(60), 4)


def test_single_images_leave_nothing_to_measure_on() -> None:
    single = SampleList((Sample("/v/a/1.jpg", 0), Sample("/v/b/1.jpg", 1)), ("a", "b"), "/v", "/v")
    with pytest.raises(PlatformError, match="/v: one image per class leaves none to measure on"):
        split_valid(single, 0)


@pytest.mark.parametrize(
    "text",
    [
        "{'advance_settings': {'num_epochs': 3, 'data_aug': False, 'mean': (0.5, 0.5, 0.5)}}",
        '{"advance_settings": {"num_epochs": 3, "data_aug": false, "mean": [0.5, 0.5, 0.5]}}',
    ],
)
def test_annotation_data_is_a_python_or_a_json_literal(text: str) -> None:
    settings = read_annotation(text)
    assert {**settings, "mean": list(settings["mean"])} == {"num_epochs": 3, "data_aug": False, "mean": [0.5] * 3}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("__import__('os').mkdir('evil')", "--annotation_data is no Python or JSON literal such as"),
        ("{'advance_settings': open('evil', 'w')}", "--annotation_data is no Python or JSON literal such as"),
        ("(" * 100_000, "--annotation_data is no Python or JSON literal such as"),
        ("", "--annotation_data is no Python or JSON literal such as"),
        ("[1]", "--annotation_data must be an object {...}, got a list"),
        ("{'advanced_settings': {}}", 'unknown key "advanced_settings"; did you mean "advance_settings"?'),
        ("{'advance_settings': 5}", "advance_settings must be an object {...}, got 5"),
    ],
)
def test_annotation_data_that_is_none(
    text: str, sentence: str, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    code = cli.train(["--dataset_path", str(labelled), "--runs_dir", str(runs), f"--annotation_data={text}"])
    assert code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("client_train.py: ") and sentence in captured.err
    assert not (tmp_path / "evil").exists()
    assert sentence in metric_of(runs)["error"]


@pytest.mark.parametrize(
    ("flag", "settings", "model"),
    [
        (None, {}, None),
        ("SimSiam", {}, "SimSiam"),
        (None, {"model": "FGVC_PIM"}, "FGVC_PIM"),
        (None, {"model_module_name": "simsiam_module"}, "SimSiam"),
        ("FGVC_PIM", {"model": "FGVC_PIM", "model_module_name": "pim_module"}, "FGVC_PIM"),
    ],
)
def test_the_requested_model(flag: str | None, settings: dict[str, Any], model: str | None) -> None:
    assert requested_model(flag, settings | {"seed": 1}) == (model, {"seed": 1})


@pytest.mark.parametrize(
    ("flag", "settings", "sentence"),
    [
        ("SimSiam", {"model": "FGVC_PIM"}, "--model is SimSiam, advance_settings.model is FGVC_PIM"),
        (None, {"model": "PIM"}, 'the platform\'s models are FGVC_PIM and SimSiam, got "PIM"'),
        (None, {"model": ["PIM"]}, "the platform's models are FGVC_PIM and SimSiam, got ['PIM']"),
        (None, {"model_module_name": "resnet_module"}, 'got "a net of resnet_module"'),
    ],
)
def test_a_model_that_is_none_of_the_platforms(flag: str | None, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(PlatformError) as caught:
        requested_model(flag, settings)
    assert sentence in str(caught.value)


def test_all_mistakes_in_the_settings_are_reported_at_once(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = QUICK_PIM | {
        "num_epochs": 0,
        "leaning_rate": 1,
        "save_path": "x",
        "num_classes": 4,
        "next_stage": {"a": 1},
    }
    assert train(labelled, tmp_path, settings) == 2
    lines = capsys.readouterr().err.splitlines()
    assert 'advance_settings: unknown key "leaning_rate"; did you mean "learning_rate"?' in lines
    assert "advance_settings: num_epochs must be at least 1, got 0" in lines
    fixed = [line for line in lines if "follows from the platform's flags and files" in line]
    assert [line.split(" follows")[0].split(": ")[-1] for line in fixed] == ["save_path", "num_classes", "next_stage.a"]
    assert "(3), got 4; leave it out" in fixed[1]
    assert not list((tmp_path / "models").iterdir())  # nothing began
    assert metric_of(tmp_path)["model_path"] is None


def test_what_the_settings_may_repeat() -> None:
    keys = FixedKeys({"num_classes": 3, "next_stage.save_name": "a.pth"})
    assert keys.find("num_classes") == keys.find("next_stage.num_classes") == (True, 3)
    assert keys.find("next_stage.save_name") == (True, "a.pth")
    assert keys.find("next_stage.num_epochs") == keys.find("save_name") == (False, None)


@pytest.fixture
def fixed(labelled: Path, tmp_path: Path) -> FixedKeys:
    roots = {f"{key}_data_root_dir": str(labelled / split / "images") for key, split in TWO_SPLITS}
    return FixedKeys({**roots, "num_classes": 3, "save_path": str(tmp_path), "next_stage": {}})


TWO_SPLITS = (("train", "train"), ("val", "valid"))


PACKAGE = "package:efficientnet_lite0"
RESNET: dict[str, Any] = {"model_args": {"model_type": "resnet18"}}
LITE: dict[str, Any] = {"model_args": {"model_type": "efficientnet_lite0"}}


@pytest.mark.parametrize(
    ("uses_cuda", "problem", "settings", "net", "start"),
    [
        (True, "", {}, "swin_b", ("finetune", "torchvision")),
        (False, "", {}, "efficientnet_lite0", ("finetune", PACKAGE)),
        (True, "no network", {}, "efficientnet_lite0", ("finetune", PACKAGE)),
        (False, "no network", {}, "efficientnet_lite0", ("finetune", PACKAGE)),
        (False, "no network", {"train_mode": "finetune"}, "efficientnet_lite0", ("finetune", PACKAGE)),
        (False, "", {"train_mode": "fromscratch"}, "efficientnet_lite0", ("fromscratch", PACKAGE)),
        (False, "", RESNET, "resnet18", ("finetune", "torchvision")),
        (True, "no network", RESNET, "resnet18", ("fromscratch", "")),
        (False, "no network", RESNET, "resnet18", ("fromscratch", "")),
        (False, "no network", LITE, "efficientnet_lite0", ("finetune", PACKAGE)),
    ],
)
def test_which_recipe_pim_gets(
    uses_cuda: bool,
    problem: str,
    settings: dict[str, Any],
    net: str,
    start: tuple[str, str],
    fixed: FixedKeys,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recipes, "why_no_published_weights", lambda config: problem)
    lines: list[str] = []
    config = make_config("FGVC_PIM", uses_cuda=uses_cuda, fixed=fixed, settings=settings, log=lines.append)
    assert config.model_args["model_type"] == net
    assert (config.train_mode, config.pretrained_file) == start
    is_random = start == ("fromscratch", "")
    assert any("starts from random weights" in line for line in lines) == is_random
    if config.train_mode == "fromscratch":
        assert not config.freeze_norm_statistics and config.layer_decay == 1


@pytest.mark.parametrize(
    ("settings", "net", "start", "epochs"),
    [
        ({}, "efficientnet_lite0", ("finetune", PACKAGE), 5),
        ({"model_args": {"projector_size": 16}}, "efficientnet_lite0", ("finetune", PACKAGE), 5),
        (LITE, "efficientnet_lite0", ("finetune", PACKAGE), 5),
        (RESNET, "resnet18", ("fromscratch", ""), 60),
        ({"model_type": "resnet18"}, "resnet18", ("fromscratch", ""), 60),
        ({"train_mode": "fromscratch"}, "resnet18", ("fromscratch", ""), 60),
    ],
)
@pytest.mark.parametrize("uses_cuda", [True, False])
def test_which_recipe_simsiam_gets(
    uses_cuda: bool, settings: dict[str, Any], net: str, start: tuple[str, str], epochs: int, fixed: FixedKeys
) -> None:
    values = {key: value for key, value in fixed.values.items() if key != "next_stage"}
    config = make_config(
        "SimSiam", uses_cuda=uses_cuda, fixed=FixedKeys(values), settings=settings, log=lambda line: None
    )
    second = config.next_config()
    assert second is not None
    assert config.net_args()["model_type"] == second.net_args()["model_type"] == net
    assert (config.train_mode, config.pretrained_file) == start and config.num_epochs == epochs
    assert (second.train_mode, second.start_weights()) == ("finetune", config.best_checkpoint())


def test_settings_that_json_cannot_hold(fixed: FixedKeys) -> None:
    with pytest.raises(ConfigError) as caught:
        recipes.read_config(recipes.PIM_SMALL_RECIPE, fixed, {"mean": {1, 2}, "std": [float("nan")] * 3})
    assert caught.value.problems[0] == "advance_settings: mean holds what JSON cannot, a set"
    assert caught.value.problems[1].startswith("advance_settings: std[0] must be a finite number")


def test_cuda_where_there_is_none_is_a_mistake_unless_auto(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train(labelled, tmp_path, QUICK_PIM, "--device", "cuda") == 2
    sentence = "can use no CUDA GPU on this machine; use --device cpu, or --device auto for what is available"
    assert sentence in capsys.readouterr().err
    assert not training.find_cuda("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training.find_cuda("auto") and training.find_cuda("cuda:1")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Make a dataset of one image a class and split, to be spoilt."""
    for split in ("train", "valid", "test"):
        for label, name in enumerate("ab"):
            write_image(tmp_path / "data" / split / "images" / name / "1.png", label, label)
    return tmp_path / "data"


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "no dataset": (lambda root: root.rename(root.with_name("other")), "no such folder; expected is <dataset>/{train,"),
    "no valid": (
        lambda root: (root / "valid").rename(root / "val"),
        "valid/images: no such folder; expected is <dataset>/{train,valid,test}/images/<class>/*.jpg; acc is measured",
    ),
    "other classes": (
        lambda root: (root / "valid/images/b").rename(root / "valid/images/c"),
        'valid/images/c: folder "c" is not one of the 2 class names',
    ),
    "one class": (
        lambda root: [(root / split / "images/b").rename(root / f"{split}_b") for split in ("train", "valid")],
        "it has one class folder (a); at least two are needed",
    ),
    "empty class": (lambda root: (root / "train/images/b/1.png").unlink(), "the class folder has no images"),
    "nothing": (
        lambda root: [(root / f"train/images/{name}").rename(root / f"train_{name}") for name in "ab"],
        "train/images: no images and no class folders in it",
    ),
    "broken": (lambda root: (root / "train/images/b/1.png").write_bytes(b"GIF"), "of the images are bad"),
    "spaces": (
        lambda root: [(root / f"{split}/images/b").rename(root / f"{split}/images/ b") for split in ("train", "valid")],
        "the class folder ' b' begins or ends with a space",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_datasets_that_cannot_be_trained_on(
    name: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, sentence = SPOILT[name]
    spoil(small)
    assert train(small, tmp_path / "runs", QUICK_PIM) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and "Traceback" not in captured.err
    metric = metric_of(tmp_path / "runs")
    assert metric["metric_value"] is None and metric["eval_result"] == {} and sentence in metric["error"]


def test_pim_needs_labels(unlabelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(unlabelled, tmp_path, {}, "--model", "FGVC_PIM") == 2
    assert "no class folders, and FGVC_PIM learns from labels; use --model SimSiam" in capsys.readouterr().err


def test_a_failed_training_leaves_nothing_false(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(old_metric(tmp_path), TRAINED)  # an older run's
    settings = QUICK_PIM | {"learning_rate": 1e30, "num_epochs": 2, "warmup_epochs": 0}
    assert train(labelled, tmp_path, settings) == 1
    assert "the loss became" in capsys.readouterr().err
    metric = metric_of(tmp_path)
    assert list(metric) == [*json.loads(TRAINED), "error"]  # the contract's keys, in its order
    assert {key: metric[key] for key in ("recom_model", "gened_model_name", "metric_value", "eval_result")} == {
        "recom_model": "FGVC_PIM",
        "gened_model_name": None,
        "metric_value": None,
        "eval_result": {},
    }
    assert metric["error"] == "the training failed, see the lines above"
    assert (Path(metric["model_path"]) / "report.json").is_file()  # of the epochs until then


def old_metric(runs: Path) -> Path:
    (runs / "metric").mkdir()
    return runs / "metric" / "trial.txt"


@pytest.mark.parametrize(
    ("ending", "code", "error"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGTERM), 143, "stopped by SIGTERM"),  # outside of the loop
        (lambda: 143, 143, "stopped by SIGTERM"),  # inside, where the loop saves first
        (lambda: 130, 130, "stopped by SIGINT"),
        (lambda: 9, 9, "the training failed"),
    ],
)
def test_what_ends_a_training_early(
    ending: Callable[[], int],
    code: int,
    error: str,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[str] = []

    def stages(config: object) -> int:
        seen.append(metric_of(tmp_path)["error"])
        return ending()

    monkeypatch.setattr("trainers.runner.run_stages", stages)
    write_text(old_metric(tmp_path), TRAINED)
    assert train(labelled, tmp_path, QUICK_PIM) == code
    assert seen == ["not finished: it is still running, or it was killed"]
    assert metric_of(tmp_path)["error"].startswith(error)
    assert f"client_train.py: {error}" in capsys.readouterr().err


def test_a_second_run_leaves_the_first_ones_metric(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(tmp_path)
    with runs.exclusive():
        write_text(runs.metric, "the first run's")
        assert train(labelled, tmp_path, QUICK_PIM) == 2
        assert test_model(labelled, tmp_path, tmp_path, "a") == 2
        assert runs.metric.read_text(encoding="utf-8") == "the first run's"
    assert capsys.readouterr().err.count("another training or test is running there; its metric file is for one") == 2
    with runs.exclusive():
        assert not runs.metric.exists()


def test_a_disk_that_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr("common.atomic_io.os.fsync", full)
    with pytest.raises(ResultsError, match=r"a\.txt: cannot write it: No space left on device"):
        write_text(tmp_path / "a.txt", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "old"


def test_runs_that_cannot_be_made(labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("a file")
    assert train(labelled, tmp_path / "runs", QUICK_PIM) == 2
    assert "runs/metric/trial.txt: cannot write it: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a", "a.b", "-x", "试验", "a b", "x.pth", "é" * 90])
def test_trial_names_that_become_files(name: str) -> None:
    assert generated_name("FGVC_PIM", name) == f"FGVC_PIM_{name}"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../a", "it becomes a file's name, which cannot contain '/'"),
        ("a\\b", "which cannot contain '\\\\'"),
        ("a\nb", "which cannot contain '\\n'"),
        ("a\0b", "which cannot contain '\\x00'"),
        ("\udcff", "which cannot contain '\\udcff'"),
        ("", "--trial_name must have 1 to 191 bytes in UTF-8, got 0"),
        ("a" * 192, "--trial_name must have 1 to 191 bytes in UTF-8, got 192"),
    ],
)
def test_trial_names_that_cannot(name: str, sentence: str) -> None:
    with pytest.raises(PlatformError) as caught:
        generated_name("FGVC_PIM", name)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "name", "sentence"),
    [
        ("none", "a", "--model_path {root}/none: no such folder"),
        (".", "../a.pth", '--used_model names a file inside --model_path, without folders, got "../a.pth"'),
        (".", "a", "{root}/a: no such file; in that folder: b.pth"),
    ],
)
def test_models_that_are_not_there(
    folder: str, name: str, sentence: str, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "b.pth").touch()
    assert test_model(labelled, tmp_path / "runs", tmp_path / folder, name) == 2
    expected = sentence.format(root=tmp_path)
    assert expected in capsys.readouterr().err
    metric = metric_of(tmp_path / "runs")
    assert list(metric) == [*json.loads(TESTED), "error"]
    assert metric["test_result"] == {} and expected in metric["error"]


def test_test_images_of_other_classes(
    pim: tuple[Path, dict[str, Any]], small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pim[1]["model_path"]
    assert test_model(small, tmp_path / "runs", folder, pim[1]["gened_model_name"]) == 2
    assert "test/images/a" in capsys.readouterr().err
    (small / "test").rename(small / "tests")
    assert test_model(small, tmp_path / "runs", folder, pim[1]["gened_model_name"]) == 2
    assert "test/images: no such folder; expected is" in capsys.readouterr().err


class FixedPredictor:
    """Replaces a Predictor: returns the given predictions."""

    def __init__(self, predictions: list[ClassPrediction]) -> None:
        self.predictions = predictions

    def predict_files(self, paths: Any, batch_size: int, topk: int, workers: int) -> Iterator[ClassPrediction]:
        return iter(self.predictions)


def test_accuracy_is_of_the_images_with_a_prediction(capsys: pytest.CaptureFixture[str]) -> None:
    samples = [Sample(f"{number}.jpg", number % 4) for number in range(40)]
    predictions = [ClassPrediction(sample.path, 0) for sample in samples]  # right in 10 of 40
    assert measure_accuracy(FixedPredictor(predictions), samples) == 0.25
    predictions[0] = ClassPrediction("0.jpg", error="it is broken")
    assert measure_accuracy(FixedPredictor(predictions), samples) == 9 / 39
    assert "1 of 40 images of test have no prediction and are left out; the first: 0.jpg: it is broken" in (
        capsys.readouterr().err
    )
    predictions[:3] = [ClassPrediction(f"{number}.jpg", error="it is broken") for number in range(3)]
    with pytest.raises(PlatformError, match=r"3 of 40 images of test have no prediction:\s0\.jpg: it is broken"):
        measure_accuracy(FixedPredictor(predictions), samples)


METADATA = ModelMetadata(
    ("daisy", "020.Yellow_breasted_Chat"), Preprocess(8, 8), {"module": "simsiam_module", "name": "x", "args": {}}
)
PIM_METADATA = replace(METADATA, net={"module": "pim_module", "name": "PIM", "args": {}})
BOTH = {"need_visual_data": True, "need_visual_result": True}


def test_entries_of_the_service_are_the_contracts() -> None:
    daisy = entry(ClassPrediction("", 0, "daisy", 0.55748), METADATA, BOTH)
    assert json.dumps(daisy) == (
        '{"infer_data": ["daisy", "0.5575"], '
        '"visual_data": {"output_type": "text", "annotation_type": null, "data": "daisy_0.5575"}, '
        '"visual_result": "daisy_0.5575"}'
    )
    chat = entry(ClassPrediction("", 1, "020.Yellow_breasted_Chat", 0.99999), PIM_METADATA, BOTH)
    shown = "020.Yellow_breasted_Chat_1.0"
    assert chat["infer_data"] == [shown, "1.0"]
    assert chat["visual_data"]["data"] == chat["visual_result"] == shown


@pytest.mark.parametrize(
    ("switches", "keys"),
    [
        ({"need_visual_data": False, "need_visual_result": True}, ["infer_data", "visual_result"]),
        ({"need_visual_data": True, "need_visual_result": False}, ["infer_data", "visual_data"]),
        ({"need_visual_data": False, "need_visual_result": False}, ["infer_data"]),
    ],
)
def test_what_an_entry_leaves_out(switches: dict[str, bool], keys: list[str]) -> None:
    assert list(entry(ClassPrediction("", 0, "daisy", 0.5), METADATA, switches)) == keys


@pytest.mark.parametrize(("score", "text"), [(1.0, "1.0"), (0.5, "0.5"), (0.00014, "0.0001"), (0.00001, "0.0")])
def test_scores_have_at_most_four_decimals(score: float, text: str) -> None:
    assert entry(ClassPrediction("", 0, "daisy", score), METADATA, BOTH)["infer_data"] == ["daisy", text]


def test_the_route_is_the_contracts() -> None:
    assert (ROUTE.path, dict(ROUTE.switches), ROUTE.entry) == ("/autotable/predict", BOTH, entry)


def test_inference_serves_the_model_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: list[tuple[Path, list[str], int, str]] = []

    def serve(weights: Path, routes: Any, args: argparse.Namespace) -> int:
        served.append((weights, [route.path for route in routes], args.service_port, args.device))
        return 0

    monkeypatch.setattr(cli, "serve", serve)
    (tmp_path / "FGVC_PIM_a.pth").touch()
    assert cli.inference(["--model_path", str(tmp_path), "--used_model", "FGVC_PIM_a"]) == 0
    assert served == [(tmp_path / "FGVC_PIM_a.pth", ["/autotable/predict", "/predict"], 8080, "cuda")]
    assert cli.inference(["--model_path", str(tmp_path), "--used_model", "b"]) == 2
    assert (
        capsys.readouterr().err == f"client_inference.py: {tmp_path}/b: no such file; in that folder: FGVC_PIM_a.pth\n"
    )


def test_other_nets_have_no_name_on_the_platform() -> None:
    other = replace(METADATA, net={"module": "resnet_module", "name": "resnet18", "args": {}})
    with pytest.raises(PlatformError, match=r"a\.pth: it holds a resnet_module\.resnet18; the platform's models are"):
        model_of(other, Path("a.pth"))


def test_an_evaluation_never_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 100.9, 101.0])
    monkeypatch.setattr("platforms.tianji.files.time.time", lambda: next(times))
    (tmp_path / "evaluation_100.json").touch()
    assert new_evaluation_path(tmp_path) == tmp_path / "evaluation_101.json"


@pytest.mark.parametrize("parser", [cli.train_parser(), cli.test_parser()])
def test_the_contracts_flags_and_defaults(parser: argparse.ArgumentParser) -> None:
    args = vars(
        parser.parse_args([] if parser.prog == "client_train.py" else ["--model_path", "a", "--used_model", "b"])
    )
    assert args["device"] == "cuda"
    assert args["runs_dir"] == ROOT / "runs"
    if parser.prog == "client_train.py":
        assert args["trial_name"] == "autotables-2503-train-1"
        assert args["annotation_data"] == "{'advance_settings':{}}"
        assert read_annotation(args["annotation_data"]) == {}


def test_default_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert training.default_dataset("FGVC_PIM") == Path("/data/CUB_200/")
    assert training.default_dataset("SimSiam") == Path("/data/flower_classifier/")
    monkeypatch.setattr(training, "DATASETS", {"FGVC_PIM": tmp_path / "none", "SimSiam": tmp_path})
    assert training.default_dataset(None) == tmp_path


def test_flags_and_settings_are_checked_without_torch(labelled: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom platforms.tianji import cli\n"
        f"where = ['--dataset_path', {str(labelled)!r}, '--runs_dir', {str(tmp_path)!r}, '--device', 'cpu']\n"
        "settings = \"{'advance_settings': {'num_epochs': 0}}\"\n"
        "assert cli.train([*where, '--annotation_data', settings]) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_removed_training_state_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = {"model_module_name": "resnet_module", "model_net_name": "resnet18"}
    folders = {"train_data_root_dir": "a", "val_data_root_dir": "b", "save_path": str(tmp_path), "save_name": "net.pth"}
    config = Config.model_validate({**net, **folders, "num_classes": 2})
    config.last_checkpoint().write_bytes(b"the state")
    monkeypatch.setattr("deploy.export.exporter.export_formats", lambda request: 0)
    training.export(config, "cpu")
    assert not config.last_checkpoint().exists()
    assert capsys.readouterr().out == f"removed, as the training is finished: {tmp_path}/net_last.pth\n"
