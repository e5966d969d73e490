"""The outputs of an exported file's layers, by the net's modules."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.backends.onnx_backends import openvino_core
from deploy.backends.safe_torch_export import read_program
from deploy.export.formats import FLOAT_ONNX
from deploy.export.layer_diff import Call, Key, as_array
from deploy.export.onnx_writer import module_ends, scopes_of
from pytorch2json.interpreter import Interpreter

DEQUANTIZED = "_DequantizeLinear_Output"  # onnxruntime's suffix for a tensor that has been through int8


def onnx_values(path: Path, images: np.ndarray, calls: Sequence[Call]) -> dict[Key, np.ndarray]:
    """Return the output of each module of an ONNX file, from the names that the exporter left at its nodes."""
    import onnx

    model = onnx.load(path)
    ends = module_ends((scopes_of(node), node.output[0]) for node in model.graph.node)
    return _run_with_outputs(model, ends, images)


def int8_values(path: Path, images: np.ndarray, calls: Sequence[Call]) -> dict[Key, np.ndarray]:
    """Return the rounded output of each module of an int8 file; the float file beside it has the modules' names."""
    import onnx

    ends = module_ends((scopes_of(node), node.output[0]) for node in onnx.load(path.with_name(FLOAT_ONNX)).graph.node)
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    found = {key: name + DEQUANTIZED if name + DEQUANTIZED in made else name for key, name in ends.items()}
    return _run_with_outputs(model, {key: name for key, name in found.items() if name in made}, images)


def jit_values(path: Path, images: np.ndarray, calls: Sequence[Call]) -> dict[Key, np.ndarray]:
    """Return the output of each module of a TorchScript file for the net's own input to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        net = torch.jit.load(path, map_location="cpu").eval()
    modules = dict(net.named_modules())
    values = {}
    for call in calls:
        name, number = call.key
        method = getattr(modules.get(name), f"forward{number or ''}", None)
        if method is None or call.inputs is None:
            continue
        dtype = next((p.dtype for p in modules[name].parameters() if p.is_floating_point()), None)
        try:
            with torch.inference_mode():
                output = method(*(_cast(tensor, dtype) for tensor in call.inputs))
        except RuntimeError:  # tracing changed the inputs of some modules
            continue
        if isinstance(output, torch.Tensor):
            values[call.key] = as_array(output)
    return values


def pt2_values(path: Path, images: np.ndarray, calls: Sequence[Call]) -> dict[Key, np.ndarray]:
    """Return the output of each module of a torch.export file, from the module paths at its nodes."""
    program = read_program(path).module()
    nodes: list[tuple[tuple[str, ...], str]] = []
    results: dict[str, np.ndarray] = {}

    class Recorder(torch.fx.Interpreter):
        """Runs the graph and keeps every tensor."""

        def run_node(self, n: torch.fx.Node) -> Any:
            result = super().run_node(n)
            if n.op == "call_function" and isinstance(result, torch.Tensor):
                paths = [str(entry[0]) for entry in n.meta.get("nn_module_stack", {}).values()]
                nodes.append((tuple(path for path in paths if path), n.name))
                results[n.name] = as_array(result)
            return result

    with torch.inference_mode():
        Recorder(program).run(torch.from_numpy(images))
    return {key: results[name] for key, name in module_ends(iter(nodes)).items()}


def json_values(path: Path, images: np.ndarray, calls: Sequence[Call]) -> dict[Key, np.ndarray]:
    """Return the output of each module of a network description, whose tensors are named after the modules."""
    interpreter = Interpreter.load(path)
    tensors = interpreter.run(torch.from_numpy(images))
    known = {call.key[0] for call in calls}
    names = [tensor.name for layer in interpreter.network.layers for tensor in layer.outputs[:1] if layer.inputs]
    ends = module_ends((_prefixes(name, known), name) for name in names)
    return {key: as_array(tensors[name]) for key, name in ends.items()}


def _prefixes(name: str, modules: set[str]) -> tuple[str, ...]:
    """Return the modules in a tensor's name: "layer1.0.relu_2" is in layer1, layer1.0, layer1.0.relu."""
    stem, underscore, number = name.rpartition("_")
    if underscore and number.isdecimal() and name not in modules:
        name = stem
    parts = name.split(".")
    prefixes = (".".join(parts[: length + 1]) for length in range(len(parts)))
    return tuple(prefix for prefix in prefixes if prefix in modules)


def _run_with_outputs(model: Any, ends: Mapping[Key, str], images: np.ndarray) -> dict[Key, np.ndarray]:
    import onnx

    known = {output.name for output in model.graph.output}
    for name in dict.fromkeys(ends.values()):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    results = _run(model.SerializeToString(), images)
    return {key: results[name].astype(np.float32) for key, name in ends.items() if name in results}


def _run(model: bytes, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return all outputs of an ONNX model on onnxruntime, or where that lacks an operator (bf16) on OpenVINO."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's errors have no base class of their own
        compiled = openvino_core().compile_model(model, b"", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        outputs = compiled(images)
        return {port.get_any_name(): np.asarray(outputs[port], np.float32) for port in compiled.outputs}
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor
