"""The network description: a trained net as the layers that TensorRT's INetworkDefinition.add_* calls build.

`model.json` holds the layers in execution order, `model.safetensors` their weights. docs/tensorrt-json.md tells every
field; `python -m pytorch2json.network` writes its JSON schema.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.atomic_io import atomic_path
from common.errors import UserError

if TYPE_CHECKING:
    import torch

FORMAT: Literal["network description for TensorRT"] = "network description for TensorRT"
FORMAT_VERSION: Literal[1] = 1
SCHEMA_FILE = Path(__file__).with_name("description.schema.json")
MAX_ELEMENTS = 2**31  # of one tensor at batch 1: what TensorRT takes
MAX_AXES = 8  # of one tensor: TensorRT's Dims.MAX_DIMS
MAX_DESCRIPTION_BYTES = 256 * 2**20

Size = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^([1-9][0-9]{0,9}\*)?N$")]
Shape = tuple[Size, ...]
DType = Literal["float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]
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
    """What flows between layers. A shape's entries are numbers, or "N" (the batch size) or "64*N"."""

    name: Name
    shape: Shape
    dtype: DType

    def shape_at(self, batch: int) -> tuple[int, ...]:
        """Give the shape in numbers at a batch size."""
        return tuple(size if isinstance(size, int) else _factor(size) * batch for size in self.shape)


class _Layer(_Part):
    """What every layer has: `inputs` and `weights` by name (a weight's role: its tensor in the weights file)."""

    name: Name
    inputs: tuple[Name, ...] = ()
    outputs: tuple[Tensor, ...] = Field(min_length=1, max_length=2)
    weights: dict[str, Name] = Field(default_factory=dict)


class Convolution(_Layer):
    """add_convolution_nd over height and width. Weights: kernel (O, I / groups, kH, kW), and bias (O,) or none."""

    type: Literal["convolution"] = "convolution"
    num_output_maps: Positive
    kernel_shape: Pair
    stride: Pair
    pre_padding: NaturalPair  # top, left
    post_padding: NaturalPair  # bottom, right
    dilation: Pair
    groups: Positive


class Pooling(_Layer):
    """add_pooling_nd over height and width. Padded places never win; an average divides by the window unless told."""

    type: Literal["pooling"] = "pooling"
    operation: Literal["max", "average"]
    window: Pair
    stride: Pair
    pre_padding: NaturalPair
    post_padding: NaturalPair
    average_excludes_padding: bool


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
    """add_gather_v2 of inputs data and indices. default: whole slices along axis; element: one value an index.

    default with indices of rank 0 removes the axis.
    """

    type: Literal["gather"] = "gather"
    mode: Literal["default", "element"]
    axis: Natural


class Shuffle(_Layer):
    """add_shuffle: transpose, then reshape (-1: what is left), then transpose; each may be absent."""

    type: Literal["shuffle"] = "shuffle"
    first_transpose: tuple[Natural, ...] | None = None
    reshape: tuple[Annotated[int, Field(ge=-1)], ...] | None = None
    second_transpose: tuple[Natural, ...] | None = None


class Concatenation(_Layer):
    """add_concatenation of all inputs."""

    type: Literal["concatenation"] = "concatenation"
    axis: Natural


class Slice(_Layer):
    """add_slice. `size` is null where a second input, an int64 tensor (set_input(2, ...)), gives it.

    A stride of 0 repeats an axis of size 1. mode fill: what lies outside the data is 0; default: nothing may.
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
    Convolution | Pooling | Activation | Unary | Elementwise | Reduce | Softmax | TopK | Gather | Shuffle
    | Concatenation | Slice | Resize | Normalization | MatrixMultiply | Constant | Cast | Scale | Select | ShapeOf,
    Field(discriminator="type"),
]  # fmt: skip


class Profile(_Part):
    """The batch sizes that an engine is built for."""

    min: Positive
    best: Positive
    max: Positive


class Parity(_Part):
    """A real input and what the net gave for it: tensors of the weights file.

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
    """A whole description."""

    format: Literal["network description for TensorRT"] = FORMAT
    format_version: Literal[1] = FORMAT_VERSION
    producer: str
    precision: Literal["fp32", "fp16", "bf16"]
    inputs: tuple[Tensor, ...] = Field(min_length=1, max_length=1)
    outputs: tuple[Tensor, ...] = Field(min_length=1)
    profile: Profile
    weights: WeightsFile
    parity: Parity
    facts: dict[str, Any]
    layers: tuple[Layer, ...] = Field(min_length=1)


