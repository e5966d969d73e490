"""The share of wrong pixels among the accepted: conformal risk control over images, and what is set aside of each."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import inference
import inference_uncertain
from artifacts.calibration import MOST_WRONG, PIXEL_SCORE
from artifacts.checkpoint import load_checkpoint
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import Preprocess
from deploy.inference.mask_prediction import MaskPrediction
from deploy.inference.uncertainty_scores import UncertaintyError, softmax
from deploy.uncertainty.pixel_risk import (
    PixelLogits,
    accepted_and_wrong,
    least_images,
    pixel_threshold,
    risk_bounds,
)
from tests.helpers.masks import VALUES, mask_nets, scene, trained_masks
from tools.pixel_splits import pixel_splits

OVERCONFIDENCE = 2.0  # the true temperature of `image`'s logits


def image(generator: np.random.Generator, pixels: int = 400) -> PixelLogits:
    """Return pixels whose labels are drawn from softmax(logits / OVERCONFIDENCE); some images are harder."""
    logits = generator.normal(0, generator.uniform(1, 8), (pixels, 3)).astype(np.float32)
    scores = softmax(logits, OVERCONFIDENCE)
    labels = (scores.cumsum(axis=1) < generator.random((pixels, 1))).sum(axis=1)
    return PixelLogits(logits, labels.astype(np.int64))


def test_the_bound_is_that_of_the_paper() -> None:
    """Angelopoulos et al. 2022, Theorem 1 with B = 1: n / (n + 1) R + 1 / (n + 1), of the largest loss until there."""
    losses = np.array([[0.5, 0.1, 0.2], [0.0, 0.1, 0.3], [0.0, 0.0, 0.0]])
    expected = [3 / 4 * mean + 1 / 4 for mean in ((0.5 + 0 + 0) / 3, (0.5 + 0.1) / 3, (0.5 + 0.3) / 3)]
    assert risk_bounds(losses) == pytest.approx(expected)


def test_shares_are_counted_as_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.5, 0.5]], np.float32))
    pixels = PixelLogits(logits, np.array([0, 0, 0, 1]))  # the second and the fourth are wrong
    accepted, wrong = accepted_and_wrong(pixels, 1.0, np.array([0.95, 0.85, 0.7, 0.55, 0.0]))
    assert accepted.tolist() == [0, 0.25, 0.5, 0.75, 1] and wrong.tolist() == [0, 0, 0.25, 0.25, 0.5]


@pytest.mark.slow
def test_the_expected_share_holds_on_other_images() -> None:
    """Over 30 calibrations the mean share of wrong pixels in new images is at most the target, and not far below."""
    generator, target, shares, accepted = np.random.default_rng(0), 0.15, [], []
    for _ in range(30):
        found = pixel_threshold([image(generator) for _ in range(60)], target)
        assert found.temperature == pytest.approx(OVERCONFIDENCE, rel=0.15) and found.images == 48
        for _ in range(10):
            value = accepted_and_wrong(image(generator), found.temperature, np.array([found.value]))
            accepted.append(float(value[0][0]))
            shares.append(float(value[1][0] / value[0][0]) if value[0][0] else 0.0)
    assert 0.4 * target < np.mean(shares) <= target + 2 * np.std(shares) / math.sqrt(30)
    assert 0.2 < np.mean(accepted) < 0.95


def test_too_few_images_or_too_bad_a_net_is_refused() -> None:
    generator = np.random.default_rng(1)
    assert [least_images(target) for target in (0.1, 0.05, 0.5)] == [12, 24, 2]  # 9, 19 and 1 beside the temperature's
    few = "11 images are too few for at most 0.1 wrong among the accepted pixels: at least 12 are needed"
    with pytest.raises(UncertaintyError, match=few):
        pixel_threshold([image(generator) for _ in range(11)], 0.1)
    guesses = [PixelLogits(found.logits, generator.integers(0, 3, 400)) for found in map(image, [generator] * 30)]
    with pytest.raises(UncertaintyError, match="of the 5% most certain ones") as refusal:
        pixel_threshold(guesses, 0.2)
    offered = re.search(r"a --target_risk of ([\d.]+) can be met", str(refusal.value))
    assert offered and pixel_threshold(guesses, float(offered[1])).risk <= float(offered[1]) < 1


def test_the_set_aside_mask_has_the_scores_below_the_threshold() -> None:
    """Of an image of the input's size the logits are the net's own; beside the net's view, and in gaps, is nothing."""
    metadata = ModelMetadata(
        ("a", "b", "c"),
        Preprocess(20, 30),
        {"module": "m", "name": "n", "args": {}},
        task="segmentation",
        output="mask_logits",
        temperature=2.0,
        thresholds={PIXEL_SCORE: 0.6},
    )
    logits = np.random.default_rng(0).normal(0, 3, (1, 3, 20, 30)).astype(np.float32)
    (prediction,) = MaskPrediction.decode(logits, metadata, 1, [(30, 20)])
    scores = softmax(logits[0].transpose(1, 2, 0), 2.0).max(axis=2)
    assert 0.1 < (scores < 0.6).mean() < 0.9 and (prediction.set_aside == (scores < 0.6)).all()
    assert prediction.accepted == pytest.approx((scores >= 0.6).mean())
    assert prediction.score == pytest.approx(scores.mean(), abs=1e-5)
    gaps = np.zeros((20, 30), bool)
    gaps[:10] = True
    (prediction,) = (found.without(gaps) for found in MaskPrediction.decode(logits, metadata, 1, [(30, 20)]))
    assert isinstance(prediction, MaskPrediction) and not prediction.set_aside[:10].any()
    assert prediction.accepted == pytest.approx((scores[10:] >= 0.6).mean())
    assert MaskPrediction.csv_columns(metadata, 1)[:4] == ("width", "height", "score", "accepted")
    assert prediction.csv_row()[3] == f"{prediction.accepted:.6f}" and prediction.values()["accepted"]
    assert prediction.response()["set_aside"].startswith("data:image/png;base64,")


