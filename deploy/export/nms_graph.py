"""Non-maximum suppression in an ONNX file, behind the output `boxes` of a detector.

The nodes compute what `artifacts.detections.find_objects` does, which is what they are compared with. The outputs have
the names and shapes of TensorRT's EfficientNMS plugin, which many programs read.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from artifacts.detections import (
    MOST_CANDIDATES,
    MOST_OBJECTS,
    SIGMOID,
    Detections,
    ScoreMap,
    find_objects,
    nms_iou_of,
    score_map_of,
    score_threshold_of,
)
from artifacts.metadata import ModelMetadata
from artifacts.onnx_file import read_onnx
from common.formatting import first_line
from deploy.export.errors import ExportError
from deploy.export.formats import EXPORT_FORMATS
from deploy.export.onnx_writer import write_digest
from deploy.export.reference import BATCH, Reference
from deploy.export.sample_images import net_input
from deploy.export.staging import KEPT
from deploy.export.writers import Source

if TYPE_CHECKING:
    from onnx import ModelProto

OUTPUTS = ("num_dets", "det_boxes", "det_scores", "det_classes")  # behind `boxes`
NO_CLASS = -1  # of a row without an object
SCORE_TOLERANCE = 1e-5


def write_nms(source: Source, path: Path) -> None:
    """Write the ONNX file that this export has made, with the suppression behind it. Raises ExportError."""
    import onnx

    plain = path.parent / KEPT / EXPORT_FORMATS["onnx"].files[0]
    if not plain.exists():
        raise ExportError("it is made from model.onnx, which was refused")
    model = read_onnx(plain)
    add_suppression(model, source.metadata)
    onnx.save(model, path)
    write_digest(path)
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the graph with the suppression is not valid ONNX: {first_line(error)}") from error


def suppression_problem(path: Path, source: Source, reference: Reference) -> str:
    """Return of which image onnxruntime's objects are not those of the file's own boxes; "" where there is none."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    thresholds = score_threshold_of(source.metadata), nms_iou_of(source.metadata)
    scores = score_map_of(source.metadata)
    for size in (BATCH, 1):
        pixels = reference.images.pixels[:size]
        images = net_input(pixels, source.metadata.preprocess, source.net_input)
        boxes, *found = session.run(None, {session.get_inputs()[0].name: images})
        for number, wanted in enumerate(find_objects(boxes, *thresholds, score_map=scores)):
            if not _is_same(wanted, [output[number] for output in found]):
                return f"its objects of {reference.images.files[number]} are not those of its boxes"
    return ""


def add_suppression(model: ModelProto, metadata: ModelMetadata) -> None:
    """Append the nodes and their outputs to a model whose first output is boxes (N, A, 4 + K).

    The thresholds are the net's. `num_dets` (N, 1) int32; `det_boxes` (N, M, 4), `det_scores` (N, M) float32,
    `det_classes` (N, M) int32: the highest score first, M the most objects of an image, NO_CLASS and zeros in the rows
    that are left.
    """
    from onnx import TensorProto, helper

    batch, positions, columns = model.graph.output[0].type.tensor_type.shape.dim
    num_classes = columns.dim_value - 4
    candidates = min(MOST_CANDIDATES, positions.dim_value * num_classes)
    most = min(MOST_OBJECTS, candidates)
    nodes = _Nodes(model)
    boxes, logits, labels = _candidates(nodes, model.graph.output[0].name, num_classes, candidates)
    score_map = score_map_of(metadata)
    is_high = nodes.add("GreaterOrEqual", logits, np.float32(score_map.logit_of(score_threshold_of(metadata))))
    scores = _scores(nodes, logits, score_map)  # (N, k)
    kept = _kept(nodes, boxes, nodes.add("Where", is_high, scores, np.float32(0)), labels, num_classes, metadata)
    # The candidates stand by falling score: the first that are kept have the highest numbers.
    ranks = nodes.add("Mul", kept, np.arange(candidates, 0, -1, dtype=np.float32))
    top, order = nodes.add("TopK", ranks, np.array([most]), outputs=2, axis=1)
    is_object = nodes.add("Greater", top, np.float32(0))  # (N, M)
    count = nodes.add("ReduceSum", nodes.add("Cast", is_object, to=TensorProto.INT32), np.array([1]), keepdims=1)
    rows = nodes.add("GatherND", boxes, nodes.add("Unsqueeze", order, np.array([2])), batch_dims=1)
    is_box = nodes.add("Unsqueeze", is_object, np.array([2]))
    found = nodes.add("Cast", nodes.add("GatherElements", labels, order, axis=1), to=TensorProto.INT32)
    results = (
        count,
        nodes.add("Where", is_box, rows, np.float32(0)),
        nodes.add("Where", is_object, nodes.add("GatherElements", scores, order, axis=1), np.float32(0)),
        nodes.add("Where", is_object, found, np.int32(NO_CLASS)),
    )
    size = batch.dim_param or batch.dim_value
    types = (TensorProto.INT32, TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT32)
    shapes = ([size, 1], [size, most, 4], [size, most], [size, most])
    for name, result, kind, shape in zip(OUTPUTS, results, types, shapes, strict=True):
        model.graph.node.append(helper.make_node("Identity", [result], [name], name=name))
        model.graph.output.append(helper.make_tensor_value_info(name, kind, shape))


