"""Calibrated scores of a detector: the map beside another optimizer's, its error by hand, and that objects stay."""

from __future__ import annotations

import argparse

import numpy as np
import pytest
from scipy.optimize import minimize

from artifacts.detections import LEAST_SCORE, SCORE, SIGMOID, Detections, ScoreMap, find_objects, logit_of, objects_of
from artifacts.metadata import ModelMetadata
from data_loader.box_target import Boxes
from data_loader.preprocess import Preprocess
from deploy.uncertainty.box_scores import (
    ImageScores,
    calibration_error,
    choose_score_map,
    fit_score_map,
    joined,
    scores_of,
)
from deploy.uncertainty.calibrate_boxes import calibrated_threshold, with_score_map
from deploy.uncertainty.missed_objects import highest_threshold, missed_at
from tools.box_splits import box_splits, report_box_splits

METADATA = ModelMetadata(
    ("a", "b"),
    Preprocess(64, 64),
    {"module": "m", "name": "n", "args": {}},
    task="detection",
    output="boxes",
    thresholds={"score": 0.3, "nms_iou": 0.6},
)


def images_of(seed: int, count: int, slope: float, offset: float) -> list[ImageScores]:
    """Return images whose objects are right with the probability sigmoid(slope * logit + offset)."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        logits = generator.normal(-1, 1.5, int(generator.integers(5, 30)))
        images.append(ImageScores(logits, generator.random(len(logits)) < 1 / (1 + np.exp(-slope * logits - offset))))
    return images


@pytest.mark.parametrize(("slope", "offset"), [(3.0, 1.0), (0.4, -1.0), (1.0, 0.0)])
def test_the_map_is_the_one_of_the_highest_likelihood(slope: float, offset: float) -> None:
    logits, hits = joined(images_of(0, 60, slope, offset))
    count, right = len(hits), int(hits.sum())
    targets = np.where(hits, (right + 1) / (right + 2), 1 / (count - right + 2))  # Platt 1999, section 2.2

    def loss(values: np.ndarray) -> float:
        scores = 1 / (1 + np.exp(-(values[0] * logits + values[1])))
        return float(-(targets * np.log(scores) + (1 - targets) * np.log(1 - scores)).mean())

    best = minimize(loss, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    found = fit_score_map(logits, hits)
    assert (1 / found.temperature, found.offset) == pytest.approx(tuple(best), abs=1e-4)


def test_a_map_exists_where_scores_part_right_from_wrong_and_none_where_they_say_nothing() -> None:
    logits = np.array([-3.0, -2, -1, 1, 2, 3])
    parted = fit_score_map(logits, logits > 0)
    assert 1 < parted.temperature < 2 and parted.offset == pytest.approx(0, abs=1e-6)  # targets of 1/5 and 4/5
    assert fit_score_map(logits, logits < 0) == SIGMOID  # falls
    assert fit_score_map(logits, np.ones(6, bool)) == SIGMOID  # all right
    nothing = [ImageScores(np.zeros(0), np.zeros(0, bool))] * 20
    assert choose_score_map(nothing).score_map == choose_score_map(images_of(0, 9, 4.0, 2.0)).score_map == SIGMOID


def test_the_error_by_hand() -> None:
    """Scores 0.52 twice (one right), 0.98 (right), 0.11 (wrong): |1.04 - 1| + |0.98 - 1| + |0.11 - 0| over 4."""
    logits = np.array([logit_of(score) for score in (0.52, 0.52, 0.98, 0.11)])
    hits = np.array([True, False, True, False])
    assert calibration_error(logits, hits) == pytest.approx((0.04 + 0.02 + 0.11) / 4)
    assert calibration_error(logits, hits, ScoreMap(1.0, 100.0)) == pytest.approx(0.5)  # all scores 1, half right
    assert calibration_error(logits[:0], hits[:0]) == 0.0


def test_wrong_scores_are_mended_and_right_ones_stay() -> None:
    wrong = choose_score_map(images_of(1, 60, 3.0, 1.5))
    assert wrong.before > 0.1 and wrong.after < 0.04
    assert 1 / wrong.score_map.temperature == pytest.approx(3.0, rel=0.2)
    others = joined(images_of(2, 400, 3.0, 1.5))
    assert calibration_error(*others, wrong.score_map) < 0.03 < 0.1 < calibration_error(*others)
    stays = [choose_score_map(images_of(seed, 60, 1.0, 0.0)).score_map == SIGMOID for seed in range(20)]
    assert sum(stays) >= 15


def test_ignored_objects_are_no_objects() -> None:
    truth = Boxes(np.array([[0.0, 0, 10, 10], [50, 50, 90, 90]]), np.array([0, 0]), np.array([False, True]), (99, 99))
    boxes = np.array([[0, 0, 10, 9], [55, 55, 85, 85], [20, 0, 30, 10]], np.float32)
    found = scores_of(truth, Detections(boxes, np.zeros(3, np.int64), np.array([0.8, 0.6, 1.0], np.float32)))
    assert found.hits.tolist() == [True, False] and np.isfinite(found.logits).all()
    assert found.logits[0] == pytest.approx(np.log(4), abs=1e-6)


def test_the_same_objects_at_calibrated_scores() -> None:
    generator = np.random.default_rng(0)
    corners = generator.uniform(0, 40, (3, 200, 2))
    rows = np.concatenate([corners, corners + 15, generator.normal(-2, 2, (3, 200, 2))], axis=2).astype(np.float32)
    score_map = ScoreMap(0.3, 1.7)
    for threshold in (0.01, 0.25, 0.99):
        wanted = find_objects(rows, threshold)
        score = calibrated_threshold(threshold, score_map)
        metadata = with_score_map(METADATA, score_map, {SCORE: score})
        assert ModelMetadata.from_dict(metadata.to_dict()) == metadata
        for plain, found in zip(wanted, objects_of(rows, metadata), strict=True):
            assert np.array_equal(plain.boxes, found.boxes) and np.array_equal(plain.labels, found.labels)
            logits = np.log(plain.scores.astype(float) / (1 - plain.scores.astype(float)))
            np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-(logits / 0.3 + 1.7))), atol=1e-5)
        assert with_score_map(metadata, SIGMOID, METADATA.thresholds) == METADATA
    assert 0.999 < calibrated_threshold(0.99, ScoreMap(0.05, 50.0)) < 1  # not a score that no object has


def detector_images(seed: int, count: int) -> list[tuple[Boxes, Detections]]:
    """Return images of 1 to 5 objects, found at a score, and of wrong ones at lower scores: all too low by far."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        number = int(generator.integers(1, 6))
        boxes = np.array([[20.0 * place, 0, 20.0 * place + 10, 10] for place in range(number)])
        wrong = np.array([[20.0 * place, 50, 20.0 * place + 10, 60] for place in range(8)])
        logits = np.concatenate([generator.normal(0.2, 0.7, number), generator.normal(-2, 0.7, 8)])
        order = np.argsort(-logits)
        scores = (1 / (1 + np.exp(-logits)))[order].astype(np.float32)
        is_kept = scores >= LEAST_SCORE
        rows = np.concatenate([boxes, wrong])[order].astype(np.float32)
        found = Detections(rows[is_kept], np.zeros(int(is_kept.sum()), np.int64), scores[is_kept])
        images.append((Boxes(boxes, np.zeros(number, int), np.zeros(number, bool), (200, 100)), found))
    return images


