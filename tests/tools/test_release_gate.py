"""The release gate as it is used: two files, a list, an exit code and a report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from artifacts.calibration import Calibration
from artifacts.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tests.helpers.exported import train_net
from tools import release_gate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make new.pth, which is calibrated, plain.pth without that, and old.pth, of the classes in another order, which
    always predicts the same one.
    """
    folder = tmp_path_factory.mktemp("gate")
    checkpoint = load_checkpoint(train_net(folder))
    save_checkpoint(checkpoint, folder / "plain.pth")
    metadata = checkpoint.metadata
    calibrated = replace(
        metadata,
        temperature=1.0,
        thresholds={"accept": 0.9, "conformal": 0.9},
        calibration=Calibration("least_confidence", 0.2, 0.95, 0.05, 40, 40, 0, 0.08),
    )
    save_checkpoint(Checkpoint(checkpoint.config, calibrated, checkpoint.net), folder / "new.pth")
    turned = replace(metadata, class_names=metadata.class_names[::-1])
    last = [name for name in checkpoint.net if name.endswith("weight")][-1]
    constant = {**checkpoint.net, last: torch.zeros_like(checkpoint.net[last])}
    save_checkpoint(Checkpoint(checkpoint.config, turned, constant), folder / "old.pth")
    names = "\n".join(metadata.class_names)
    (folder / "classes.txt").write_text(names, encoding="utf-8")
    return folder


def run(folder: Path, old: str, new: str, *others: object, images: str = "val.txt") -> int:
    files = ["--old", folder / old, "--new", folder / new, "--images", folder / images]
    return release_gate.main([str(part) for part in (*files, "--device", "cpu", "--workers", 1, *others)])


def test_a_report_is_not_written_over_a_net(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (folder / "new.pth").read_bytes()
    assert run(folder, "old.pth", "new.pth", "--report", folder / "new.pth") == 2
    assert "new.pth: it is read here, and would be written over" in capsys.readouterr().err
    assert (folder / "new.pth").read_bytes() == before


def test_a_better_net_replaces_the_old_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "old.pth", "new.pth", "--report", folder / "deep/gate.json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "better: replace" and max(map(len, lines)) < 80
    report = json.loads((folder / "deep/gate.json").read_text(encoding="utf-8"))
    assert report["replace"] is True and report["reasons"] == [] and report["images"] == 40
    assert report["gained"] - report["lost"] == report["new_right"] - report["old_right"] > 15
    assert {name: found["images"] for name, found in report["classes"].items()} == dict(
        zip(load_checkpoint(folder / "new.pth").metadata.class_names, (14, 13, 13), strict=True)
    )
    assert report["calibration"]["target_risk"] == 0.2


def test_it_says_why_a_net_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "new.pth", "plain.pth") == 1
    text = " ".join(capsys.readouterr().out.split())
    assert "keep the old net: - it is not better with confidence 0.95: of 40 images 0 are right" in text
    assert text.endswith("- the new net is not calibrated, so it has no target risk to keep; calibrate it first")


def test_images_of_the_training_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "old.pth", "new.pth", images="train.txt") == 2
    assert "30 of its 30 images were trained on" in capsys.readouterr().err


def test_mistakes_are_sentences(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "none.pth", "new.pth") == 2
    assert "none.pth" in capsys.readouterr().err
    assert run(folder, "old.pth", "new.pth", images="none.txt") == 2
    assert "none.txt: no such list or folder" in capsys.readouterr().err
    checkpoint = load_checkpoint(folder / "new.pth")
    others = replace(checkpoint.metadata, class_names=("a", "b", "c"))
    save_checkpoint(Checkpoint(checkpoint.config, others, checkpoint.net), folder / "others.pth")
    assert run(folder, "old.pth", "others.pth") == 2
    assert "others.pth: its classes are not those of " in capsys.readouterr().err
    features = replace(checkpoint.metadata, output="features", calibration=None)
    save_checkpoint(Checkpoint(checkpoint.config, features, checkpoint.net), folder / "features.pth")
    assert run(folder, "old.pth", "features.pth") == 2
    assert "features.pth: the comparison is of one class for an image, and this net gives" in capsys.readouterr().err


def test_an_equal_net_may_replace_the_old_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "new.pth", "new.pth") == 1
    assert run(folder, "new.pth", "new.pth", "--gate", "equal") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "not worse: replace"
    assert run(folder, "new.pth", "old.pth", "--gate", "equal") == 1
    assert "it is worse with confidence 0.95: of 40 images" in " ".join(capsys.readouterr().out.split())