def _scores(nodes: _Nodes, logits: str, score_map: ScoreMap) -> str:
    if score_map != SIGMOID:
        scaled = nodes.add("Mul", logits, np.float32(1 / score_map.temperature))
        logits = nodes.add("Add", scaled, np.float32(score_map.offset))
    return str(nodes.add("Sigmoid", logits))


def _candidates(nodes: _Nodes, output: str, num_classes: int, count: int) -> tuple[str, str, str]:
    """Take the `count` highest logits of an image: boxes (N, k, 4), logits (N, k), labels (N, k), by falling score."""
    corners = nodes.add("Slice", output, np.array([0]), np.array([4]), np.array([2]))
    all_logits = nodes.add("Slice", output, np.array([4]), np.array([4 + num_classes]), np.array([2]))
    flat = nodes.add("Reshape", all_logits, np.array([0, -1]))  # (N, A * K)
    logits, order = nodes.add("TopK", flat, np.array([count]), outputs=2, axis=1)
    places = nodes.add("Unsqueeze", nodes.add("Div", order, np.array(num_classes)), np.array([2]))
    return nodes.add("GatherND", corners, places, batch_dims=1), logits, nodes.add("Mod", order, np.array(num_classes))


def _kept(nodes: _Nodes, boxes: str, scores: str, labels: str, num_classes: int, metadata: ModelMetadata) -> str:
    """Suppress class by class: 1 for each candidate that stays, else 0, (N, k) float32."""
    classes = np.arange(num_classes)[:, None]  # (K, 1)
    is_class = nodes.add("Equal", nodes.add("Unsqueeze", labels, np.array([1])), classes)  # (N, K, k)
    by_class = nodes.add("Where", is_class, nodes.add("Unsqueeze", scores, np.array([1])), np.float32(0))
    selected = nodes.add(  # (S, 3): image, class, candidate
        "NonMaxSuppression", boxes, by_class, np.array([MOST_OBJECTS]), np.array([nms_iou_of(metadata)], np.float32),
        np.array([0], np.float32),
    )  # fmt: skip
    places = nodes.add("Gather", selected, np.array([0, 2]), axis=1)  # (S, 2)
    ones = nodes.add(
        "CastLike", nodes.add("GreaterOrEqual", nodes.add("GatherND", labels, places), np.array(0)), scores
    )
    return nodes.add("ScatterND", nodes.add("Mul", scores, np.float32(0)), places, ones)


def _is_same(wanted: Detections, found: Sequence[np.ndarray]) -> bool:
    """Whether an image's rows of the outputs hold some objects, in their order, and nothing else."""
    count, boxes, scores, labels = found
    number = len(wanted.labels)
    return (
        count.item() == number
        and np.array_equal(boxes[:number], wanted.boxes)
        and np.array_equal(labels[:number], wanted.labels)
        and np.allclose(scores[:number], wanted.scores, rtol=0, atol=SCORE_TOLERANCE)
        and bool((labels[number:] == NO_CLASS).all())
    )


class _Nodes:
    """Appends nodes to a model; every result has the name of its node."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._count = 0

    def add(self, operator: str, *inputs: str | np.ndarray | np.generic, outputs: int = 1, **attributes: Any) -> Any:
        """Append a node and return its output, or a list of them; arrays become constants of the file."""
        from onnx import helper, numpy_helper

        self._count += 1
        name = f"nms/{operator}_{self._count}"
        names = []
        for number, value in enumerate(inputs):
            if not isinstance(value, str):
                tensor = numpy_helper.from_array(np.asarray(value), f"{name}.{number}")
                self._graph.initializer.append(tensor)
                value = tensor.name
            names.append(value)
        results = [name] if outputs == 1 else [f"{name}:{number}" for number in range(outputs)]
        self._graph.node.append(helper.make_node(operator, names, results, name=name, **attributes))
        return name if outputs == 1 else results