ARITY: dict[str, tuple[int, int]] = {  # how many inputs a type takes, least and most
    **dict.fromkeys(("convolution", "pooling", "activation", "unary", "reduce", "softmax", "topk"), (1, 1)),
    **dict.fromkeys(("shuffle", "cast", "scale", "shape"), (1, 1)),
    **dict.fromkeys(("elementwise", "gather", "matrix_multiply"), (2, 2)),
    **dict.fromkeys(("slice", "resize"), (1, 2)),
    **dict.fromkeys(("normalization", "select"), (3, 3)),
    "concatenation": (1, 10_000),
    "constant": (0, 0),
}
TYPES = tuple(ARITY)
ROLES: dict[str, tuple[set[str], set[str]]] = {  # the weights that a type must and may have
    "convolution": ({"kernel"}, {"kernel", "bias"}),
    "constant": ({"value"}, {"value"}),
    "scale": ({"scale", "shift"}, {"scale", "shift"}),
}


def read_description(path: str | Path) -> tuple[Network, dict[str, torch.Tensor]]:
    """Read a description and its weights, and check that they fit together. Raises DescriptionError."""
    path = Path(path)
    network = read_network(path)
    file = path.parent / network.weights.file
    if not file.is_file():
        raise DescriptionError(f"{path}: its weights file {network.weights.file} is not beside it")
    if (sha256 := _sha256(file)) != network.weights.sha256:
        expected = network.weights.sha256
        raise DescriptionError(f"{file}: not the weights of {path}: sha256 {sha256[:12]}..., not {expected[:12]}...")
    weights = _read_weights(file)
    if problem := next(find_problems(network, weights), ""):
        raise DescriptionError(f"{path}: {problem}")
    return network, weights


def read_network(path: str | Path) -> Network:
    """Read a description without its weights. Raises DescriptionError."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise DescriptionError(f"{path}: it is too large for a description ({path.stat().st_size} bytes)")
        text = path.read_bytes()
    except OSError as error:
        raise DescriptionError(f"{path}: cannot read it: {error.strerror}") from error
    _check_version(path, text)
    try:
        return Network.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part not in TYPES)
        if first["type"] == "union_tag_invalid":
            known = ", ".join(TYPES)
            raise DescriptionError(f'{path}: {where}: unknown type "{first["ctx"]["tag"]}"; known: {known}') from error
        raise DescriptionError(f"{path}: {where or 'it'}: {first['msg']}{_got(first)}") from error


def write_description(path: str | Path, network: Network, weights: Mapping[str, torch.Tensor]) -> Network:
    """Write NAME.json and NAME.safetensors, each whole or not at all; give the network with its weights' sha256.

    The weights come first: what is interrupted between the two is told by the sha256 when it is read.
    Raises DescriptionError.
    """
    from safetensors.torch import save

    path = Path(path)
    if problem := next(find_problems(network, weights), ""):
        raise DescriptionError(f"{path}: {problem}")
    file = path.with_suffix(".safetensors")
    try:
        named = WeightsFile(file=file.name, sha256="0" * 64)
    except ValidationError as error:
        raise DescriptionError(f"{path}: name the description with letters, digits, _, - and . alone") from error
    with atomic_file(file) as temporary:
        # Not save_file: its files are readable by their owner alone, whatever the umask says.
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in weights.items()}))
        named = named.model_copy(update={"sha256": _sha256(temporary)})
    network = network.model_copy(update={"weights": named})
    with atomic_file(path) as temporary:
        temporary.write_text(to_json(network), encoding="utf-8")
    return network


def to_json(network: Network) -> str:
    """Give the description's text: one line a layer."""
    values = network.model_dump(mode="json")
    layers = values.pop("layers")
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in values.items()]
    rows = ",\n".join(f"    {json.dumps(layer, ensure_ascii=False)}" for layer in layers)
    return "\n".join(["{", *lines, '  "layers": [', rows, "  ]", "}", ""])


