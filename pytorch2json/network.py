"""The network description: a trained net as the layers that TensorRT's INetworkDefinition.add_* calls build.

docs/tensorrt-json.md describes every field; `python -m pytorch2json.network` writes the JSON schema.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict, Field

from common.errors import UserError

if TYPE_CHECKING:
    import torch

FORMAT: Literal["network description for TensorRT"] = "network description for TensorRT"
FORMAT_VERSIONS = (1, 2)  # 2 is written for a description that quantizes, which version 1 has no layers for
SCHEMA_FILE = Path(__file__).with_name("description.schema.json")
MAX_AXES = 8  # of one tensor: TensorRT's Dims.MAX_DIMS

Size = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^([1-9][0-9]{0,9}\*)?N$")]
Shape = tuple[Size, ...]
DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Pair = tuple[Positive, Positive]
NaturalPair = tuple[Natural, Natural]
Name = Annotated[str, Field(min_length=1, max_length=1000)]


class DescriptionError(UserError):
    """A description that cannot be made, read, run or built; the message names the file and the layer."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Tensor(_Part):
    """A tensor between layers. A shape's entries are numbers, or "N" (the batch size) or "64*N"."""

    name: Name
    shape: Shape
    dtype: DType

    def shape_at(self, batch: int) -> tuple[int, ...]:
        """Return the shape in numbers at a batch size."""
        return tuple(size if isinstance(size, int) else _factor(size) * batch for size in self.shape)


class _Layer(_Part):
    """The fields of every layer: `inputs` and `weights` by name (a weight's role: its tensor in the weights file)."""

    name: Name
    inputs: tuple[Name, ...] = ()
    outputs: tuple[Tensor, ...] = Field(min_length=1, max_length=2)
    weights: dict[str, Name] = Field(default_factory=dict)


class Convolution(_Layer):
    """add_convolution_nd over height and width. Weights: kernel (O, I / groups, kH, kW), and bias (O,) or none.

    A second input (set_input(1, ...)) takes the place of the kernel among the weights: an int8 one, dequantized.
    """

    type: Literal["convolution"] = "convolution"
    num_output_maps: Positive
    kernel_shape: Pair
    stride: Pair
    pre_padding: NaturalPair  # top, left
    post_padding: NaturalPair  # bottom, right
    dilation: Pair
    groups: Positive


class Deconvolution(_Layer):
    """add_deconvolution_nd over height and width, the transpose of a convolution; paddings are cut off the output.

    Weights: kernel (I, O / groups, kH, kW), and bias (O,) or none.
    """

    type: Literal["deconvolution"] = "deconvolution"
    num_output_maps: Positive
    kernel_shape: Pair
    stride: Pair
    pre_padding: NaturalPair  # top, left
    post_padding: NaturalPair  # bottom, right
    dilation: Pair
    groups: Positive


class Pooling(_Layer):
    """add_pooling_nd over height and width. Padded places never win a maximum."""

    type: Literal["pooling"] = "pooling"
    operation: Literal["max", "average"]
    window: Pair
    stride: Pair
    pre_padding: NaturalPair
    post_padding: NaturalPair
    average_excludes_padding: bool  # else an average divides by the full window


class Activation(_Layer):
    """add_activation. alpha and beta as TensorRT defines them, 0 where the operation has none.

    clip: min(max(x, alpha), beta); hard_sigmoid: min(max(alpha x + beta, 0), 1); leaky_relu, elu: alpha for x < 0.
    """

    type: Literal["activation"] = "activation"
    operation: Literal[
        "relu", "sigmoid", "tanh", "clip", "hard_sigmoid", "leaky_relu", "elu", "softplus", "gelu_erf", "gelu_tanh"
    ]
    alpha: float = 0.0
    beta: float = 0.0


class Unary(_Layer):
    """add_unary."""

    type: Literal["unary"] = "unary"
    operation: Literal["exp", "log", "sqrt", "recip", "abs", "neg", "erf", "sin", "cos", "floor", "ceil", "not"]


class Elementwise(_Layer):
    """add_elementwise on two tensors of equal rank; axes of size 1 are repeated."""

    type: Literal["elementwise"] = "elementwise"
    operation: Literal["sum", "prod", "max", "min", "sub", "div", "pow", "equal", "less", "greater"]


class Reduce(_Layer):
    """add_reduce over the axes (a bit mask in TensorRT)."""

    type: Literal["reduce"] = "reduce"
    operation: Literal["sum", "prod", "max", "min", "avg"]
    axes: tuple[Natural, ...] = Field(min_length=1)
    keep_dims: bool


class Softmax(_Layer):
    """add_softmax along one axis (a bit mask in TensorRT)."""

    type: Literal["softmax"] = "softmax"
    axis: Natural


class TopK(_Layer):
    """add_topk along one axis: outputs the values, best first, and their int32 indices."""

    type: Literal["topk"] = "topk"
    operation: Literal["max", "min"]
    k: Positive
    axis: Natural


class Gather(_Layer):
    """add_gather_v2 of inputs data and indices. default: slices along axis; element: one value an index.

    default with indices of rank 0 removes the axis.
    """

    type: Literal["gather"] = "gather"
    mode: Literal["default", "element"]
    axis: Natural


class Shuffle(_Layer):
    """add_shuffle: transpose, then reshape (-1: the remaining size), then transpose; each may be absent."""

    type: Literal["shuffle"] = "shuffle"
    first_transpose: tuple[Natural, ...] | None = None
    reshape: tuple[Annotated[int, Field(ge=-1)], ...] | None = None
    second_transpose: tuple[Natural, ...] | None = None


class Concatenation(_Layer):
    """add_concatenation of all inputs."""

    type: Literal["concatenation"] = "concatenation"
    axis: Natural


