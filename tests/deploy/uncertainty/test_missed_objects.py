"""The threshold of a detector's promise: bounds beside their definitions, and the promise itself on random images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import inference_uncertain
from artifacts.detections import SCORE_THRESHOLDS, Detections
from artifacts.metadata_reader import read_metadata
from data_loader.box_target import Boxes, BoxTarget
from deploy.uncertainty.calibrate_boxes import annotated_training
from deploy.uncertainty.missed_objects import highest_threshold, missed_at_least, upper_bound
from tests.helpers.boxes import box_nets, write_boxes, write_config

NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def image(scores: list[float], wrong: tuple[float, ...] = ()) -> tuple[Boxes, Detections]:
    """Return an image with an object for each score, found with that score (0: not found), and wrong ones."""
    boxes = np.array([[20.0 * place, 0, 20.0 * place + 10, 10] for place in range(len(scores))]).reshape(-1, 4)
    truth = Boxes(boxes, np.zeros(len(scores), int), np.zeros(len(scores), bool), (4000, 100))
    rows = [(*box, score) for box, score in zip(boxes.tolist(), scores, strict=True) if score]
    rows += [(20.0 * place, 50, 20.0 * place + 10, 60, score) for place, score in enumerate(wrong)]
    rows.sort(key=lambda row: -row[4])
    found = np.array(rows, np.float32).reshape(-1, 5)
    return truth, Detections(found[:, :4], np.zeros(len(rows), np.int64), found[:, 4])


def test_the_bound_is_where_the_test_just_rejects() -> None:
    # Without a loss Hoeffding's part is (1 - r)^n, the smaller one: the bound is 1 - delta^(1/n).
    assert upper_bound(0.0, 50, 0.05) == pytest.approx(1 - 0.05 ** (1 / 50))
    bound = upper_bound(0.1, 100, 0.05)
    hoeffding = math.exp(-100 * (0.1 * math.log(0.1 / bound) + 0.9 * math.log(0.9 / (1 - bound))))
    below = sum(math.comb(100, k) * bound**k * (1 - bound) ** (100 - k) for k in range(11))
    assert min(hoeffding, math.e * below) == pytest.approx(0.05) and 0.1 < bound < 0.2
    assert upper_bound(1.0, 10, 0.05) == 1.0


def test_the_highest_threshold_that_keeps_the_target() -> None:
    images = [image([0.905, 0.605], wrong=(0.705,)) for _ in range(60)]
    truths, found = [truth for truth, _ in images], [objects for _, objects in images]
    best = highest_threshold(truths, found, 0.1, 0.95)
    assert best is not None and (best.threshold, best.missed) == (0.6, 0.0)
    assert best.bound == pytest.approx(1 - 0.05 ** (1 / 60)) and best.precision == pytest.approx(2 / 3)
    half = highest_threshold(truths, found, 0.7, 0.95)  # half of the objects may go, with room for chance
    assert half is not None and half.threshold == 0.9 and half.missed == 0.5 and half.precision == 1.0
    assert highest_threshold(truths[:20], found[:20], 0.1, 0.95) is None  # too few: 1 - 0.05^(1/20) is 0.139
    assert missed_at_least(truths[:20], found[:20], 0.95) == (20, 0.0, pytest.approx(0.139, abs=1e-3))


def test_images_without_objects_say_nothing() -> None:
    images = [image([0.505]) for _ in range(40)] + [image([], wrong=(0.9,)) for _ in range(1000)]
    best = highest_threshold([truth for truth, _ in images], [objects for _, objects in images], 0.1, 0.95)
    assert best is not None and best.threshold == 0.5 and best.precision == pytest.approx(40 / 1040)
    empty = Boxes(np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool), (10, 10))
    assert highest_threshold([empty], [NOTHING], 0.1, 0.95) is None
    assert missed_at_least([empty], [NOTHING], 0.95) == (0, 0.0, 1.0)


def test_the_promise_holds_as_often_as_it_says() -> None:
    """Images of 1 to 6 objects whose scores vary from image to image; the true share missed is known."""
    generator = np.random.default_rng(0)
    broken, thresholds = 0, []
    for _ in range(60):
        images = []
        for _ in range(60):
            level = generator.beta(6, 2)  # of all the image's scores: its objects are alike
            scores = np.clip(level + generator.uniform(-0.1, 0.1, generator.integers(1, 7)), 0, 0.99)
            images.append(image([float(score) if score >= 0.01 else 0.0 for score in scores]))
        best = highest_threshold([truth for truth, _ in images], [objects for _, objects in images], 0.2, 0.9)
        assert best is not None
        thresholds.append(best.threshold)
    levels = generator.beta(6, 2, 200_000)
    scores = np.clip(levels + generator.uniform(-0.1, 0.1, levels.shape), 0, 0.99)
    for threshold in thresholds:
        broken += float((scores < threshold).mean()) > 0.2
    assert broken <= 12  # of 60 at a confidence of 0.9: 6 at most are expected, 12 come once in 100 such tests
    assert 0.3 < np.mean(thresholds) < 0.62  # a fifth lies below 0.62, and the bound costs some of it
    assert set(np.round(thresholds, 2)) <= set(np.round(SCORE_THRESHOLDS, 2))


def test_training_images_are_known_from_any_list(tmp_path: Path) -> None:
    write_boxes(tmp_path, train=3, valid=1)
    train = tmp_path / "train"
    names = sorted(path.relative_to(train).as_posix() for path in train.rglob("*") if path.suffix in (".png", ".jpg"))
    notes = sorted(path.relative_to(train).as_posix() for path in train.rglob("*.xml"))
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(map("----".join, zip(names, notes, strict=True))), encoding="utf-8")
    config: Any = SimpleNamespace(
        train_data_file=str(listed), train_data_root_dir=str(train), file_label_separator="----"
    )
    metadata: Any = None  # of folders alone
    assert annotated_training(config, metadata, BoxTarget(2)) == {f"{train.resolve()}/{name}" for name in names}
    listed.unlink()
    assert annotated_training(config, metadata, BoxTarget(2)) is None


@pytest.fixture
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Train a tiny detector, and write 40 further images; return the folder."""
    import train

    write_boxes(tmp_path, train=24, valid=40)
    with box_nets(tmp_path, monkeypatch):
        assert train.main(["--config", str(write_config(tmp_path, num_epochs=24, validation_interval=24))]) == 0
        yield tmp_path