def test_scores_and_promise_on_further_images() -> None:
    images, others = detector_images(0, 80), detector_images(1, 300)
    fitted = choose_score_map([scores_of(*image) for image in images])
    further = joined([scores_of(*image) for image in others])
    assert calibration_error(*further, fitted.score_map) < 0.03 < 0.1 < calibration_error(*further)
    best = highest_threshold([row[0] for row in images], [row[1] for row in images], 0.2, 0.95)
    assert best is not None
    missed = missed_at([row[0] for row in others], [row[1] for row in others], best.threshold)
    assert 0.02 < missed < 0.2
    score = calibrated_threshold(best.threshold, fitted.score_map)
    kept = [fitted.score_map.scores(np.array([logit_of(float(s)) for s in row.scores])) >= score for _, row in others]
    assert [int(part.sum()) for part in kept] == [int((row.scores >= best.threshold).sum()) for _, row in others]


def test_the_table_of_random_splits() -> None:
    args = argparse.Namespace(pictures=60, splits=5, target_risk=0.2, confidence=0.9)
    images = detector_images(3, 120)
    lines = report_box_splits(args, images, 0.25)
    missed = [split.missed for split in box_splits(images, 0.2, 0.9, 60, 5, 0.25)]
    assert lines[0] == "5 splits, calibrated on 60, measured on 60"
    assert lines[3].startswith(f"a threshold in 5 of 5: missed {np.mean(missed):.2%} (")
    assert lines[3].endswith(f"target 0.2, in {sum(share > 0.2 for share in missed)} splits more")
    args.target_risk = 0.001
    assert report_box_splits(args, images, 0.25)[-1] == "no threshold meets the target in any split"
