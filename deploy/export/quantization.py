"""An ONNX file in int8: quantized and dequantized around what integer kernels compute (QDQ), calibrated on images."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artifacts.formats import METADATA_KEY
from artifacts.metadata import PRODUCER, ModelMetadata
from common.formatting import first_line
from deploy.backends.devices import has_int8_dot_product
from deploy.export.errors import ExportError
from deploy.export.onnx_writer import scopes_of, write_digest
from pytorch2json.quantization import IntegerKernel

CALIBRATION_BATCH = 10
# Convolutions and products gain; sums, pools and activations between them are taken along, so that no tensor of a
# residual block goes back to float. Everything else (GeM, softmax, norms, means) stays as it is.
QUANTIZED = ("Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "MaxPool")
INTEGER_KERNELS = ("Conv", "Gemm", "MatMul")
# TensorRT fuses a kernel with what follows it, so that its output is rounded only where another kernel reads it.
SYMMETRIC = {
    "ActivationSymmetric": True,
    "QuantizeBias": False,  # TensorRT dequantizes no int32
    "OpTypesToExcludeOutputQuantization": list(INTEGER_KERNELS),
}
GATHERS = ("Gather", "GatherElements", "GatherND")


def quantize(
    source: Path, target: Path, metadata: ModelMetadata, images: np.ndarray, *, symmetric: bool = False
) -> None:
    """Write the float ONNX file `source` in int8, its ranges taken from `images`, the net's input of real images.

    Activations are uint8 and weights int8 per channel: what VNNI and AMX multiply. On a machine without them weights
    get 7 bits, because older instructions add pairs of products in 16 bits that would overflow. Ranges are smallest
    and largest value: on two trained nets percentiles and entropy gave no better accuracy (docs/deployment.md).
    `symmetric` is what TensorRT takes: int8 activations too, every zero point 0, and only the inputs of convolutions
    and products with weights quantized. Raises ExportError; OSError where it cannot be written.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    model = onnx.load(source)
    ir_version = model.ir_version
    in_float = float_nodes(model.graph, has_classifier=metadata.output != "features")
    if symmetric:
        in_float |= _products_of_activations(model.graph)
    try:
        with _quiet_quantizer():
            quantize_static(
                model,
                target,
                _reader(images),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(INTEGER_KERNELS if symmetric else QUANTIZED),
                per_channel=True,
                reduce_range=not has_int8_dot_product(),
                activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=sorted(in_float),
                calibrate_method=CalibrationMethod.MinMax,
                extra_options=SYMMETRIC if symmetric else {},
            )
    except OSError:
        raise
    except Exception as error:  # the quantizer raises anything
        raise ExportError(f"onnxruntime cannot quantize it: {first_line(error)}") from error
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {METADATA_KEY: metadata.to_json()})
    model.producer_name, model.ir_version = PRODUCER, ir_version
    onnx.save(model, target)
    write_digest(target)
    onnx.checker.check_model(target, full_check=True)


def integer_kernels(path: Path) -> list[IntegerKernel]:
    """Return the int8 weights of a symmetric file, in execution order, with their scales."""
    import onnx

    graph = onnx.load(path).graph
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rounded = {node.output[0]: node.input for node in graph.node if node.op_type == "DequantizeLinear"}
    found = []
    for node in graph.node:
        if node.op_type not in INTEGER_KERNELS or not set(node.input[:2]) <= rounded.keys():
            continue
        (_, input_scale, *_), (weights, scales, *_) = (rounded[name] for name in node.input[:2])
        is_transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        kernel = values[weights] if node.op_type == "Conv" or is_transposed else values[weights].T  # (O, ...)
        factors = np.broadcast_to(values[scales], len(kernel))
        found.append(IntegerKernel(torch.tensor(kernel), torch.tensor(factors), float(values[input_scale])))
    return found


def float_nodes(graph: Any, *, has_classifier: bool = True) -> set[str]:
    """Return the names of the nodes that stay in float.

    They are the modules with a power in them (GeM: x^3 of 256 levels has few left among the small values), the
    classifiers (tiny, and their rounding is the logits'), convolutions over one dimension, what feeds float nodes
    alone, and constant arithmetic. OpenVINO 2026.4 was wrong with PIM's classifiers (1x1 convolutions to 5 classes:
    31 % right instead of 75 %) and with its convolutions over one dimension in int8.
    """
    powers = {scopes[-1] for node in graph.node if node.op_type == "Pow" and (scopes := scopes_of(node))}
    weights = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input[:1] if node.op_type in GATHERS else node.input:  # which rows is no value
            readers.setdefault(name, []).append(node)
    found: set[str] = set()
    read_on: set[str] = set()  # nodes whose values reach an integer kernel
    for node in reversed(graph.node):
        after = [reader for name in node.output for reader in readers.get(name, [])]
        if any(reader.op_type in INTEGER_KERNELS or reader.name in read_on for reader in after):
            read_on.add(node.name)
        is_kernel = node.op_type in INTEGER_KERNELS
        is_power = bool(powers & set(scopes_of(node)))
        is_classifier = has_classifier and is_kernel and node.name not in read_on
        is_1d = node.op_type == "Conv" and weights.get(node.input[1]) == 3
        feeds_float = all(reader.name in found or reader.op_type not in QUANTIZED for reader in after)
        scales_input = node.op_type == "Add" and any(name in weights for name in node.input)  # a bias, or the shift
        if is_power or is_classifier or is_1d or scales_input or (feeds_float and not is_kernel):
            found.add(node.name)
    return found


def _products_of_activations(graph: Any) -> set[str]:
    """Return the names of the products without weights, as attention has them."""
    weights = {tensor.name for tensor in graph.initializer}
    kernels = (node for node in graph.node if node.op_type in INTEGER_KERNELS)
    return {node.name for node in kernels if not weights & set(node.input[:2])}


def _reader(images: np.ndarray) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """The calibration images, a batch at a time."""

        def __init__(self) -> None:
            self._batches: Iterator[np.ndarray] = iter(_batches(images))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    return Reader()


def _batches(images: np.ndarray) -> Sequence[np.ndarray]:
    return [images[start : start + CALIBRATION_BATCH] for start in range(0, len(images), CALIBRATION_BATCH)]


@contextmanager
def _quiet_quantizer() -> Iterator[None]:
    """Silence advice to prepare the graph first: the exporter has folded it and inferred every shape already."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    quiet = logging.NullHandler()
    try:
        root.handlers[:] = [quiet]  # else the quantizer's first message would install a handler for this process
        root.setLevel(logging.ERROR)
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
