"""The first layer that departs: where an exported file stops computing what the net computes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deploy.backends.onnx_backends import openvino_core
from deploy.export.onnx_writer import module_ends, scopes_of

Key = tuple[str, int]  # a module's dotted name, and the number of its call
DEQUANTIZED = "_DequantizeLinear_Output"  # onnxruntime's suffix for a tensor that has been through int8
LEAST_FALL_DB = 6.0  # of the signal to noise ratio, for a layer of an int8 file to be named: one bit


@dataclass(frozen=True)
class Call:
    """One call of one module: its inputs, where all are tensors, and its output."""

    key: Key
    inputs: tuple[torch.Tensor, ...] | None
    output: np.ndarray


def record_calls(net: nn.Module, images: torch.Tensor) -> list[Call]:
    """Run the net and keep what each module in it got and gave, in the order in which they ended."""
    calls: list[Call] = []
    counts: Counter[str] = Counter()
    waiting: dict[str, tuple[torch.Tensor, ...] | None] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            plain = not kwargs and all(isinstance(arg, torch.Tensor) for arg in args)
            waiting[name] = tuple(arg.clone() for arg in args) if plain else None  # copies: ReLU works in place

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, torch.Tensor):
                calls.append(Call((name, counts[name]), waiting[name], _array(output)))
            counts[name] += 1

        return hook

    hooks = []
    for name, module in net.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            hooks.append(module.register_forward_hook(after(name)))
    try:
        with torch.inference_mode():
            net(images)
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def first_departing(calls: Sequence[Call], values: Mapping[Key, np.ndarray], tolerance: float) -> str:
    """Name the first module whose output differs by more than `tolerance` of its largest value, and by how much.

    Where none does, the module in which the difference grows most.
    """
    errors = [(call.key, _relative_error(values[call.key], call.output)) for call in _comparable(calls, values)]
    if not errors:
        return "no layer of it can be looked at alone"
    for key, error in errors:
        if not error <= tolerance:
            return f"{_name(key)} (relative error {error:.1e})"
    before = [0.0, *(error for _, error in errors)]
    grown = max(range(len(errors)), key=lambda i: errors[i][1] - max(before[: i + 1]))
    key, error = errors[grown]
    return f"none alone is over {tolerance:.0e}; the error grows most in {_name(key)} (to {error:.1e})"


def first_noisy(calls: Sequence[Call], values: Mapping[Key, np.ndarray]) -> str:
    """Name the module of an int8 file in which the signal to noise ratio falls furthest below all before it."""
    ratios = [(call.key, _signal_to_noise_db(values[call.key], call.output)) for call in _comparable(calls, values)]
    if not ratios:
        return "no layer of it can be looked at alone"
    least, furthest, text = ratios[0][1], 0.0, _noise(ratios[0])
    for key, ratio in ratios[1:]:
        if least - ratio > furthest:
            furthest, text = least - ratio, f"{_name(key)} (signal to noise falls from {least:.0f} dB to {ratio:.0f})"
        least = min(least, ratio)
    if furthest < LEAST_FALL_DB:
        return f"no single one: the rounding of all of them adds up, to {least:.0f} dB"
    return text


def onnx_values(path: Path, images: np.ndarray) -> dict[Key, np.ndarray]:
    """Give what each module of an ONNX file gave, from the names that the exporter left at its nodes."""
    import onnx

    model = onnx.load(path)
    ends = module_ends((scopes_of(node), node.output[0]) for node in model.graph.node)
    return _run_with_outputs(model, ends, images)


def int8_values(path: Path, float_path: Path, images: np.ndarray) -> dict[Key, np.ndarray]:
    """Give what each module of an int8 file gave, after its rounding; the float file tells which tensor is whose."""
    import onnx

    ends = module_ends((scopes_of(node), node.output[0]) for node in onnx.load(float_path).graph.node)
    model = onnx.load(path)
    made = {name for node in model.graph.node for name in node.output}
    found = {key: name + DEQUANTIZED if name + DEQUANTIZED in made else name for key, name in ends.items()}
    return _run_with_outputs(model, {key: name for key, name in found.items() if name in made}, images)


def jit_values(path: Path, calls: Sequence[Call]) -> dict[Key, np.ndarray]:
    """Give what each module of a TorchScript file makes of the net's own input to it."""
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
        except RuntimeError:  # tracing gives some modules inputs that they do not have in the net
            continue
        if isinstance(output, torch.Tensor):
            values[call.key] = _array(output)
    return values


def pt2_values(path: Path, images: np.ndarray) -> dict[Key, np.ndarray]:
    """Give what each module of a torch.export file gave, from the module paths at its nodes."""
    from deploy.backends.safe_torch_export import read_program

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
                results[n.name] = _array(result)
            return result

    with torch.inference_mode():
        Recorder(program).run(torch.from_numpy(images))
    return {key: results[name] for key, name in module_ends(iter(nodes)).items()}


def json_values(path: Path, images: np.ndarray, modules: Sequence[str]) -> dict[Key, np.ndarray]:
    """Give what each module of a network description gave; its tensors are called after the modules."""
    from pytorch2json.interpreter import Interpreter

    interpreter = Interpreter.load(path)
    tensors = interpreter.run(torch.from_numpy(images))
    known = set(modules)
    names = [tensor.name for layer in interpreter.network.layers for tensor in layer.outputs[:1] if layer.inputs]
    ends = module_ends((_prefixes(name, known), name) for name in names)
    return {key: _array(tensors[name]) for key, name in ends.items()}


def _prefixes(name: str, modules: set[str]) -> tuple[str, ...]:
    """Give the modules that a tensor's name says it is in: "layer1.0.relu_2" is in layer1, layer1.0, layer1.0.relu."""
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
    """Run an ONNX model on onnxruntime, or where it lacks an operator (bf16) on OpenVINO; give all outputs."""
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


def _comparable(calls: Sequence[Call], values: Mapping[Key, np.ndarray]) -> Iterator[Call]:
    """Give the calls whose module was called as often in the file, with outputs of the same shape."""
    there, here = Counter(name for name, _ in values), Counter(call.key[0] for call in calls)
    for call in calls:
        name = call.key[0]
        if call.key in values and there[name] == here[name] and values[call.key].shape == call.output.shape:
            yield call


def _relative_error(got: np.ndarray, wanted: np.ndarray) -> float:
    if not np.isfinite(got).all():
        return float("inf")
    return float(np.abs(got - wanted).max(initial=0) / (np.abs(wanted).max(initial=0) or 1))


def _signal_to_noise_db(got: np.ndarray, wanted: np.ndarray) -> float:
    noise = float(np.square(got.astype(np.float64) - wanted).sum())
    signal = float(np.square(wanted, dtype=np.float64).sum())
    if not np.isfinite(noise):
        return -100.0
    return float(np.clip(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-30)), -100, 100))


def _noise(ratio: tuple[Key, float]) -> str:
    return f"{_name(ratio[0])} (signal to noise {ratio[1]:.0f} dB)"


def _name(key: Key) -> str:
    name, number = key
    return f"{name} (call {number + 1})" if number else name


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to(torch.float32, copy=True).cpu().numpy()
