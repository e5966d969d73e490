"""Reading and verifying ONNX files without running them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.errors import ArtifactError
from artifacts.formats import METADATA_KEY, unreadable
from common.atomic_io import write_atomic

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

    from artifacts.metadata import ModelMetadata

DIGEST_KEY = "sha256"  # of ONNX metadata: `onnx_digest` of the file when it was written
DIGEST_DIGITS = 64
_DIGEST_ENTRY = b"\x0a\x06sha256\x12\x40"  # its key and the length of its value, as protobuf writes them


def read_onnx(path: str | Path) -> ModelProto:
    """Parse an ONNX file without its external data, and verify both by the digest, where it carries one.

    The digest's entry is removed from the metadata. Raises ArtifactError where it is damaged or its data lies outside.
    """
    model, is_changed = parse_onnx(path)
    if is_changed:
        raise ArtifactError(
            f"{path}: it is damaged, or was changed after its export: --accept_changed uses it all the same, though it "
            "does not match its sha256"
        )
    return model


def parse_onnx(path: str | Path) -> tuple[ModelProto, bool]:
    """Parse an ONNX file, and return whether it does not match its digest; a file without one is not changed.

    A tensor may name any file of the disk as its data: only those of the model's own folder are accepted. The
    digest's entry is removed from the metadata. Raises ArtifactError where it is no ONNX file or its data lies outside.
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
        is_changed = _is_changed(path, model)
    except DecodeError as error:
        raise ArtifactError(f"{path}: it is damaged, or no ONNX file") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return model, is_changed


def onnx_digest(path: Path, model: ModelProto, content: bytes) -> str:
    """Return the sha256 of an ONNX file: of its bytes with the digest's own digits blanked, and of each data file.

    `content` is the file's bytes, `model` the same parsed. Raises OSError.
    """
    digest = hashlib.sha256(_blanked(content))
    for location in sorted({location for _, location in _external_data(model)}):
        with (path.parent / location).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def sealed_onnx(path: Path, model: ModelProto) -> bytes:
    """Return the bytes of an ONNX file with the digest in its metadata that `read_onnx` checks. Raises OSError."""
    entry = model.metadata_props.add(key=DIGEST_KEY, value="0" * DIGEST_DIGITS)
    entry.value = onnx_digest(path, model, model.SerializeToString())
    return model.SerializeToString()


def rewrite_onnx_metadata(path: Path, metadata: ModelMetadata) -> None:
    """Replace the metadata in an ONNX file, completely or not at all; all else stays. Raises ArtifactError."""
    path = path.resolve()
    model = read_onnx(path)
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            entry.value = metadata.to_json()
    try:
        write_atomic(path, sealed_onnx(path, model))
    except OSError as error:
        raise ArtifactError(f"{path}: cannot write it: {error.strerror}") from error


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


def _is_changed(path: Path, model: ModelProto) -> bool:
    """Remove the digest from the metadata, and return whether it is there and not the file's."""
    entries = [entry for entry in model.metadata_props if entry.key == DIGEST_KEY]
    is_changed = bool(entries) and {entry.value for entry in entries} != {onnx_digest(path, model, path.read_bytes())}
    for entry in entries:
        model.metadata_props.remove(entry)
    return is_changed


def _blanked(content: bytes) -> bytes:
    """Return an ONNX file's bytes with zeros for the digest, found by its key and length as protobuf writes them."""
    start = content.rfind(_DIGEST_ENTRY) + len(_DIGEST_ENTRY)
    if start < len(_DIGEST_ENTRY):
        return content
    return content[:start] + b"0" * DIGEST_DIGITS + content[start + DIGEST_DIGITS :]
