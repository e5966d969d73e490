"""Non-maximum suppression in an ONNX file, beside torchvision's on hard cases."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torchvision.ops import nms

from artifacts.detections import SIGMOID, ScoreMap
from deploy.export.errors import ExportError
from deploy.export.nms_graph import NO_CLASS, OUTPUTS, add_suppression, suppression_problem
from tests.helpers.exported import export, train_net

pytestmark = pytest.mark.usefixtures("one_thread")


def file_of(
    positions: int, classes: int, threshold: float, iou: float, score_map: ScoreMap = SIGMOID
) -> onnx.ModelProto:
    """Return a model that gives its input as boxes, and the objects in it."""
    shape = ["batch", positions, 4 + classes]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("images", "boxes")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["boxes"])], "boxes", *ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    metadata: Any = metadata_of(threshold, iou, score_map)
    add_suppression(model, metadata)
    onnx.checker.check_model(model, full_check=True)
    return model


def metadata_of(threshold: float, iou: float = 0.6, score_map: ScoreMap = SIGMOID) -> SimpleNamespace:
    thresholds = {"score": threshold, "nms_iou": iou, "score_offset": score_map.offset}
    return SimpleNamespace(thresholds=thresholds, temperature=score_map.temperature, preprocess=None)


def run(model: onnx.ModelProto, raw: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"images": raw}), strict=True))


def random_boxes(images: int, positions: int, classes: int, *, equal: bool, side: float = 100) -> np.ndarray:
    """Return (N, A, 4 + K); with `equal`, logits are whole numbers, so that many scores are the same."""
    generator = np.random.default_rng(positions + classes)
    corners = generator.uniform(0, side, (images, positions, 2))
    sizes = generator.uniform(5, 60, (images, positions, 2))
    logits = generator.normal(0, 2, (images, positions, classes))
    rows = [corners, corners + sizes, np.round(logits) if equal else logits]
    return np.concatenate(rows, axis=2).astype(np.float32)


def by_torchvision(rows: np.ndarray, threshold: float, iou: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return boxes, scores and labels of an image (A, 4 + K): of 1,000 candidates, class by class, at most 100."""
    boxes, logits = torch.from_numpy(rows[:, :4]), torch.from_numpy(rows[:, 4:])
    values, order = logits.flatten().sort(descending=True, stable=True)
    values, order = values[:1000], order[:1000]
    scores, places, labels = values.sigmoid(), order // logits.shape[1], order % logits.shape[1]
    kept = []
    for label in range(logits.shape[1]):
        mine = torch.nonzero((labels == label) & (scores >= threshold)).flatten()
        kept.append(mine[nms(boxes[places[mine]], scores[mine], iou)])
    chosen = torch.cat(kept).sort().values[:100]  # by falling score, as the candidates stand
    return boxes[places[chosen]], scores[chosen], labels[chosen]


@pytest.mark.parametrize(
    ("images", "positions", "classes", "threshold", "equal", "side"),
    [
        (100, 300, 3, 0.5, True, 100.0),  # equal scores
        (3, 2100, 3, 0.3, False, 100.0),  # more candidates than 1,000
        (3, 2100, 5, 0.01, True, 3000.0),  # more objects than 100, many alike
        (2, 600, 80, 0.2, False, 100.0),
        (4, 20, 2, 0.2, False, 100.0),  # fewer positions than objects are kept
        (2, 300, 1, 0.9999, False, 100.0),  # none
    ],
)
def test_it_equals_torchvision(
    images: int, positions: int, classes: int, threshold: float, equal: bool, side: float
) -> None:
    raw = random_boxes(images, positions, classes, equal=equal, side=side)
    got = run(file_of(positions, classes, threshold, 0.6), raw)
    most = min(100, positions * classes)
    assert {name: (value.shape, str(value.dtype)) for name, value in got.items()} == {
        "num_dets": ((images, 1), "int32"),
        "det_boxes": ((images, most, 4), "float32"),
        "det_scores": ((images, most), "float32"),
        "det_classes": ((images, most), "int32"),
    }
    counts = set()
    for image, rows in enumerate(raw):
        boxes, scores, labels = by_torchvision(rows, threshold, 0.6)
        count = int(got["num_dets"][image, 0])
        counts.add(count)
        assert count == len(labels)
        assert np.array_equal(got["det_boxes"][image, :count], boxes.numpy())
        assert np.array_equal(got["det_classes"][image, :count], labels.numpy())
        np.testing.assert_allclose(got["det_scores"][image, :count], scores.numpy(), rtol=0, atol=1e-6)
        assert (got["det_classes"][image, count:] == NO_CLASS).all()
        assert not got["det_boxes"][image, count:].any() and not got["det_scores"][image, count:].any()
    assert counts == {0} if threshold > 0.99 else max(counts) > 10  # the cases are no empty ones


def test_a_box_goes_by_the_overlap_with_one_that_stays() -> None:
    # Of 10x10 boxes, 2 apart: IoU 80 / 120 = 0.667 with the next, 60 / 140 = 0.429 with the one after.
    rows = [[2.0 * step, 0, 2.0 * step + 10, 10, 5.0 - step] for step in range(4)]
    got = run(file_of(4, 1, 0.1, 0.6), np.array([rows], np.float32))
    assert got["num_dets"].tolist() == [[2]]
    assert got["det_boxes"][0, :2].tolist() == [[0, 0, 10, 10], [4, 0, 14, 10]]
    got = run(file_of(4, 1, 0.1, 0.7), np.array([rows], np.float32))
    assert got["num_dets"].tolist() == [[4]]


def test_calibrated_scores_are_in_the_graph() -> None:
    """The same objects, where the threshold is the calibrated score of the old one."""
    raw = random_boxes(3, 300, 3, equal=False)
    plain = run(file_of(300, 3, 0.5, 0.6), raw)
    got = run(file_of(300, 3, 1 / (1 + np.exp(-1.5)), 0.6, ScoreMap(0.4, 1.5)), raw)
    for name in ("num_dets", "det_boxes", "det_classes"):
        assert np.array_equal(got[name], plain[name])
    is_object = plain["det_classes"] != NO_CLASS
    scores = plain["det_scores"][is_object].astype(np.float64)
    expected = 1 / (1 + np.exp(-(np.log(scores / (1 - scores)) / 0.4 + 1.5)))
    np.testing.assert_allclose(got["det_scores"][is_object], expected, rtol=0, atol=1e-5)
    assert is_object.sum() > 30 and not got["det_scores"][~is_object].any()


def test_a_wrong_file_is_found(tmp_path: Path) -> None:
    model = file_of(30, 3, 0.5, 0.6)
    path = tmp_path / "model.onnx"
    images = random_boxes(3, 30, 3, equal=False)

    def problem(threshold: float) -> str:
        source: Any = SimpleNamespace(metadata=metadata_of(threshold), net_input="")
        reference: Any = SimpleNamespace(images=SimpleNamespace(pixels=images, files=["a.jpg", "b.jpg", "c.jpg"]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("deploy.export.nms_graph.net_input", lambda pixels, *_: pixels)
            return suppression_problem(path, source, reference)

    onnx.save(model, path)
    assert problem(0.5) == ""
    assert problem(0.4) == "its objects of a.jpg are not those of its boxes"


def test_nets_of_classes_have_no_such_file(tmp_path: Path) -> None:
    trained = train_net(tmp_path)
    with pytest.raises(ExportError, match="format nms is of nets that give boxes, and this one gives logits"):
        export(trained, ["nms"], tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()
