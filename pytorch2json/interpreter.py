"""The interpreter: runs a description on the CPU (or a GPU) with torch's functions alone, to verify it.

It reads only the two files. Each layer's output is checked against the shape and dtype that it declares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from common.formatting import first_line
from pytorch2json import network
from pytorch2json.description_file import read_description
from pytorch2json.network import DescriptionError, Layer, Network, dtype_of

Tensors = Sequence[torch.Tensor]
Weights = Mapping[str, torch.Tensor]
ACTIVATIONS: dict[str, Callable[[torch.Tensor, float, float], torch.Tensor]] = {
    "relu": lambda x, a, b: x.relu(),
    "sigmoid": lambda x, a, b: x.sigmoid(),
    "tanh": lambda x, a, b: x.tanh(),
    "clip": lambda x, a, b: x.clamp(a, b),
    "hard_sigmoid": lambda x, a, b: (x * a + b).clamp(0, 1),
    "leaky_relu": lambda x, a, b: torch.where(x < 0, x * a, x),
    "elu": lambda x, a, b: torch.where(x < 0, a * torch.expm1(x), x),
    "softplus": lambda x, a, b: a * torch.log1p(torch.exp(b * x)),
    "gelu_erf": lambda x, a, b: functional.gelu(x),
    "gelu_tanh": lambda x, a, b: functional.gelu(x, approximate="tanh"),
}
UNARY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "recip": torch.reciprocal,
    "abs": torch.abs,
    "neg": torch.neg,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "floor": torch.floor,
    "ceil": torch.ceil,
    "not": torch.logical_not,
}
ELEMENTWISE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "sum": torch.add,
    "prod": torch.mul,
    "max": torch.maximum,
    "min": torch.minimum,
    "sub": torch.sub,
    "div": torch.div,
    "pow": torch.pow,
    "equal": torch.eq,
    "less": torch.lt,
    "greater": torch.gt,
}
REDUCE: dict[str, Callable[..., torch.Tensor]] = {
    "sum": torch.sum,
    "max": torch.amax,
    "min": torch.amin,
    "avg": torch.mean,
}


class Interpreter:
    """A description as a function. Raises DescriptionError where a layer makes other than what it declares."""

    def __init__(self, network: Network, weights: Weights, device: str | torch.device = "cpu") -> None:
        self.network = network
        self.device = torch.device(device)
        self._weights = {name: tensor.to(self.device) for name, tensor in weights.items()}
        self._last_use = _last_uses(network)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Interpreter:
        """Read NAME.json and the weights beside it. Raises DescriptionError."""
        return cls(*read_description(path), device)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the outputs, float32 (N, ...), for images of the input's shape and dtype. Raises DescriptionError."""
        return self._execute(images, keep=False)[self.network.outputs[0].name]

    def run(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return every tensor by its name, in execution order. Raises DescriptionError."""
        return self._execute(images, keep=True)

    @torch.inference_mode()
    def _execute(self, images: torch.Tensor, keep: bool) -> dict[str, torch.Tensor]:
        declared = self.network.inputs[0]
        if not isinstance(images, torch.Tensor):
            got = f"{type(images).__module__}.{type(images).__name__}"
            raise DescriptionError(f'input "{declared.name}" is a torch tensor, got {got}; torch.from_numpy makes one')
        count = len(images) if images.ndim else 0
        if tuple(images.shape) != declared.shape_at(count) or dtype_of(images) != declared.dtype:
            got = f"{dtype_of(images)} {tuple(images.shape)}"
            raise DescriptionError(f'input "{declared.name}" is {declared.dtype} {declared.shape}, got {got}')
        tensors = {declared.name: images.to(self.device)}
        for position, layer in enumerate(self.network.layers):
            for tensor, made in zip(layer.outputs, self._layer(layer, tensors), strict=True):
                if tuple(made.shape) != tensor.shape_at(count) or dtype_of(made) != tensor.dtype:
                    got = f"{dtype_of(made)} {tuple(made.shape)}"
                    raise DescriptionError(
                        f'layer "{layer.name}" ({layer.type}) declares {tensor.dtype} {tensor.shape} and makes {got}'
                    )
                tensors[tensor.name] = made
            if not keep:
                for name in self._last_use[position]:
                    del tensors[name]
        return tensors

    def _layer(self, layer: Layer, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        inputs = [tensors[name] for name in layer.inputs]
        weights = {role: self._weights[name] for role, name in layer.weights.items()}
        try:
            result = RUN[layer.type](layer, inputs, weights)
        except (RuntimeError, IndexError, TypeError, ValueError, OverflowError) as error:  # torch's errors for misfits
            raise DescriptionError(f'layer "{layer.name}" ({layer.type}) cannot run: {first_line(error)}') from error
        return result if isinstance(result, tuple) else (result,)


def relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return max |got - expected| / max |expected|; NaN where either is not finite."""
    return float((got.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-30))


def _convolution(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    x, padding = _padded(inputs[0], layer, 0.0)
    kernel = inputs[1] if len(inputs) == 2 else weights["kernel"]
    return functional.conv2d(x, kernel, weights.get("bias"), layer.stride, padding, layer.dilation, layer.groups)


def _deconvolution(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    kernel, bias = weights["kernel"], weights.get("bias")
    y = functional.conv_transpose2d(inputs[0], kernel, bias, layer.stride, 0, 0, layer.groups, layer.dilation)
    (top, left), (bottom, right) = layer.pre_padding, layer.post_padding
    return y[:, :, top : y.shape[2] - bottom, left : y.shape[3] - right]


def _pooling(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    x = inputs[0]
    if layer.operation == "max":
        x, _ = _padded(x, layer, -torch.inf, always=True)
        return functional.max_pool2d(x, layer.window, layer.stride)
    x, _ = _padded(x, layer, 0.0, always=True)
    total = functional.avg_pool2d(x, layer.window, layer.stride)
    if not layer.average_excludes_padding:
        return total
    inside, _ = _padded(torch.ones_like(inputs[0][:1, :1]), layer, 0.0, always=True)
    return total / functional.avg_pool2d(inside, layer.window, layer.stride)


def _padded(x: torch.Tensor, layer: Any, value: float, always: bool = False) -> tuple[torch.Tensor, tuple[int, int]]:
    """Return the padded images and no padding where before and after differ (or always); else both as they are."""
    (top, left), (bottom, right) = layer.pre_padding, layer.post_padding
    if not always and (top, left) == (bottom, right):
        return x, (top, left)
    return functional.pad(x, (left, right, top, bottom), value=value), (0, 0)


def _gather(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    data, indices = inputs[0], inputs[1].long()
    if layer.mode == "element":
        return data.gather(layer.axis, indices)
    shape = (*data.shape[: layer.axis], *indices.shape, *data.shape[layer.axis + 1 :])
    return data.index_select(layer.axis, indices.reshape(-1)).reshape(shape)


def _shuffle(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    x = inputs[0]
    x = x if layer.first_transpose is None else x.permute(layer.first_transpose)
    x = x if layer.reshape is None else x.reshape(layer.reshape)
    return x if layer.second_transpose is None else x.permute(layer.second_transpose)


def _slice(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    x = inputs[0]
    sizes = layer.size if len(inputs) == 1 else inputs[1].tolist()
    declared = layer.outputs[0].shape
    if any(isinstance(size, int) and size != got for size, got in zip(declared, sizes, strict=True)):
        raise ValueError(f"its size is {tuple(sizes)}, declared is {declared}")
    for axis, (start, size, stride) in enumerate(zip(layer.start, sizes, layer.stride, strict=True)):
        places = start + stride * torch.arange(size, device=x.device)
        inside = (places >= 0) & (places < x.shape[axis])
        if layer.mode == "default" and not bool(inside.all()):
            raise IndexError(f"it leaves axis {axis} of size {x.shape[axis]}")
        x = x.index_select(axis, places.clamp(0, x.shape[axis] - 1))
        if not bool(inside.all()):
            x = x * inside.view(-1, *[1] * (x.ndim - axis - 1)).to(x.dtype)
    return x


def _resize(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    x = inputs[0]
    sizes = [int(size) for size in inputs[1].tolist()[2:]] if len(inputs) == 2 else None
    if sizes is None:
        sizes = [int(size * scale + 1e-6) for size, scale in zip(x.shape[2:], layer.scales[2:], strict=True)]
    if layer.mode == "nearest":
        if layer.coordinates != "asymmetric" or layer.nearest_rounding != "floor":
            raise ValueError("nearest is run with asymmetric coordinates and floor alone")
        return functional.interpolate(x, sizes)
    if layer.coordinates == "asymmetric":
        raise ValueError("linear and cubic are run with half_pixel or align_corners alone")
    mode = {"linear": "bilinear", "cubic": "bicubic"}[layer.mode]
    return functional.interpolate(x, sizes, mode=mode, align_corners=layer.coordinates == "align_corners")


def _normalization(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    x, scale, bias = inputs
    centred = x - x.mean(layer.axes, keepdim=True)
    variance = centred.square().mean(layer.axes, keepdim=True)
    return centred / (variance + layer.epsilon).sqrt() * scale + bias


def _matrix_multiply(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    left, right = inputs
    if left.ndim != right.ndim:
        raise ValueError(f"its inputs have {left.ndim} and {right.ndim} axes")
    return (left.mT if layer.transpose_a else left) @ (right.mT if layer.transpose_b else right)


def _elementwise(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    left, right = inputs
    if left.ndim != right.ndim or left.dtype != right.dtype:  # TensorRT's rule; torch would broadcast
        raise ValueError(
            f"its inputs are {dtype_of(left)} {tuple(left.shape)} and {dtype_of(right)} {tuple(right.shape)}"
        )
    return ELEMENTWISE[layer.operation](left, right)


def _reduce(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    if layer.operation == "prod":
        x = inputs[0]
        for axis in sorted(layer.axes, reverse=True):
            x = x.prod(axis, keepdim=layer.keep_dims)
        return x
    return REDUCE[layer.operation](inputs[0], layer.axes, keepdim=layer.keep_dims)


def _topk(layer: Any, inputs: Tensors, weights: Weights) -> Tensors:
    values, indices = inputs[0].topk(layer.k, layer.axis, largest=layer.operation == "max")
    return values, indices.int()


def _scale(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    return inputs[0] * weights["scale"].view(1, -1, 1, 1) + weights["shift"].view(1, -1, 1, 1)


def _quantize(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    return (inputs[0] / _along_axis(layer, inputs)).round().clamp(-128, 127).to(torch.int8)  # halves to the even one


def _dequantize(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    scale = _along_axis(layer, inputs)
    return inputs[0].to(scale.dtype) * scale


def _along_axis(layer: Any, inputs: Tensors) -> torch.Tensor:
    """Return the scale, (C,), as (1, ..., C, ..., 1) with the rank of the data; one value as it is."""
    data, scale = inputs
    return scale if layer.axis is None else scale.view([-1 if axis == layer.axis else 1 for axis in range(data.ndim)])


def _activation(layer: Any, inputs: Tensors, weights: Weights) -> torch.Tensor:
    return ACTIVATIONS[layer.operation](inputs[0], layer.alpha, layer.beta)


RUN: dict[str, Callable[[Any, Tensors, Weights], torch.Tensor | Tensors]] = {
    "convolution": _convolution,
    "deconvolution": _deconvolution,
    "pooling": _pooling,
    "activation": _activation,
    "unary": lambda layer, inputs, weights: UNARY[layer.operation](inputs[0]),
    "elementwise": _elementwise,
    "reduce": _reduce,
    "softmax": lambda layer, inputs, weights: inputs[0].softmax(layer.axis),
    "topk": _topk,
    "gather": _gather,
    "shuffle": _shuffle,
    "concatenation": lambda layer, inputs, weights: torch.cat(list(inputs), layer.axis),
    "slice": _slice,
    "resize": _resize,
    "normalization": _normalization,
    "matrix_multiply": _matrix_multiply,
    "constant": lambda layer, inputs, weights: weights["value"],
    "cast": lambda layer, inputs, weights: inputs[0].to(getattr(torch, layer.outputs[0].dtype)),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "scale": _scale,
    "select": lambda layer, inputs, weights: torch.where(inputs[0], inputs[1], inputs[2]),
    "shape": lambda layer, inputs, weights: torch.tensor(inputs[0].shape, device=inputs[0].device),
}
assert set(RUN) == set(network.TYPES)


def _last_uses(described: Network) -> list[list[str]]:
    """Return by layer the tensors that no later one needs."""
    last: dict[str, int] = {}
    for position, layer in enumerate(described.layers):
        for name in (*layer.inputs, *(tensor.name for tensor in layer.outputs)):
            last[name] = position
    for tensor in described.outputs:
        last.pop(tensor.name, None)
    ends: list[list[str]] = [[] for _ in described.layers]
    for name, position in last.items():
        ends[position].append(name)
    return ends