class Slice(_Layer):
    """add_slice. `size` is null where a second input, an int64 tensor (set_input(2, ...)), holds it.

    A stride of 0 repeats an axis of size 1. mode fill: places outside the data are 0; default: there are none.
    """

    type: Literal["slice"] = "slice"
    start: tuple[int, ...]
    size: tuple[Positive, ...] | None
    stride: tuple[int, ...]
    mode: Literal["default", "fill"] = "default"


class Resize(_Layer):
    """add_resize. `scales`, one an axis, or null where a second input, int64 (set_input(1, ...)), is the size.

    nearest_rounding counts for nearest, cubic_coefficient for cubic.
    """

    type: Literal["resize"] = "resize"
    mode: Literal["nearest", "linear", "cubic"]
    coordinates: Literal["half_pixel", "align_corners", "asymmetric"]
    nearest_rounding: Literal["floor", "half_down"] = "floor"
    cubic_coefficient: float = -0.75
    scales: tuple[float, ...] | None


class Normalization(_Layer):
    """add_normalization of inputs data, scale and bias over the axes, which are the last ones: layer norm."""

    type: Literal["normalization"] = "normalization"
    axes: tuple[Natural, ...] = Field(min_length=1)
    epsilon: float


class MatrixMultiply(_Layer):
    """add_matrix_multiply of two tensors of equal rank over the last two axes; the axes before them are broadcast."""

    type: Literal["matrix_multiply"] = "matrix_multiply"
    transpose_a: bool
    transpose_b: bool


class Constant(_Layer):
    """add_constant. Weights: value."""

    type: Literal["constant"] = "constant"


class Cast(_Layer):
    """add_cast to the dtype of its output."""

    type: Literal["cast"] = "cast"


class Quantize(_Layer):
    """add_quantize of inputs data and scale to int8: round(data / scale), halves to even, within -128..127.

    The scale is a constant: one value, shape (), or where there is an axis one for each of its places, shape (C,).
    """

    type: Literal["quantize"] = "quantize"
    axis: Natural | None = None


class Dequantize(_Layer):
    """add_dequantize of inputs int8 data and scale: data scale. The scale is that of Quantize."""

    type: Literal["dequantize"] = "dequantize"
    axis: Natural | None = None


class Scale(_Layer):
    """add_scale_nd, channel wise on axis 1 of four axes: x scale + shift. Weights: scale (C,) and shift (C,)."""

    type: Literal["scale"] = "scale"


class Select(_Layer):
    """add_select of inputs condition (bool), then, else."""

    type: Literal["select"] = "select"


class ShapeOf(_Layer):
    """add_shape: the input's shape as an int64 tensor of rank 1."""

    type: Literal["shape"] = "shape"


Layer: TypeAlias = Annotated[
    Convolution | Deconvolution | Pooling | Activation | Unary | Elementwise | Reduce | Softmax | TopK | Gather
    | Shuffle | Concatenation | Slice | Resize | Normalization | MatrixMultiply | Constant | Cast | Quantize
    | Dequantize | Scale | Select | ShapeOf,
    Field(discriminator="type"),
]  # fmt: skip


class Profile(_Part):
    """The batch sizes that an engine is built for."""

    min: Positive
    best: Positive
    max: Positive


class Parity(_Part):
    """A real input and the net's output for it: tensors of the weights file.

    A run is right where max |got - expected| is at most `tolerance` times max |expected|.
    """

    input: Name
    output: Name
    tolerance: Annotated[float, Field(gt=0, le=1)]


class WeightsFile(_Part):
    """The safetensors file beside the description."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors$", max_length=200)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Network(_Part):
    """A network description."""

    format: Literal["network description for TensorRT"] = FORMAT
    format_version: Literal[1, 2] = 1
    producer: str
    precision: Literal["fp32", "fp16", "bf16", "int8"]
    inputs: tuple[Tensor, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    profile: Profile
    weights: WeightsFile
    parity: Parity
    facts: dict[str, Any]
    layers: tuple[Layer, ...] = Field(min_length=1)


ARITY: dict[str, tuple[int, int]] = {  # how many inputs a type takes, least and most
    "convolution": (1, 2),
    **dict.fromkeys(("pooling", "activation", "unary", "reduce", "softmax", "topk"), (1, 1)),
    **dict.fromkeys(("deconvolution", "shuffle", "cast", "scale", "shape"), (1, 1)),
    **dict.fromkeys(("elementwise", "gather", "matrix_multiply", "quantize", "dequantize"), (2, 2)),
    **dict.fromkeys(("slice", "resize"), (1, 2)),
    **dict.fromkeys(("normalization", "select"), (3, 3)),
    "concatenation": (1, 10_000),
    "constant": (0, 0),
}
TYPES = tuple(ARITY)
ROLES: dict[str, tuple[set[str], set[str]]] = {  # the weights that a type must and may have
    **dict.fromkeys(("convolution", "deconvolution"), ({"kernel"}, {"kernel", "bias"})),
    "constant": ({"value"}, {"value"}),
    "scale": ({"scale", "shift"}, {"scale", "shift"}),
}


def description_schema() -> dict[str, Any]:
    """Return the JSON schema of a description."""
    schema = Network.model_json_schema()
    schema["required"] = ["format", "format_version", *schema["required"]]
    for part in schema["$defs"].values():
        if "const" in part["properties"].get("type", {}):
            part["required"] = ["type", *part["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": FORMAT}


def dtype_of(tensor: torch.Tensor) -> DType:
    """Return a tensor's dtype by its name in a description."""
    return cast(DType, str(tensor.dtype).removeprefix("torch."))


def _factor(size: str) -> int:
    return int(size[:-2]) if size != "N" else 1


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(description_schema(), indent=2) + "\n", encoding="utf-8")
