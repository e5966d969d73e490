"""A float32 description in int8: quantize and dequantize layers around what integer kernels compute.

TensorRT takes explicit quantization alone since version 11: it fuses a convolution between dequantize layers, and the
quantize layer behind it, into one kernel for integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from pytorch2json.interpreter import Interpreter
from pytorch2json.network import (
    Constant,
    Convolution,
    Dequantize,
    DescriptionError,
    Layer,
    MatrixMultiply,
    Network,
    Quantize,
    Tensor,
    dtype_of,
)

TOLERANCE = 0.15  # of the parity sample: another order of sums moves values to the next step; 0.06 was seen
MATCHES = 0.51  # of a step: by how much rounded weights differ from those that they are of


@dataclass(frozen=True, eq=False)
class IntegerKernel:
    """A convolution's or product's weights in int8, (O, ...), a scale for each output, and the scale of its input."""

    values: torch.Tensor
    scales: torch.Tensor  # float32 (O,)
    input_scale: float

    def is_of(self, weights: torch.Tensor) -> bool:
        """Return whether these are the rounded values of float weights."""
        if weights.shape != self.values.shape:
            return False
        scales = self.scales.view(-1, *[1] * (weights.ndim - 1))
        return bool(((weights - self.values * scales).abs() <= MATCHES * scales).all())


def quantized(
    network: Network, weights: Mapping[str, torch.Tensor], kernels: Sequence[IntegerKernel]
) -> tuple[Network, dict[str, torch.Tensor]]:
    """Return a float32 description with these kernels in int8; a layer's kernel is found by its values.

    Every reader of a tensor that is quantized reads the rounded one. The parity sample gets the output of the new
    description. Raises DescriptionError for a kernel that no layer has.
    """
    layers = _Layers(network, weights)
    waiting = list(kernels)
    for layer in network.layers:
        found = None if (own := layers.kernel_of(layer)) is None else _first(waiting, own)
        if found is not None:
            waiting.remove(found)
            layers.quantize(layer, found)
    if waiting:
        raise DescriptionError(f"{len(waiting)} of {len(kernels)} int8 kernels are those of no layer")
    parity = network.parity.model_copy(update={"tolerance": TOLERANCE})
    changes = {"layers": tuple(layers.finished()), "precision": "int8", "format_version": 2, "parity": parity}
    network, tensors = network.model_copy(update=changes), layers.tensors
    used = {name for layer in network.layers for name in layer.weights.values()} | {parity.input, parity.output}
    tensors[parity.output] = Interpreter(network, tensors)(tensors[parity.input])
    return network, {name: tensor for name, tensor in tensors.items() if name in used}


class _Layers:
    """The layers of a description, and what is put before and in place of them."""

    def __init__(self, network: Network, weights: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(weights)
        self._layers = network.layers
        self._constants = {layer.outputs[0].name: layer for layer in network.layers if isinstance(layer, Constant)}
        self._values = {tensor.name: tensor for layer in network.layers for tensor in layer.outputs}
        self._values |= {tensor.name: tensor for tensor in network.inputs}
        self._names = {layer.name for layer in network.layers} | set(self._values)
        self._rounded: dict[str, tuple[float, Tensor]] = {}  # by tensor its scale and what its readers get
        self._after: dict[str, list[Layer]] = {}  # by tensor the layers that round it
        self._before: dict[str, list[Layer]] = {}  # by layer those that make its kernel
        self._kernels: dict[str, Tensor] = {}  # by layer its dequantized kernel

    def kernel_of(self, layer: Layer) -> torch.Tensor | None:
        """Return the weights of a convolution (O, I / groups, kH, kW) or product (O, I), or None."""
        if isinstance(layer, Convolution):
            return self.tensors[layer.weights["kernel"]]
        if not isinstance(layer, MatrixMultiply) or (constant := self._constants.get(layer.inputs[1])) is None:
            return None
        value = self.tensors[constant.weights["value"]]  # (1, ..., O, I), or (1, ..., I, O)
        return value.flatten(0, -2) if layer.transpose_b else value.flatten(0, -2).T

    def quantize(self, layer: Layer, kernel: IntegerKernel) -> None:
        """Put a layer's input and kernel in int8."""
        self._round(layer.inputs[0], kernel.input_scale)
        values, axis = kernel.values, 0
        if isinstance(layer, MatrixMultiply):
            values = values if layer.transpose_b else values.T
            shape = self._values[layer.inputs[1]].shape
            axis = len(shape) - (2 if layer.transpose_b else 1)
            values = values.reshape([int(size) for size in shape])
        made: list[Layer] = []
        whole = self._constant(made, f"{layer.name}.kernel_int8", values.contiguous())
        scale = self._constant(made, f"{layer.name}.kernel_scale", kernel.scales)
        tensor = Tensor(name=self._unique(f"{layer.name}.kernel_dequantized"), shape=whole.shape, dtype="float32")
        made.append(Dequantize(name=tensor.name, inputs=(whole.name, scale.name), outputs=(tensor,), axis=axis))
        self._before[layer.name], self._kernels[layer.name] = made, tensor

    def finished(self) -> Iterator[Layer]:
        """Yield the layers in execution order, without the constants that nothing reads any more."""
        read = {name for layer in self._layers for name in self._inputs(layer)}
        for name in set(self._values) - {tensor.name for layer in self._layers for tensor in layer.outputs}:
            yield from self._after.get(name, [])  # of the description's input
        for layer in self._layers:
            if isinstance(layer, Constant) and layer.outputs[0].name not in read:
                continue
            yield from self._before.get(layer.name, [])
            changes: dict[str, object] = {"inputs": self._inputs(layer)}
            if isinstance(layer, Convolution) and layer.name in self._kernels:
                changes["weights"] = {role: name for role, name in layer.weights.items() if role != "kernel"}
            yield layer.model_copy(update=changes)
            for tensor in layer.outputs:
                yield from self._after.get(tensor.name, [])

    def _inputs(self, layer: Layer) -> tuple[str, ...]:
        names = [self._rounded[name][1].name if name in self._rounded else name for name in layer.inputs]
        if layer.name in self._kernels:
            names = [names[0], self._kernels[layer.name].name]
        return tuple(names)

    def _round(self, name: str, scale: float) -> None:
        if name in self._rounded:
            if self._rounded[name][0] != scale:
                raise DescriptionError(f'tensor "{name}" has two scales, {self._rounded[name][0]} and {scale}')
            return
        data, made = self._values[name], list[Layer]()
        factor = self._constant(made, f"{name}.scale", torch.tensor(scale))
        whole = Tensor(name=self._unique(f"{name}.quantize"), shape=data.shape, dtype="int8")
        outputs = whole, Tensor(name=self._unique(f"{name}.dequantize"), shape=data.shape, dtype=data.dtype)
        inputs = ((name, factor.name), (whole.name, factor.name))
        for kind, taken, output in zip((Quantize, Dequantize), inputs, outputs, strict=True):
            made.append(kind(name=output.name, inputs=taken, outputs=(output,)))
        self._after[name], self._rounded[name] = made, (scale, outputs[1])

    def _constant(self, made: list[Layer], name: str, value: torch.Tensor) -> Tensor:
        name = self._unique(name)
        self.tensors[name] = value
        tensor = Tensor(name=name, shape=tuple(value.shape), dtype=dtype_of(value))
        made.append(Constant(name=name, outputs=(tensor,), weights={"value": name}))
        return tensor

    def _unique(self, name: str) -> str:
        number, candidate = 1, name
        while candidate in self._names or candidate in self.tensors:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate


def _first(kernels: Sequence[IntegerKernel], weights: torch.Tensor) -> IntegerKernel | None:
    return next((kernel for kernel in kernels if kernel.is_of(weights)), None)