@pytest.fixture
def calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a net of scenes whose folder other/ has 40 further ones with label images, a third of each mislabelled."""
    with mask_nets(tmp_path, monkeypatch):
        weights = trained_masks(tmp_path)
        for number in range(40):
            pixels, indices = scene(900 + number, (33, 21))
            values = VALUES[indices]
            values[:, :11] = VALUES[(indices[:, :11] + 1) % 3] if number % 4 == 0 else values[:, :11]
            values[0, :5] = 99  # of no class: ignored
            for folder, content in (("images", pixels), ("labels", values)):
                (tmp_path / "other" / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(tmp_path / "other" / folder / f"{number:02d}.png")
        yield weights


@pytest.mark.slow
def test_from_the_calibration_to_the_masks(
    calibrated: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights, other, out = str(calibrated), str(tmp_path / "other"), tmp_path / "out"
    assert inference_uncertain.main(["--weights", weights, "--image_dir", other]) == 2
    assert "it is not calibrated" in capsys.readouterr().err
    assert inference_uncertain.main(["--weights", weights, "--calibrate", other, "--target_risk", "0.01"]) == 2
    assert "40 images are too few for at most 0.01" in capsys.readouterr().err
    assert inference_uncertain.main(["--weights", weights, "--calibrate", other, "--confidence", "0.9"]) == 2
    assert "--confidence is not for nets that give masks" in capsys.readouterr().err
    assert inference_uncertain.main(["--weights", weights, "--calibrate", str(tmp_path / "train")]) == 2
    assert "10 of its 10 images were trained on" in capsys.readouterr().err
    assert inference_uncertain.main(["--weights", weights, "--calibrate", other, "--target_risk", "0.2"]) == 0
    assert "40 images; 8 fit the temperature, 32 the threshold" in capsys.readouterr().out
    metadata = load_checkpoint(calibrated).metadata
    assert metadata.thresholds[MOST_WRONG] == 0.2 and 0 < (metadata.temperature or 0) < 20
    arguments = [
        "--weights",
        weights,
        "--image_dir",
        other,
        "--output",
        str(tmp_path / "a.csv"),
        "--set_aside",
        str(out),
    ]
    assert inference_uncertain.main(arguments) == 0
    assert "of an image's pixels accepted in the mean" in capsys.readouterr().out
    with (tmp_path / "a.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    names = {path.name for path in (out / "images").iterdir()}
    assert {"00.png.mask.png", "00.png.set_aside.png", "00.png.overlay.jpg"} <= names and len(names) == 3 * len(
        rows
    ) == 120
    for row in rows[:5]:
        with Image.open(out / "images" / f"{Path(row['file']).name}.set_aside.png") as aside:
            assert aside.size == (33, 21) and 1 - np.asarray(aside).mean() == pytest.approx(
                float(row["accepted"]), abs=1e-5
            )
    assert inference.main(["--weights", weights, "--image_dir", other, "--output", str(tmp_path / "b.json")]) == 0
    plain = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert [found["accepted"] for found in plain[:5]] == pytest.approx(
        [float(row["accepted"]) for row in rows[:5]], abs=1e-5
    )
    assert (
        inference.main(["--weights", weights, "--image_dir", other, "--tiles", "--output", str(tmp_path / "c.csv")])
        == 0
    )
    assert "accepted" not in (tmp_path / "c.csv").read_text(encoding="utf-8-sig").splitlines()[0]


def test_splits_measure_what_did_not_calibrate() -> None:
    """Of images that are all alike, right from a score on, each split accepts those pixels and no wrong one."""
    logits = np.log(np.array([[0.9, 0.1]] * 6 + [[0.6, 0.4]] * 4, np.float32))
    alike = [PixelLogits(logits, np.array([0] * 6 + [0, 0, 1, 1])) for _ in range(20)]
    found = pixel_splits(alike, 0.15, 10, 5)
    assert found.shape == (5, 2) and np.allclose(found, [0.6, 0])
    assert pixel_splits(alike, 0.05, 10, 5).shape == (0, 2)
