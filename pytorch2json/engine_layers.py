"""The network in TensorRT: each layer of a description by its add_* call, checked for its declared shape and dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytorch2json import network as described
from pytorch2json.network import MAX_AXES, DescriptionError, Layer, Network, Tensor, dtype_of
from pytorch2json.tensorrt_library import DTYPES, Messages, library_name, refusals

if TYPE_CHECKING:
    import torch


def define(definition: Definition, network: Network, messages: Messages) -> None:
    """Add input, layers and outputs. Raises DescriptionError naming the layer that TensorRT does not take as it is."""
    trt, target = definition.trt, definition.target
    for tensor in network.inputs:
        with refusals(f'input "{tensor.name}"', trt, messages):
            added = target.add_input(tensor.name, definition.dtype(tensor.dtype), dims(tensor))
            definition.tensors[tensor.name] = _made(added)
    for layer in network.layers:
        where = f'layer "{layer.name}" ({layer.type})'
        with refusals(where, trt, messages):
            added = ADD[layer.type](definition, layer, [definition.tensors[name] for name in layer.inputs])
            added.name = layer.name
        for number, tensor in enumerate(layer.outputs):
            made = added.get_output(number)
            made.name = tensor.name
            definition.tensors[tensor.name] = made
            with refusals(where, trt, messages):
                shape = tuple(made.shape)  # here TensorRT checks the layer's inputs
            _compare(where, tensor, shape, made.dtype, definition)
    for tensor in network.outputs:
        with refusals(f'output "{tensor.name}"', trt, messages):
            target.mark_output(definition.tensors[tensor.name])


class Definition:
    """A TensorRT network in the making, its tensors by our names, and the weights that it points into."""

    def __init__(self, trt: Any, target: Any, weights: Mapping[str, torch.Tensor]) -> None:
        self.trt = trt
        self.target = target
        self.tensors: dict[str, Any] = {}
        self._weights = weights
        self._alive: list[torch.Tensor] = []

    def member(self, kind: str, name: str) -> Any:
        """Return a member of one of TensorRT's enumerations by our name for it. Raises ValueError for an older one."""
        found = getattr(getattr(self.trt, kind), name.upper(), None)
        if found is None:
            raise ValueError(f"it has no {kind}.{name.upper()}")
        return found

    def dtype(self, name: str) -> Any:
        """Return TensorRT's dtype for ours."""
        return self.member("DataType", DTYPES[name])

    def weights(self, layer: Layer, role: str) -> Any:
        """Return a pointer to a weight of a layer, or empty weights where it has none. TensorRT copies nothing."""
        if role not in layer.weights:
            return self.trt.Weights(self.dtype(layer.outputs[0].dtype))
        tensor = self._weights[layer.weights[role]].detach().cpu().contiguous()
        self._alive.append(tensor)
        # By address, not from numpy, which has no bfloat16.
        return self.trt.Weights(self.dtype(dtype_of(tensor)), tensor.data_ptr(), tensor.numel())


def _compare(where: str, tensor: Tensor, shape: tuple[int, ...], dtype: Any, definition: Definition) -> None:
    """Raise DescriptionError where TensorRT makes another tensor than declared; a size it does not know is -1."""
    expected = dims(tensor)
    fits = len(shape) == len(expected) and all(
        got == size or (got == -1 and size >= 0) for got, size in zip(shape, expected, strict=True)
    )
    if not fits or dtype != definition.dtype(tensor.dtype):
        raise DescriptionError(
            f'{where}: tensor "{tensor.name}" is {tensor.dtype} {_sizes(expected)} in the description, and '
            f"{dtype.name} {_sizes(shape)} in {library_name(definition.trt)}"
        )


