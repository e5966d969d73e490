"""Inference requests of the Open Inference Protocol, version 2: tensors in JSON, or in bytes behind it.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; of tensors in bytes
triton-inference-server/server, docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from artifacts.metadata import ModelMetadata
from artifacts.outputs import INPUT_NAME, input_shape, output_name
from deploy.service.limits import Limits
from deploy.service.request_parser import MAX_JSON_VALUES, RequestError, encoded_image, quote

BINARY_SIZE, BINARY, BINARY_OUTPUT = "binary_data_size", "binary_data", "binary_data_output"
ENCODED = "BYTES"  # the datatype of encoded images
DTYPES: dict[str, np.dtype[Any]] = {"FP32": np.dtype("<f4"), "UINT8": np.dtype("u1")}  # of what a file takes
LENGTH = struct.Struct("<I")  # before each element of BYTES


@dataclass(frozen=True)
class InferRequest:
    """What a request asks for: the net's output for images, as bytes or in JSON.

    `images` is what the net takes, (N, ...), or N encoded images, of a net of pairs 2N.
    """

    id: str | None
    images: np.ndarray | list[bytes]
    wants_bytes: bool


@dataclass(frozen=True)
class Signature:
    """What a net takes and returns, in the protocol's words."""

    datatype: str  # of DTYPES
    shape: tuple[int, ...]  # of one image
    images: int  # of a prediction
    output: str
    takes_encoded: bool  # whether the input may hold encoded images instead

    @classmethod
    def of(cls, metadata: ModelMetadata, *, takes_encoded: bool) -> Signature:
        """Return the signature of a served net."""
        datatype = "FP32" if metadata.input == "float32 NCHW" else "UINT8"
        _, *sizes = input_shape(replace(metadata, size_step=0))  # what is queued together has one size
        shape = tuple(size for size in sizes if size is not None)
        return cls(datatype, shape, metadata.preprocess.images, output_name(metadata), takes_encoded)

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.shape))
        pairs = "N" if self.images == 1 else f"N, {self.images}"
        encoded = f", or {ENCODED} of shape [{pairs}]: encoded images" if self.takes_encoded else ""
        return f'input "{INPUT_NAME}" must be {self.datatype} of shape [N, {sizes}]{encoded}'


def read_infer_request(body: bytes, header_length: str, signature: Signature, limits: Limits) -> InferRequest:
    """Read a request's body; `header_length` is its Inference-Header-Content-Length, "" where there is none.

    With a length of 0 the body is one image alone, as the net takes it. Raises RequestError.
    """
    if not header_length:
        return _read(body, memoryview(b""), signature, limits)
    length = int(header_length[:20]) if header_length.isdecimal() else len(body) + 1
    if length > len(body):
        got = quote(header_length)
        raise RequestError(
            400, f"Inference-Header-Content-Length must be 0 to {len(body)}, the body's bytes; got {got}"
        )
    if length == 0:
        return InferRequest(None, _from_bytes(memoryview(body), (1, *signature.shape), signature), wants_bytes=True)
    return _read(body[:length], memoryview(body)[length:], signature, limits)


def _read(text: bytes, rest: memoryview, signature: Signature, limits: Limits) -> InferRequest:
    values = _object(text, signature, limits)
    request_id = values.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise RequestError(400, f'"id" must be a text, got {quote(request_id)}')
    wants_bytes = _wants_bytes(values, signature)
    tensors = _objects(values, "inputs")
    if len(tensors) != 1 or tensors[0].get("name") != INPUT_NAME:
        got = ", ".join(quote(tensor.get("name")) for tensor in tensors) or "none"
        raise RequestError(400, f'this net takes one input, "{INPUT_NAME}"; got {got}')
    return InferRequest(request_id, _input(tensors[0], rest, signature, limits), wants_bytes)


def _object(text: bytes, signature: Signature, limits: Limits) -> dict[str, Any]:
    """Return the JSON object of a request, whose values are at most those of the most images that it may hold."""
    most = MAX_JSON_VALUES + 2 * limits.max_pictures * math.prod(signature.shape)
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > most:
        raise RequestError(413, f"the JSON holds more values than {limits.max_pictures} images, the most of a request")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, "the body, or its part before the tensors' bytes, is not JSON") from error
    if not isinstance(values, dict):
        raise RequestError(400, 'the JSON must be an object with "inputs"')
    return values


