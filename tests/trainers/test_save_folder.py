"""One training's folder: no other training in it at once, a second stage that goes on, folders for TensorBoard."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import train
from artifacts.checkpoint import load_checkpoint
from common.paths import ROOT
from configs.loading import process_config
from configs.schema import Config
from data_loader.samples import NO_LABEL, Sample, SampleList
from tests.conftest import CLASSES
from trainers import resuming, runner
from trainers.data.reading import classes_without_images, shared_images
from trainers.evaluation.classification_metrics import ClassificationValidation, per_class_scores
from trainers.evaluation.confusion_cells import cells_in, totals_of

ConfigMaker = Callable[..., Path]
SMALL = {"model_module_name": "squeezenet_module", "model_net_name": "squeezenet1_1", "img_height": 32, "img_width": 32}
HOLD = "import sys; from trainers.runner import alone\nwith alone(sys.argv[1]): print('held', flush=True); input()"


def run_train(config: Path, *args: str) -> int:
    return train.main(["--config", str(config), *args])


# --- a lock


def test_a_second_training_in_the_folder_is_refused(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = make_config(**SMALL, num_epochs=1), dataset / "weights"
    folder.mkdir(exist_ok=True)
    temporary = folder / ".net_last.pth.1.tmp"  # what the first one is just writing
    temporary.write_bytes(b"half a checkpoint")
    holding = [sys.executable, "-c", HOLD, str(folder)]
    first = subprocess.Popen(holding, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    assert run_train(config) == 2
    sentence = f"{folder}: another training is running in this folder; wait for it, or choose another save_path"
    assert sentence in capsys.readouterr().err
    assert temporary.exists() and not (folder / "net_last.pth").exists()
    first.communicate("\n")
    assert run_train(config) == 0
    assert not (folder / runner.LOCK).exists()


# --- the second stage


@pytest.fixture
def two_stages(make_config: ConfigMaker, dataset: Path) -> Path:
    """Train two stages of one epoch each; return their config."""
    config = make_config(**SMALL, num_epochs=1, next_stage={"num_epochs": 1})
    assert run_train(config) == 0
    return config


def test_times_do_not_decide_whether_the_second_stage_goes_on(
    two_stages: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copied folder: the first stage's files are newer than the second's."""
    first, last = dataset / "weights/net.pth", dataset / "weights/next_stage/net_last.pth"
    newer = last.stat().st_mtime + 100
    os.utime(first, (newer, newer))
    capsys.readouterr()
    assert run_train(two_stages, "--resume", "--set", "next_stage.num_epochs=2") == 0
    assert "resuming after epoch 1, the last, at step" in (out := capsys.readouterr().out)  # the first stage
    assert "resuming in epoch 2 at step" in out
    checkpoint = load_checkpoint(last)
    assert checkpoint.progress["epoch"] == 2
    assert checkpoint.progress["start_sha256"] == load_checkpoint(first).metadata.weights_sha256


def test_a_second_stage_of_other_weights_begins_anew(two_stages: Path, dataset: Path) -> None:
    lines: list[str] = []
    config = process_config(two_stages)
    following = config.next_config()
    assert following is not None and resuming.goes_on(following, config, lines.append)
    assert lines == []
    last = following.last_checkpoint()
    config.best_checkpoint().write_bytes((dataset / "weights/net_last.pth").read_bytes())  # other weights? the same net
    assert resuming.goes_on(following, config, lines.append)
    assert run_train(two_stages, "--stage", "1", "--set", "seed=9") == 0
    os.utime(last, (2**31, 2**31))  # newer than anything
    assert not resuming.goes_on(following, config, lines.append)
    assert lines == [
        f"{last}: the second stage started from other weights than {config.best_checkpoint()}; it begins anew"
    ]
    last.unlink()
    assert not resuming.goes_on(following, config, lines.append)


