"""The graph that the converter fills: values, constants, and layers named by their modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from pytorch2json import network
from pytorch2json.network import DescriptionError, DType, Layer, Size, Tensor


@dataclass(frozen=True)
class Value:
    """A tensor that depends on the input; its shape's entries are numbers, "N" or "64*N"."""

    name: str
    shape: tuple[Size, ...]
    dtype: torch.dtype

    def tensor(self) -> Tensor:
        """Return its entry in the description."""
        return Tensor(name=self.name, shape=self.shape, dtype=dtype_name(self.dtype))


@dataclass(frozen=True)
class Constant:
    """A tensor that depends on weights alone: unrounded, with its dtype in the graph and a weight's name."""

    tensor: torch.Tensor
    dtype: torch.dtype
    name: str = ""


@dataclass
class Graph:
    """The layers so far and the tensors of the weights file."""

    tensors: dict[str, torch.Tensor]
    layers: list[Layer] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)
    _constants: dict[Any, list[tuple[torch.Tensor, Value]]] = field(default_factory=dict)
    sizes: dict[tuple[Size, ...], Value] = field(default_factory=dict)  # computed shapes, each made once
    _batch: Value | None = None
    _input: Value | None = None

    def input(self, name: str, meta: torch.Tensor) -> Value:
        """Declare the input, and return its value."""
        self._names.add(name)
        self._input = Value(name, shape_of(meta), meta.dtype)
        return self._input

    def unique(self, name: str) -> str:
        """Return the name, or name_2, name_3, ... where it is taken, and reserve it."""
        number, candidate = 1, name
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def add(self, kind: type[Any], name: str, inputs: Sequence[Value], outputs: Sequence[Value], **parts: Any) -> None:
        """Append a layer with named outputs."""
        names = tuple(value.name for value in inputs)
        self.layers.append(kind(name=name, inputs=names, outputs=tuple(v.tensor() for v in outputs), **parts))

    def constant(self, tensor: torch.Tensor, dtype: torch.dtype, name: str) -> Value:
        """Return the value of a constant layer; equal constants of one name share it."""
        same = self._constants.setdefault((name, tuple(tensor.shape), dtype), [])
        for known, value in same:
            if torch.equal(known, tensor):
                return value
        weight = self.weight(name, tensor, dtype)
        value = Value(self.unique(name), tuple(tensor.shape), dtype)
        self.add(network.Constant, value.name, (), (value,), weights={"value": weight})
        same.append((tensor, value))
        return value

    def weight(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> str:
        """Add a tensor to the weights file, rounded to its dtype, and return its name there.

        A module that is called twice has its weights once. Raises DescriptionError where it overflows; infinities from
        before, as in the masks of attention, are allowed.
        """
        rounded = tensor.detach().to(dtype)
        if bool(rounded.isnan().any()):
            raise DescriptionError(f'the weight "{name}" holds NaN')
        if bool((rounded.isinf() & ~tensor.isinf()).any()):
            raise DescriptionError(f'the weight "{name}" overflows {dtype}')
        number, candidate = 1, name
        while (known := self.tensors.get(candidate)) is not None:
            if known.dtype == dtype and torch.equal(known, rounded):
                return candidate
            number += 1
            candidate = f"{name}_{number}"
        self.tensors[candidate] = rounded.clone(memory_format=torch.contiguous_format)
        return candidate

    def batch(self) -> Value:
        """Return the batch size as an int64 tensor (1,), from the input's shape."""
        if self._batch is None:
            assert self._input is not None
            rank = len(self._input.shape)
            shape = Value(self.unique("batch.shape"), (rank,), torch.int64)
            self.add(network.ShapeOf, shape.name, (self._input,), (shape,))
            index = self.constant(torch.zeros(1, dtype=torch.int32), torch.int32, "batch.axis")
            self._batch = Value(self.unique("batch"), (1,), torch.int64)
            self.add(network.Gather, "batch", (shape, index), (self._batch,), mode="default", axis=0)
        return self._batch

    def rename(self, value: Value, name: str) -> Value:
        """Rename a tensor wherever it is used, and return it."""
        renamed = Value(self.unique(name), value.shape, value.dtype)
        for position, layer in enumerate(self.layers):
            inputs = tuple(renamed.name if used == value.name else used for used in layer.inputs)
            outputs = tuple(renamed.tensor() if made.name == value.name else made for made in layer.outputs)
            self.layers[position] = layer.model_copy(update={"inputs": inputs, "outputs": outputs})
        return renamed

    def finished(self, output: Value) -> tuple[Layer, ...]:
        """Return the layers that the output needs, in execution order."""
        needed, kept = {output.name}, []
        for layer in reversed(self.layers):
            if any(tensor.name in needed for tensor in layer.outputs):
                needed |= set(layer.inputs)
                kept.append(layer)
        return tuple(reversed(kept))


class Builder:
    """Appends the layers of one operator. `shape` and `dtype` are those of its result."""

    def __init__(self, graph: Graph, path: str, is_leaf: bool, meta: Any) -> None:
        self.graph = graph
        self.path = path
        self.output_name = ""  # the tensor's, where a later module is folded into this one
        self._is_leaf = is_leaf
        self.metas = list(meta) if isinstance(meta, (list, tuple)) else [meta]

    @property
    def shape(self) -> tuple[Size, ...]:
        """The shape of the result."""
        return shape_of(self.metas[0])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result."""
        dtype: torch.dtype = self.metas[0].dtype
        return dtype

    def add(
        self,
        kind: type[Any],
        inputs: Sequence[Value],
        shape: Sequence[Size] | None = None,
        dtype: torch.dtype | None = None,
        *,
        step: str = "",
        **parts: Any,
    ) -> Value:
        """Append a layer and return its output; `step` names one that is not the operator's last."""
        name = self._name(kind, step)
        shape = self.shape if shape is None else tuple(shape)
        tensor_name = self.graph.unique(self.output_name) if self.output_name and not step else name
        value = Value(tensor_name, shape, inputs[0].dtype if dtype is None else dtype)
        self.graph.add(kind, name, inputs, (value,), **parts)
        return value

    def topk(self, x: Value, shape: Sequence[Size], **parts: Any) -> tuple[Value, Value]:
        """Append a topk layer; return its values and its int32 indices."""
        name = self._name(network.TopK, "")
        values = Value(name, tuple(shape), x.dtype)
        indices = Value(self.graph.unique(f"{name}.indices"), tuple(shape), torch.int32)
        self.graph.add(network.TopK, name, (x,), (values, indices), **parts)
        return values, indices

    def weight(self, role: str, tensor: torch.Tensor, dtype: torch.dtype) -> str:
        """Add a weight of this module to the weights file, and return its name there."""
        return self.graph.weight(f"{self.path}.{role}".lstrip("."), tensor, dtype)

    def value(self, x: Value | Constant | float, dtype: torch.dtype | None = None, rank: int = 0) -> Value:
        """Return an operand as a value of a dtype, with leading axes of size 1 up to the rank."""
        if isinstance(x, Value):
            x = self.cast(x, x.dtype if dtype is None else dtype)
            return self.reshaped(x, (*[1] * (rank - len(x.shape)), *x.shape)) if len(x.shape) < rank else x
        if not isinstance(x, Constant):
            x = Constant(torch.tensor(x), self.dtype)
        tensor = x.tensor.reshape((1,) * max(0, rank - x.tensor.ndim) + tuple(x.tensor.shape))
        name = x.name or f"{self.path}.constant".lstrip(".")
        return self.graph.constant(tensor, dtype or x.dtype, name)

    def cast(self, x: Value, dtype: torch.dtype) -> Value:
        """Return x, cast where its dtype differs."""
        return x if x.dtype == dtype else self.add(network.Cast, (x,), x.shape, dtype, step="cast")

    def reshaped(self, x: Value, shape: Sequence[Size], step: str = "reshape") -> Value:
        """Return x, reshaped where its shape differs; at most one size may depend on the batch size."""
        if tuple(shape) == x.shape:
            return x
        return self.add(network.Shuffle, (x,), shape, step=step, reshape=reshape_of(shape))

    def sizes(self, shape: Sequence[Size]) -> Value:
        """Return a shape as an int64 tensor of rank 1, computed where it depends on the batch size."""
        known = self.graph.sizes.get(tuple(shape))
        if known is not None:
            return known
        parts: list[Value] = []
        for size in shape:
            if isinstance(size, int):
                parts.append(self._number(size))
                continue
            batch = self.graph.batch()
            if size != "N":
                factor = self._number(int(size[:-2]))
                batch = self.add(network.Elementwise, (batch, factor), (1,), step="size", operation="prod")
            parts.append(batch)
        made = self.add(network.Concatenation, parts, (len(parts),), step="shape", axis=0)
        return self.graph.sizes.setdefault(tuple(shape), made)

    def _number(self, size: int) -> Value:
        return self.graph.constant(torch.tensor([size]), torch.int64, f"number.{size}")

    def _name(self, kind: type[Any], step: str) -> str:
        if self._is_leaf and self.path and not step:
            return self.graph.unique(self.path)
        last = step or kind.model_fields["type"].default
        return self.graph.unique(f"{self.path}.{last}".lstrip("."))


def size_of(size: int | torch.SymInt) -> Size:
    """Return a size of torch.export as a number, "N" or "64*N". Raises DescriptionError for other expressions."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    factor, rest = expression.as_coeff_Mul()
    if not rest.is_Symbol or not factor.is_Integer or factor < 1:
        raise DescriptionError(f"a tensor's size is {expression}, which is not a multiple of the batch size")
    return "N" if factor == 1 else f"{int(factor)}*N"


def shape_of(meta: torch.Tensor) -> tuple[Size, ...]:
    """Return the shape of a tensor of torch.export."""
    return tuple(size_of(size) for size in meta.shape)


def reshape_of(shape: Sequence[Size]) -> tuple[int, ...]:
    """Return the sizes of a reshape, -1 for the one that depends on the batch. Raises DescriptionError."""
    sizes = tuple(size if isinstance(size, int) else -1 for size in shape)
    if sizes.count(-1) > 1:
        raise DescriptionError(f"a reshape to {tuple(shape)}: only one size may depend on the batch size")
    return sizes


def dtype_name(dtype: torch.dtype) -> DType:
    """Return a dtype's name in the description. Raises DescriptionError for one that TensorRT lacks."""
    name = str(dtype).removeprefix("torch.")
    if name not in ("float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"):
        raise DescriptionError(f"TensorRT has no {name}")
    return cast(DType, name)