def _convolution(d: Definition, layer: described.Convolution | described.Deconvolution, inputs: list[Any]) -> Any:
    add = d.target.add_convolution_nd if layer.type == "convolution" else d.target.add_deconvolution_nd
    weights = d.weights(layer, "kernel"), d.weights(layer, "bias")
    added = _made(add(inputs[0], layer.num_output_maps, layer.kernel_shape, *weights))
    if len(inputs) == 2:
        added.set_input(1, inputs[1])
    added.stride_nd, added.dilation_nd, added.num_groups = layer.stride, layer.dilation, layer.groups
    added.pre_padding, added.post_padding = layer.pre_padding, layer.post_padding
    return added


def _pooling(d: Definition, layer: described.Pooling, inputs: list[Any]) -> Any:
    added = _made(d.target.add_pooling_nd(inputs[0], d.member("PoolingType", layer.operation), layer.window))
    added.stride_nd, added.pre_padding, added.post_padding = layer.stride, layer.pre_padding, layer.post_padding
    added.average_count_excludes_padding = layer.average_excludes_padding
    return added


def _activation(d: Definition, layer: described.Activation, inputs: list[Any]) -> Any:
    added = _made(d.target.add_activation(inputs[0], d.member("ActivationType", layer.operation)))
    added.alpha, added.beta = layer.alpha, layer.beta
    return added


def _unary(d: Definition, layer: described.Unary, inputs: list[Any]) -> Any:
    return _made(d.target.add_unary(inputs[0], d.member("UnaryOperation", layer.operation)))


def _elementwise(d: Definition, layer: described.Elementwise, inputs: list[Any]) -> Any:
    return _made(d.target.add_elementwise(*inputs, d.member("ElementWiseOperation", layer.operation)))


def _reduce(d: Definition, layer: described.Reduce, inputs: list[Any]) -> Any:
    operation = d.member("ReduceOperation", layer.operation)
    return _made(d.target.add_reduce(inputs[0], operation, _bits(*layer.axes), layer.keep_dims))


def _softmax(d: Definition, layer: described.Softmax, inputs: list[Any]) -> Any:
    added = _made(d.target.add_softmax(inputs[0]))
    added.axes = _bits(layer.axis)
    return added


def _topk(d: Definition, layer: described.TopK, inputs: list[Any]) -> Any:
    return _made(d.target.add_topk(inputs[0], d.member("TopKOperation", layer.operation), layer.k, _bits(layer.axis)))


def _gather(d: Definition, layer: described.Gather, inputs: list[Any]) -> Any:
    added = _made(d.target.add_gather_v2(*inputs, d.member("GatherMode", layer.mode)))
    added.axis = layer.axis
    return added


def _shuffle(d: Definition, layer: described.Shuffle, inputs: list[Any]) -> Any:
    added = _made(d.target.add_shuffle(inputs[0]))
    added.zero_is_placeholder = False  # a 0 is a size of 0, not a size to copy
    if layer.first_transpose is not None:
        added.first_transpose = d.trt.Permutation(layer.first_transpose)
    if layer.reshape is not None:
        added.reshape_dims = layer.reshape
    if layer.second_transpose is not None:
        added.second_transpose = d.trt.Permutation(layer.second_transpose)
    return added


def _concatenation(d: Definition, layer: described.Concatenation, inputs: list[Any]) -> Any:
    added = _made(d.target.add_concatenation(inputs))
    added.axis = layer.axis
    return added


def _slice(d: Definition, layer: described.Slice, inputs: list[Any]) -> Any:
    size = (0,) * len(layer.start) if layer.size is None else layer.size
    added = _made(d.target.add_slice(inputs[0], layer.start, size, layer.stride))
    added.mode = d.member("SampleMode", {"default": "strict_bounds", "fill": "fill"}[layer.mode])
    if len(inputs) == 2:
        added.set_input(2, inputs[1])
    return added


def _resize(d: Definition, layer: described.Resize, inputs: list[Any]) -> Any:
    added = _made(d.target.add_resize(inputs[0]))
    added.resize_mode = d.member("InterpolationMode", layer.mode)
    added.coordinate_transformation = d.member("ResizeCoordinateTransformation", layer.coordinates)
    added.nearest_rounding = d.member("ResizeRoundMode", layer.nearest_rounding)
    added.cubic_coeff = layer.cubic_coefficient
    if layer.scales is not None:
        added.scales = layer.scales
    if len(inputs) == 2:
        added.set_input(1, inputs[1])
    return added


