"""Scores and NMS against torchvision's, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, box_iou

from artifacts import detections
from artifacts.detections import find_objects


def outputs(seed: int, count: int = 300, classes: int = 3) -> np.ndarray:
    """Return crowded boxes with scores of which many are equal, (1, count, 4 + classes)."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 60, (count, 2))
    sides = generator.uniform(5, 40, (count, 2))
    logits = generator.integers(-8, 8, (count, classes)) / 2
    return np.concatenate([corners, corners + sides, logits], axis=1).astype(np.float32)[None]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("most", [7, 10_000])
def test_the_same_objects_as_torchvision(seed: int, most: int) -> None:
    rows = outputs(seed)
    (found,) = find_objects(rows, 0.3, 0.5, most=most, candidates=10_000)
    boxes, scores = torch.from_numpy(rows[0, :, :4]), torch.from_numpy(rows[0, :, 4:]).double().sigmoid()
    places, labels = torch.nonzero(scores > 0.3, as_tuple=True)  # in the order of positions, then classes
    chosen = scores[places, labels]
    order = torch.argsort(chosen, descending=True, stable=True)  # which batched_nms keeps among equal scores
    places, labels, chosen = places[order], labels[order], chosen[order]
    kept = batched_nms(boxes[places].double(), chosen, labels, 0.5)
    kept = kept[torch.argsort(kept)][:most]  # as ordered above
    np.testing.assert_array_equal(found.labels, labels[kept].numpy())
    np.testing.assert_array_equal(found.boxes, boxes[places[kept]].numpy())
    np.testing.assert_allclose(found.scores, chosen[kept].numpy(), rtol=1e-6)
    assert (found.boxes.dtype, found.labels.dtype, found.scores.dtype) == (np.float32, np.int64, np.float32)


def test_overlaps_against_torchvision() -> None:
    boxes, others = outputs(0)[0, :20, :4], outputs(1)[0, :30, :4]
    expected = box_iou(torch.from_numpy(boxes), torch.from_numpy(others)).numpy()
    np.testing.assert_allclose(detections.box_iou(boxes, others), expected, rtol=1e-5)


def test_no_object_and_scores_at_the_edges() -> None:
    rows = np.zeros((1, 4, 6), np.float32)
    rows[0, :, :4] = [[0, 0, 5, 5], [10, 0, 15, 5], [20, 0, 25, 5], [30, 0, 35, 5]]
    rows[0, :, 4:] = [[-1e4, -1e4], [1e4, -1e4], [0, -1e4], [-1e4, 200]]
    (found,) = find_objects(rows, 0.5)
    assert found.scores.tolist() == [1.0, 1.0, 0.5] and found.labels.tolist() == [0, 1, 0]  # 0.5 is not below 0.5
    (everything,) = find_objects(rows, 0.0, most=99)
    assert len(everything.scores) == 8 and everything.scores[-1] == 0
    (nothing,) = find_objects(rows - 1e5, 0.5)
    assert nothing.boxes.shape == (0, 4) and nothing.labels.shape == nothing.scores.shape == (0,)


def test_the_highest_candidates_alone_are_looked_at() -> None:
    rows = outputs(3)
    (found,) = find_objects(rows, 0.1, 1.0, most=10_000, candidates=50)  # nothing overlaps by more than 1
    highest = np.sort(rows[0, :, 4:].ravel())[::-1][:50].astype(np.float64)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-highest)), rtol=1e-6)