def test_an_older_second_stage_goes_on_with_a_warning(two_stages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = process_config(two_stages)
    following = config.next_config()
    assert following is not None
    older = load_checkpoint(following.last_checkpoint())
    del older.progress["start_sha256"]
    monkeypatch.setattr(resuming, "newest_complete_checkpoint", lambda *_: older)
    lines: list[str] = []
    assert resuming.goes_on(following, config, lines.append)
    assert lines[0].endswith("does not say which weights the second stage started from; it goes on")


# --- TensorBoard


def test_trainings_of_one_second_have_folders_of_their_own(make_config: ConfigMaker, dataset: Path) -> None:
    config = process_config(make_config(**SMALL))
    folders = {runner._log_dir(config) for _ in range(20)}
    assert len(folders) == 20 and all(Path(folder).is_dir() for folder in folders)
    for folder in folders:
        Path(folder).rmdir()
    assert not Path(runner._log_dir(config, is_made=False)).exists()


# --- what was not measured


def test_scores_that_were_not_measured_are_null() -> None:
    """Class c has no image; d is never predicted. By hand: a 3 of 3 right, b 2 of 3, one of them taken for c."""
    confusion = np.array([[3, 0, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0], [2, 0, 0, 0]])
    rows = per_class_scores(list("abcd"), *totals_of(cells_in(confusion), 4))
    columns = ("class", "precision", "recall", "f1", "support")
    assert [tuple(row[column] for column in columns) for row in rows] == [
        ("a", pytest.approx(3 / 5), 1.0, pytest.approx(6 / 8), 3),
        ("b", 1.0, pytest.approx(2 / 3), pytest.approx(4 / 5), 3),
        ("c", 0.0, None, None, 0),
        ("d", None, 0.0, 0.0, 2),
    ]


def test_zeros_of_an_older_checkpoint_become_null() -> None:
    row = {"class": "a", "precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    validation = ClassificationValidation(1.0, 1.0, 1.0, [[1, 1, 4]], [row, row | {"class": "b"}], [], 4)
    values = {**validation.to_dict(), "confusion": torch.tensor([[0, 0], [0, 4]])}
    del values["cells"]
    assert ClassificationValidation.from_dict(values).per_class == [
        {"class": "a", "precision": None, "recall": None, "f1": None, "support": 0},
        {"class": "b", "precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 4},
    ]


def samples_of(*labels: int) -> SampleList:
    return SampleList(tuple(Sample("x.png", label) for label in labels), CLASSES, "", "list.txt")


def test_classes_without_images_are_named() -> None:
    every, some = samples_of(0, 1, 2), samples_of(1, 1)
    assert classes_without_images(every, every) == []
    assert classes_without_images(some, some) == [
        f'warning: list.txt: 2 of 3 classes have no training image: the net cannot learn them: "{CLASSES[0]}", '
        f'"{CLASSES[2]}"',
        f'warning: list.txt: 2 of 3 classes have no validation image: they are not measured: "{CLASSES[0]}", '
        f'"{CLASSES[2]}"',
    ]
    assert classes_without_images(samples_of(0, NO_LABEL), every) == []


def test_validation_images_that_are_trained_on_are_told(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_list, val_list = ((dataset / f"{split}.txt").read_text("utf-8").splitlines() for split in ("train", "val"))
    (dataset / "val.txt").write_text("\n".join([*val_list, *train_list[:2]]), "utf-8")
    assert run_train(make_config(**SMALL, num_epochs=1)) == 0
    told = f"val.txt: 2 of {len(val_list) + 2} validation images are training images too"
    assert told in capsys.readouterr().out
    assert shared_images(samples_of(0, 1), samples_of(1)) == 1


def test_a_training_says_which_class_it_cannot_learn_and_what_was_not_measured(
    make_config: ConfigMaker, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        lines = (dataset / f"{split}.txt").read_text(encoding="utf-8").splitlines(keepends=True)
        (dataset / f"{split}.txt").write_text("".join(line for line in lines if not line.endswith("2\n")), "utf-8")
    assert run_train(make_config(**SMALL, num_epochs=1)) == 0
    out = capsys.readouterr().out
    assert f'train.txt: 1 of 3 classes have no training image: the net cannot learn them: "{CLASSES[2]}"' in out
    assert f'val.txt: 1 of 3 classes have no validation image: they are not measured: "{CLASSES[2]}"' in out
    report = json.loads((dataset / "weights/report.json").read_text(encoding="utf-8"))
    assert report["per_class"][2]["recall"] is None and report["per_class"][2]["f1"] is None
    assert Config.model_validate(report["config"]).num_classes == 3