def _normalization(d: Definition, layer: described.Normalization, inputs: list[Any]) -> Any:
    newest = getattr(d.target, "add_normalization_v2", None) or d.target.add_normalization  # v2 came with 10.15
    added = _made(newest(*inputs, _bits(*layer.axes)))
    added.epsilon = layer.epsilon
    return added


def _matrix_multiply(d: Definition, layer: described.MatrixMultiply, inputs: list[Any]) -> Any:
    flags = layer.transpose_a, layer.transpose_b
    a, b = (d.member("MatrixOperation", "transpose" if flag else "none") for flag in flags)
    return _made(d.target.add_matrix_multiply(inputs[0], a, inputs[1], b))


def _constant(d: Definition, layer: described.Constant, inputs: list[Any]) -> Any:
    return _made(d.target.add_constant(dims(layer.outputs[0]), d.weights(layer, "value")))


def _cast(d: Definition, layer: described.Cast, inputs: list[Any]) -> Any:
    return _made(d.target.add_cast(inputs[0], d.dtype(layer.outputs[0].dtype)))


def _quantize(d: Definition, layer: described.Quantize, inputs: list[Any]) -> Any:
    return _along_axis(d.target.add_quantize(*inputs, d.dtype(layer.outputs[0].dtype)), layer.axis)


def _dequantize(d: Definition, layer: described.Dequantize, inputs: list[Any]) -> Any:
    return _along_axis(d.target.add_dequantize(*inputs, d.dtype(layer.outputs[0].dtype)), layer.axis)


def _along_axis(added: Any, axis: int | None) -> Any:
    added = _made(added)
    if axis is not None:
        added.axis = axis
    return added


def _scale(d: Definition, layer: described.Scale, inputs: list[Any]) -> Any:
    weights = [d.weights(layer, role) for role in ("shift", "scale", "power")]  # power is never there: 1
    return _made(d.target.add_scale_nd(inputs[0], d.member("ScaleMode", "channel"), *weights, 1))


def _select(d: Definition, layer: described.Select, inputs: list[Any]) -> Any:
    return _made(d.target.add_select(*inputs))


def _shape(d: Definition, layer: described.ShapeOf, inputs: list[Any]) -> Any:
    return _made(d.target.add_shape(inputs[0]))


ADD: dict[str, Callable[[Definition, Any, list[Any]], Any]] = {
    "convolution": _convolution,
    "deconvolution": _convolution,
    "pooling": _pooling,
    "activation": _activation,
    "unary": _unary,
    "elementwise": _elementwise,
    "reduce": _reduce,
    "softmax": _softmax,
    "topk": _topk,
    "gather": _gather,
    "shuffle": _shuffle,
    "concatenation": _concatenation,
    "slice": _slice,
    "resize": _resize,
    "normalization": _normalization,
    "matrix_multiply": _matrix_multiply,
    "constant": _constant,
    "cast": _cast,
    "quantize": _quantize,
    "dequantize": _dequantize,
    "scale": _scale,
    "select": _select,
    "shape": _shape,
}


def _made(added: Any) -> Any:
    """Return what an add_* call returned. Raises RuntimeError for None, which is TensorRT's refusal."""
    if added is None:
        raise RuntimeError("it returns None")
    return added


def _bits(*axes: int) -> int:
    """Return axes as TensorRT's bit mask. Raises ValueError."""
    if max(axes) >= MAX_AXES:
        raise ValueError(f"axis {max(axes)} is over {MAX_AXES - 1}")
    return sum(1 << axis for axis in set(axes))


def dims(tensor: Tensor) -> tuple[int, ...]:
    """Return a shape as TensorRT has it: -1 for what depends on the batch size."""
    return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)


def _sizes(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"