def find_problems(network: Network, weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """Say what contradicts itself: names, order, number of inputs, weights and their shapes."""
    known = {tensor.name: tensor for tensor in network.inputs}
    names: set[str] = set()
    for layer in network.layers:
        where = f'layer "{layer.name}" ({layer.type})'
        if layer.name in names:
            yield f"{where}: a layer of this name came before"
        names.add(layer.name)
        least, most = ARITY[layer.type]
        if not least <= len(layer.inputs) <= most:
            yield f"{where}: {len(layer.inputs)} inputs, needs {least if least == most else f'{least} to {most}'}"
        if len(layer.outputs) != (2 if layer.type == "topk" else 1):
            yield f"{where}: {len(layer.outputs)} outputs"
        for name in layer.inputs:
            if name not in known:
                yield f'{where}: its input "{name}" is made by no layer before it'
        for tensor in layer.outputs:
            if tensor.name in known:
                yield f'{where}: a tensor "{tensor.name}" is there already'
            if len(tensor.shape) > MAX_AXES:
                yield f'{where}: tensor "{tensor.name}" has {len(tensor.shape)} axes, more than {MAX_AXES}'
            elif math.prod(size if isinstance(size, int) else _factor(size) for size in tensor.shape) > MAX_ELEMENTS:
                yield f'{where}: tensor "{tensor.name}" is too large: {tensor.shape}'
            known[tensor.name] = tensor
        yield from (f"{where}: {problem}" for problem in _weight_problems(layer, known, weights))
    for tensor in network.outputs:
        if known.get(tensor.name) != tensor:
            yield f'output "{tensor.name}" {tensor.shape} {tensor.dtype} is not what a layer makes'
    if not network.profile.min <= network.profile.best <= network.profile.max:
        yield f"profile: min {network.profile.min}, best {network.profile.best}, max {network.profile.max}"
    batch = weights[network.parity.input].shape[:1] if network.parity.input in weights else ()
    for name, tensor in ((network.parity.input, network.inputs[0]), (network.parity.output, network.outputs[0])):
        if name not in weights:
            yield f'parity: no tensor "{name}" in the weights'
        elif not batch or tuple(weights[name].shape) != tensor.shape_at(batch[0]):
            yield f'parity: tensor "{name}" has the shape {tuple(weights[name].shape)}, not {tensor.shape}'


def description_schema() -> dict[str, Any]:
    """Give the JSON schema of a description."""
    schema = Network.model_json_schema()
    schema["required"] = ["format", "format_version", *schema["required"]]
    for part in schema["$defs"].values():
        if "const" in part["properties"].get("type", {}):
            part["required"] = ["type", *part["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": FORMAT}


def _weight_problems(layer: Layer, known: Mapping[str, Tensor], weights: Mapping[str, torch.Tensor]) -> Iterator[str]:
    required, allowed = ROLES.get(layer.type, (set(), set()))
    roles = set(layer.weights)
    if not required <= roles <= allowed:
        yield f"its weights are {sorted(roles)}, needs {sorted(required)}"
        return
    output = layer.outputs[0]
    shapes: dict[str, tuple[Size, ...]] = {"value": output.shape}
    if layer.type in ("convolution", "scale"):
        data = known.get(layer.inputs[0]) if layer.inputs else None
        if data is None or len(data.shape) != 4 or not isinstance(data.shape[1], int):
            yield f"its input must have 4 axes, got {data.shape if data else 'none'}"
            return
        shapes = {"scale": (data.shape[1],), "shift": (data.shape[1],)}
        if isinstance(layer, Convolution):
            maps = layer.num_output_maps
            shapes = {"kernel": (maps, data.shape[1] // layer.groups, *layer.kernel_shape), "bias": (maps,)}
    for role, name in layer.weights.items():
        if name not in weights:
            yield f'its {role} "{name}" is not in the weights file'
        elif tuple(weights[name].shape) != shapes[role] or _dtype_name(weights[name]) != output.dtype:
            got = f"{_dtype_name(weights[name])} {tuple(weights[name].shape)}"
            yield f'its {role} "{name}" is {got}, must be {output.dtype} {shapes[role]}'


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DescriptionError(f"{file}: damaged: {error}") from error


def _check_version(path: Path, text: bytes) -> None:
    """Tell JSON that is no description, or a newer one, in a sentence of its own. Raises DescriptionError."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DescriptionError(f"{path}: it is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DescriptionError(f'{path}: it is not a network description (its "format" must be "{FORMAT}")')
    if (version := values.get("format_version")) != FORMAT_VERSION:
        raise DescriptionError(f"{path}: format_version {reprlib.repr(version)}; this program reads {FORMAT_VERSION}")


def _got(error: Mapping[str, Any]) -> str:
    value = repr(error["input"])
    return "" if error["type"] == "missing" or len(value) > 80 else f", got {value}"


def _factor(size: str) -> int:
    return int(size[:-2]) if size != "N" else 1


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `target` when the block ends; make its folder. Raises DescriptionError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            yield temporary
    except OSError as error:
        raise DescriptionError(f"{target}: cannot write it: {error.strerror or error}") from error


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json.dumps(description_schema(), indent=2) + "\n", encoding="utf-8")