def test_the_command_writes_the_threshold_into_the_checkpoint(
    detector: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, valid = detector / "weights/net.pth", detector / "valid"
    before = read_metadata(weights).thresholds["score"]
    capsys.readouterr()
    flags = ["--weights", str(weights), "--calibrate", str(valid)]
    assert inference_uncertain.main([*flags, "--target_risk", "0.6"]) == 0
    out = capsys.readouterr().out
    thresholds = read_metadata(weights).thresholds
    assert (thresholds["most_missed"], thresholds["confidence"]) == (0.6, 0.95)
    assert f"score >= {thresholds['score']:g}: " in out and "with confidence 0.95 (asked for: 60.0%)" in out
    assert thresholds["score"] != before and "; D-ECE, the mean distance between score and precision: " in out
    assert read_metadata(weights).temperature not in (None, 1.0) and "score_offset" in thresholds
    assert inference_uncertain.main([*flags, "--target_risk", "0.001"]) == 2
    assert "more images allow a lower one" in capsys.readouterr().err
    assert read_metadata(weights).thresholds == thresholds  # nothing was written
    assert inference_uncertain.main([*flags, "--score", "margin"]) == 2
    assert "--score is of nets that give classes" in capsys.readouterr().err
    assert inference_uncertain.main(["--weights", str(weights), "--calibrate", str(detector / "train")]) == 2
    assert "were trained on" in capsys.readouterr().err