def _objects(values: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = values.get(key)
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise RequestError(400, f'"{key}" must be a list of objects, got {quote(found)}')
    return found


def _parameters(values: Mapping[str, Any], known: Sequence[str] | None = None) -> dict[str, Any]:
    """Return "parameters", of which no other than the `known` may be there. Raises RequestError."""
    found = values.get("parameters", {})
    if not isinstance(found, dict):
        raise RequestError(400, f'"parameters" must be an object, got {quote(found)}')
    if known is not None and (others := [name for name in found if name not in known]):
        raise RequestError(400, f"of {quote(values.get('name'))} the parameter {quote(others[0])} is not supported")
    return found


def _flag(parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise RequestError(400, f"{name} must be true or false, got {quote(value)}")
    return value


def _wants_bytes(values: Mapping[str, Any], signature: Signature) -> bool:
    """Return whether the output shall come as bytes. Raises RequestError for another output."""
    default = _flag(_parameters(values), BINARY_OUTPUT, False)
    if not values.get("outputs"):
        return default
    asked = _objects(values, "outputs")
    if len(asked) != 1 or asked[0].get("name") != signature.output:
        got = ", ".join(quote(item.get("name")) for item in asked)
        raise RequestError(400, f'this net has one output, "{signature.output}"; got {got}')
    return _flag(_parameters(asked[0], (BINARY, BINARY_SIZE)), BINARY, default)


def _input(
    tensor: Mapping[str, Any], rest: memoryview, signature: Signature, limits: Limits
) -> np.ndarray | list[bytes]:
    """Return a request's images. Raises RequestError."""
    parameters = _parameters(tensor, (BINARY_SIZE,))
    is_encoded = tensor.get("datatype") == ENCODED and signature.takes_encoded
    shape = _shape(tensor, signature, limits, is_encoded=is_encoded)
    size = parameters.get(BINARY_SIZE)
    if (size is None) != ("data" in tensor):
        raise RequestError(400, f'input "{INPUT_NAME}" must have either "data" or the parameter {BINARY_SIZE}')
    if (0 if size is None else size) != len(rest) or isinstance(size, bool):
        raise RequestError(400, f"{len(rest)} bytes follow the JSON, but {BINARY_SIZE} is {quote(size)}")
    if is_encoded:
        count = math.prod(shape)
        elements = _elements(tensor["data"]) if size is None else list(islice(_split(rest), count + 1))
        if len(elements) != count:
            got = len(elements) if len(elements) < count else "more"
            raise RequestError(400, f'input "{INPUT_NAME}": shape {list(shape)} needs {count} elements, got {got}')
        return [encoded_image(item, f"{INPUT_NAME}[{index}]", limits) for index, item in enumerate(elements)]
    return _from_json(tensor["data"], shape, signature) if size is None else _from_bytes(rest, shape, signature)


def _shape(tensor: Mapping[str, Any], signature: Signature, limits: Limits, *, is_encoded: bool) -> tuple[int, ...]:
    """Return the shape of an input, whose first size is that of the batch. Raises RequestError."""
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    allowed: tuple[tuple[int, ...], ...] = (signature.shape,)
    if is_encoded:
        allowed = ((), (1,)) if signature.images == 1 else ((signature.images,),)
    sizes: list[Any] = shape if isinstance(shape, list) else []
    is_shape = bool(sizes) and all(type(size) is int and size > 0 for size in sizes)
    if not is_shape or tuple(sizes[1:]) not in allowed or not (is_encoded or datatype == signature.datatype):
        raise RequestError(400, f"{signature}; got {quote(datatype)} of shape {quote(shape)}")
    count = sizes[0] * signature.images
    if count > limits.max_pictures:
        raise RequestError(413, f"a request may hold {limits.max_pictures} images, this one has {count}")
    return tuple(sizes)


def _elements(data: object) -> list[object]:
    """Return the elements of a JSON tensor of BYTES, flat or in lists. Raises RequestError."""
    if not isinstance(data, list):
        raise RequestError(400, f'"data" must be a list, got {quote(data)}')
    nested = [item if isinstance(item, list) else [item] for item in data]
    return [element for part in nested for element in part]


def _split(rest: memoryview) -> Iterator[bytes]:
    """Yield the elements of a BYTES tensor, each behind its length. Raises RequestError."""
    start = 0
    while start < len(rest):
        end = start + LENGTH.size
        end += LENGTH.unpack(rest[start:end])[0] if end <= len(rest) else 0
        if end > len(rest):
            raise RequestError(400, f'input "{INPUT_NAME}": an element of {ENCODED} ends behind the body')
        yield bytes(rest[start + LENGTH.size : end])
        start = end


def _from_bytes(data: memoryview, shape: tuple[int, ...], signature: Signature) -> np.ndarray:
    dtype = DTYPES[signature.datatype]
    if (needed := math.prod(shape) * dtype.itemsize) != len(data):
        size = f"{signature.datatype} of shape {list(shape)} has {needed} bytes"
        raise RequestError(400, f'input "{INPUT_NAME}": {size}, got {len(data)}')
    return np.frombuffer(data, dtype).reshape(shape)


def _from_json(data: object, shape: tuple[int, ...], signature: Signature) -> np.ndarray:
    """Return a tensor that JSON holds, flat or as nested as its shape. Raises RequestError."""
    wrong = RequestError(
        400,
        f'input "{INPUT_NAME}": "data" must hold the {math.prod(shape)} numbers of {signature.datatype} {list(shape)}',
    )
    try:
        values = np.array(data)
    except ValueError as error:  # lists of different lengths
        raise wrong from error
    is_number = values.dtype.kind in ("iuf" if signature.datatype == "FP32" else "iu")
    if not is_number or values.shape not in (shape, (math.prod(shape),)):
        raise wrong
    if signature.datatype == "UINT8" and not (values.min() >= 0 and values.max() <= 255):
        raise wrong
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        return values.astype(DTYPES[signature.datatype]).reshape(shape)
