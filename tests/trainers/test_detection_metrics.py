"""The figures of boxes: against pycocotools, against a count by hand, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from artifacts.box_matching import HIT, IGNORED, MISS, matched
from artifacts.coco_map import average_precision
from artifacts.detections import Detections
from data_loader.box_target import Boxes
from data_loader.preprocess import Preprocess
from data_loader.samples import Sample, SampleList
from tests.helpers.box_cases import found, pycocotools, truth
from trainers.evaluation.detection_metrics import (
    DetectionMetrics,
    DetectionValidation,
    best_threshold,
)
from trainers.reporting.detection_page import precision_recall_curves
from visualization import raster
from visualization.precision_recall import precision_recall_svg


def random_case(seed: int, images: int = 12) -> tuple[list[Boxes], list[Detections]]:
    """Return images of which some have no objects, crowds, equal scores, and objects of every size."""
    generator = np.random.default_rng(seed)
    truths, results = [], []
    for _ in range(images):
        rows, seen = [], []
        for _ in range(int(generator.integers(0, 8))):
            corner, side = generator.uniform(0, 300, 2), generator.choice([8, 40, 150]) * generator.uniform(0.5, 1, 2)
            label, box = int(generator.integers(3)), [*corner, *(corner + side)]
            rows.append((label, *box, "ignored") if generator.uniform() < 0.2 else (label, *box))
            for _ in range(int(generator.integers(0, 3))):
                moved = np.array(box) + generator.normal(0, 0.1, 4) * np.tile(side, 2)
                seen.append((round(generator.uniform(0.1, 1), 1), label, *np.sort(moved.reshape(2, 2), axis=0).ravel()))
        seen += [
            (round(generator.uniform(0.1, 1), 1), int(generator.integers(3)), *corner, *(corner + 50))
            for corner in generator.uniform(0, 300, (3, 2))
        ]
        truths.append(truth(*rows))
        results.append(found(*seen))
    return truths, results


@pytest.mark.parametrize("seed", range(10))
def test_the_same_figures_as_pycocotools(seed: int) -> None:
    truths, results = random_case(seed)
    stats = pycocotools(truths, results)
    means = average_precision(truths, results, 3).means
    for key, expected in stats.items():
        assert means.get(key, -1) == pytest.approx(expected, abs=1e-9), key
    assert 0.05 < means["map50"] < 0.95


A, B = (0, 10, 10, 110, 110), (0, 200, 10, 300, 110)


def test_what_is_a_hit() -> None:
    """The higher score takes the object; what overlaps by less than a half, or a taken one, is a miss."""
    objects = truth(A, B, (1, 400, 0, 500, 100), (0, 0, 300, 100, 400, "difficult"))
    near = (0, 12, 12, 112, 112)
    seen = found(
        *((0.9, *near), (0.8, *A), (0.7, 0, 260, 10, 360, 110), (0.6, 0, 400, 0, 500, 100)),
        *((0.5, 1, 400, 0, 500, 90), (0.4, 0, 0, 320, 90, 400), (0.3, 0, 0, 300, 90, 390)),
    )
    assert matched(seen, objects).tolist() == [HIT, MISS, MISS, MISS, HIT, IGNORED, IGNORED]
    assert matched(found(), objects).tolist() == [] and matched(seen, truth()).tolist() == [MISS] * 7


def test_precision_over_recall() -> None:
    """By hand: two objects, found first and third of three, so a precision of 1 up to half of them, then of 2 / 3."""
    seen = found((0.9, *A), (0.8, 0, 400, 300, 500, 400), (0.7, *B))
    first, second = average_precision([truth(A, B), truth()], [seen, found((0.6, 1, 0, 0, 9, 9))], 2).precision50
    assert first == pytest.approx([1.0] * 51 + [2 / 3] * 50) and second == []
    missed = average_precision([truth(A, B)], [found((0.9, *A))], 1)
    assert missed.precision50 == [pytest.approx([1.0] * 51 + [0.0] * 50)]
    assert missed.ap50 == [pytest.approx(np.mean(missed.precision50))]


def test_of_many_classes_the_weakest_have_curves() -> None:
    """Eight classes, of which one has no objects and one is never found; the curves are their AP at any recall."""
    shares = [0.9, 0.8, 0.0, 0.6, 0.5, 0.4, 0.3]
    rows = [{"class": f"c{n}", "ap50": ap, "precision": ap or None, "recall": 0.5} for n, ap in enumerate(shares)]
    curves = precision_recall_curves([*rows, {"class": "none", "ap50": None}], [[ap] * 101 for ap in shares] + [[]])
    names = ["all classes 50.0 %", "c2 0.0 %", "c6 30.0 %", "c5 40.0 %", "c4 50.0 %", "c3 60.0 %", "c1 80.0 %"]
    assert [curve.name for curve in curves] == names
    assert [curve.chosen for curve in curves[:3]] == [None, None, (0.5, 0.3)]
    assert curves[0].points()[50] == (0.5, pytest.approx(0.5)) and curves[1].points() == []
    chart = precision_recall_svg(curves, (520, 270))
    assert chart.count("<circle") == 5 and "c6 30.0 %: precision 30.0%, recall 50.0% at the score threshold" in chart
    assert raster.precision_recall_image(curves).shape == (560, 760, 3)
    assert [curve.style for curve in precision_recall_curves(rows[:1], [[0.9] * 101])] == ["curve0"]
    assert precision_recall_curves(rows, []) == []


@pytest.mark.parametrize("seed", range(5))
def test_the_best_threshold_by_trying_each(seed: int) -> None:
    truths, results = random_case(seed)
    kinds = [matched(seen, objects) for seen, objects in zip(results, truths, strict=True)]
    totals = [sum(int(((o.labels == k) & ~o.ignored).sum()) for o in truths) for k in range(3)]

    def counted(threshold: float, label: int) -> tuple[int, int]:
        hits = wrong = 0
        for seen, of_image in zip(results, kinds, strict=True):
            for own, score, kind in zip(seen.labels, seen.scores, of_image, strict=True):
                if own == label and float(score) >= threshold:
                    hits, wrong = hits + (kind == HIT), wrong + (kind == MISS)
        return hits, wrong

    means = {}
    for number in range(1, 100):
        scores = []
        for label in range(3):
            hits, wrong = counted(number / 100, label)
            scores.append(2 * hits / (hits + wrong + totals[label]))
        means[number / 100] = np.mean(scores)
    best = [t for t, value in means.items() if value > max(means.values()) - 1e-12]
    threshold, rows = best_threshold(results, kinds, truths, 3)
    assert threshold == best[len(best) // 2]
    for label, row in enumerate(rows):
        hits, wrong = counted(threshold, label)
        assert (row["support"], row["recall"]) == (totals[label], hits / totals[label])
        assert row["precision"] == (hits / (hits + wrong) if hits + wrong else None)
        assert row["f1"] == pytest.approx(2 * hits / (hits + wrong + totals[label]))


def logit(score: float) -> float:
    return float(np.log(score / (1 - score)))


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_boxes_are_measured_in_the_pixels_of_their_image(resize: str) -> None:
    """What the net finds in its input is compared in an image of another size and aspect."""
    preprocess = Preprocess(64, 64, resize=resize)
    objects = truth((0, 300, 100, 400, 300), size=(640, 400))
    samples = SampleList((Sample("a.png", objects), Sample("b.png", truth(size=(640, 400)))), ("a", "b"), "", "")
    place = {  # by hand: 640x400 to 64x64
        "squash": (30, 16, 40, 48),
        "letterbox": (30, 22, 40, 42),  # a tenth, 12 below the upper edge
        "crop": ((300 - 120) * 0.16, 16, (400 - 120) * 0.16, 48),
    }[resize]
    outputs = torch.full((2, 2, 6), logit(0.001))
    outputs[:, 1, :4] = torch.tensor([0.0, 0.0, 9.0, 9.0])
    outputs[0, 0] = torch.tensor([*place, logit(0.8), logit(0.001)])
    outputs[1, 1, 5] = logit(0.3)
    metrics = DetectionMetrics(samples, preprocess)
    metrics.update(outputs, torch.tensor([0, 1]), torch.tensor([1.0, 2.0]))
    result = metrics.compute()
    assert result.scalars() == {
        "map50": 1.0,
        "map50_95": pytest.approx(1.0),
        "f1": 1.0,
        "precision": 1.0,
        "recall": 1.0,
    }
    # every threshold up to 0.8 finds the one object; class b has none, so that its mistake at 0.3 does not count
    assert result.loss == 1.5 and result.score_threshold == 0.41 and result.worst == []
    assert DetectionValidation.from_dict(result.to_dict()) == result


def test_the_worst_images_have_their_mistakes_counted() -> None:
    samples = SampleList(
        tuple(Sample(name, objects) for name, objects in (("a", truth(A, B)), ("b", truth(A)), ("c", truth()))),
        ("x",), "", "",
    )  # fmt: skip
    outputs = torch.zeros(3, 2, 5)
    outputs[:, 0] = torch.tensor([*A[1:], logit(0.9)])
    outputs[:, 1] = torch.tensor([400.0, 300.0, 500.0, 400.0, logit(0.9)])
    metrics = DetectionMetrics(samples, Preprocess(480, 640))
    metrics.update(outputs, torch.tensor([0, 1, 2]), torch.tensor([3.0, 2.0, 1.0]))
    worst = metrics.compute().worst
    assert metrics.compute().best_image == "b"  # c holds no object
    assert metrics.compute(0.95).recall == 0.0 and metrics.compute(0.95).score_threshold == 0.95
    assert metrics.compute(0.95).best_image == "a"  # the first of equals
    assert [(row.path, row.hits, row.missed, row.wrong) for row in worst] == [
        *(("c", 0, 0, 2), ("a", 1, 1, 1), ("b", 1, 0, 1))
    ]
    assert [row.f1 for row in worst] == pytest.approx([0, 0.5, 2 / 3])
