"""Reading and verifying ONNX files without running them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import ArtifactError
from artifacts.formats import unreadable

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

DIGEST_KEY = "sha256"  # of ONNX metadata: `onnx_digest` of the file when it was written
DIGEST_DIGITS = 64
_DIGEST_ENTRY = b"\x0a\x06sha256\x12\x40"  # its key and the length of its value, as protobuf writes them


def read_onnx(path: str | Path) -> ModelProto:
    """Parse an ONNX file without its external data, and verify both by the digest, where it carries one.

    A tensor may name any file of the disk as its data: only those of the model's own folder are accepted. The
    digest's entry is removed from the metadata. Raises ArtifactError where it is damaged or its data lies outside.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    try:
        model = onnx.load(path, load_external_data=False)
        if not model.graph.node:
            raise ArtifactError(f"{path}: it is damaged, or no ONNX file: there is no graph in it")
        for tensor, location in _external_data(model):
            _check_external_data(path, tensor, location)
        _check_digest(path, model)
    except DecodeError as error:
        raise ArtifactError(f"{path}: it is damaged, or no ONNX file") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return model


def onnx_digest(path: Path, model: ModelProto, content: bytes) -> str:
    """Return the sha256 of an ONNX file: of its bytes with the digest's own digits blanked, and of each data file.

    `content` is the file's bytes, `model` the same parsed. Raises OSError.
    """
    digest = hashlib.sha256(_blanked(content))
    for location in sorted({location for _, location in _external_data(model)}):
        with (path.parent / location).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Yield every tensor of a graph, its constants, attributes, subgraphs and functions."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in [value] if isinstance(value, Message) else value:
            if isinstance(part, TensorProto):
                yield part
            else:
                yield from _tensors(part)


def _external_data(model: ModelProto) -> Iterator[tuple[str, str]]:
    """Yield the names of the tensors whose data lies outside the model, and of the files that hold it."""
    for tensor in _tensors(model):
        for entry in tensor.external_data:
            if entry.key == "location":
                yield tensor.name, entry.value


def _check_external_data(path: Path, tensor: str, location: str) -> None:
    """Raise ArtifactError unless a tensor's data lies in a file of the model's own folder."""
    try:
        file = (path.parent / location).resolve()
        is_inside = file.is_relative_to(path.parent.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL byte, or links that lead in a circle
        is_inside = False
    if not is_inside:
        where = f'tensor "{tensor}" lies in "{location}"'
        raise ArtifactError(f"{path}: its {where}, outside the file's folder; it is not opened")
    if not file.is_file():
        raise ArtifactError(f'{path}: its data file "{location}" is not beside it')


def _check_digest(path: Path, model: ModelProto) -> None:
    """Remove the digest from the metadata. Raises ArtifactError where it is there and not the file's."""
    entries = [entry for entry in model.metadata_props if entry.key == DIGEST_KEY]
    if entries and {entry.value for entry in entries} != {onnx_digest(path, model, path.read_bytes())}:
        raise ArtifactError(f"{path}: it is damaged, or was changed after its export: it does not match its sha256")
    for entry in entries:
        model.metadata_props.remove(entry)


def _blanked(content: bytes) -> bytes:
    """Return an ONNX file's bytes with zeros for the digest, found by its key and length as protobuf writes them."""
    start = content.rfind(_DIGEST_ENTRY) + len(_DIGEST_ENTRY)
    if start < len(_DIGEST_ENTRY):
        return content
    return content[:start] + b"0" * DIGEST_DIGITS + content[start + DIGEST_DIGITS :]
