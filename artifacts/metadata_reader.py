"""Reading facts back: whatever kind of artefact carries them, nothing in the file is executed."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.metadata import Facts

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

KINDS = {  # what an ending promises
    ".pth": "checkpoint",
    ".pt": "jit",
    ".pt2": "pt2",
    ".onnx": "onnx",
    ".json": "json",
    ".engine": "engine",
}
TITLES = {
    "checkpoint": "checkpoint",
    "jit": "TorchScript file",
    "pt2": "torch.export file",
    "onnx": "ONNX file",
    "json": "network description",
    "engine": "TensorRT engine",
}
FACTS_FILE = "facts.json"  # among TorchScript's and torch.export's extra files, and behind an engine's name
FACTS_KEY = "facts"  # of ONNX metadata and of a description
DIGEST_KEY = "sha256"  # of ONNX metadata: what `onnx_digest` gave when the file was written
DIGEST_DIGITS = 64
_DIGEST_ENTRY = b"\x0a\x06sha256\x12\x40"  # its key and the length of its value, as protobuf writes them
MAX_FACTS_BYTES = 16 * 2**20
MAX_DESCRIPTION_BYTES = 256 * 2**20
_ARCHIVE_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, struct.error)


class ArtifactError(ValueError):
    """An artefact that cannot be read, or that carries no facts; the message is one sentence for the user."""


def read_facts(path: str | Path) -> Facts:
    """Read the facts of a checkpoint, TorchScript, torch.export, ONNX or description file, or of an engine.

    Raises ArtifactError, and CheckpointError for a checkpoint.
    """
    path = Path(path)
    kind = artifact_kind(path)
    if kind == "checkpoint":
        from artifacts.checkpoint import load_checkpoint  # late: it needs torch

        return load_checkpoint(path).facts
    try:
        values = _facts_values(path, kind)
        if not isinstance(values, dict):
            raise ArtifactError(f"{path}: the facts in this {TITLES[kind]} are no JSON object")
    except OSError as error:
        raise _refused(path, error) from error
    try:
        return Facts.from_dict(values)
    except ValueError as error:
        raise ArtifactError(f"{path}: in this {TITLES[kind]} {error}") from error


def artifact_kind(path: str | Path) -> str:
    """Say what a weights file is, one of KINDS's values: by its ending, but torch's archives by what is in them.

    Raises ArtifactError where it is missing, may not be read or is of no known kind; needs no torch.
    """
    path = Path(path)
    promised = KINDS.get(path.suffix.lower())
    try:
        if not path.is_file():
            kind = "it is a folder, not a weights file" if path.is_dir() else "no such file"
            raise ArtifactError(f"{path}: {kind} (relative paths start from {Path.cwd()})")
        found = _archive_kind(path) if promised in (None, "checkpoint", "jit", "pt2") else ""
    except OSError as error:
        raise _refused(path, error) from error
    if not found and promised is None:
        ending = f'the ending "{path.suffix}"' if path.suffix else "a file without an ending"
        raise ArtifactError(f"{path}: no backend answers from {ending}; known are {', '.join(KINDS)}")
    return found or promised or ""


def engine_facts_file(path: str | Path) -> Path:
    """Name the file beside an engine that holds its facts."""
    path = Path(path)
    return path.with_name(f"{path.name}.{FACTS_FILE}")


def check_archive(path: Path) -> None:
    """Hold every part of a torch archive against its checksum, which torch does not. Raises ArtifactError."""
    try:
        with _open_archive(path) as archive:
            damaged = archive.testzip()
    except _ARCHIVE_ERRORS as error:
        raise ArtifactError(f"{path}: it is damaged: {error}") from error
    if damaged:
        raise ArtifactError(f'{path}: it is damaged: "{damaged}" in it does not match its checksum')


def read_onnx(path: str | Path) -> ModelProto:
    """Parse an ONNX file without its external data, and hold both against the digest, where it carries one.

    A tensor may name any file of the disk as its data: only those of the model's own folder are let through. The
    digest's entry is taken out of the metadata. Raises ArtifactError where it is damaged or its data lies outside.
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
        raise _refused(path, error) from error
    return model


def onnx_digest(path: Path, model: ModelProto, content: bytes) -> str:
    """Give the sha256 of an ONNX file: of its bytes with the digest's own digits blanked, and of each data file.

    `content` is what the file holds, `model` the same parsed. Raises OSError.
    """
    digest = hashlib.sha256(_blanked(content))
    for location in sorted({location for _, location in _external_data(model)}):
        with (path.parent / location).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _archive_kind(path: Path) -> str:
    """Tell the archives of torch.save, torch.jit.save and torch.export.save apart; "" where it is none of them."""
    try:
        with _open_archive(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except _ARCHIVE_ERRORS as error:
        suffix, start = path.suffix.lower(), _first_bytes(path)
        if suffix == ".pth" and start in (b"", b"PK"):  # the old files of torch.save are no archives
            raise ArtifactError(f"{path}: it is damaged or cut short") from error
        return "checkpoint" if suffix == ".pt" and start == b"\x80\x02" else ""  # as torch.save was before torch 1.6
    if "constants.pkl" in names:
        return "jit"
    if "archive_format" in names:
        return "pt2"
    return "checkpoint" if "data.pkl" in names else ""


def _open_archive(path: Path) -> zipfile.ZipFile:
    """Open a zip archive; raises BadZipFile also where it only ends in one, as a cut file that held another does."""
    archive = zipfile.ZipFile(path)
    if min((entry.header_offset for entry in archive.infolist()), default=0):
        archive.close()
        raise zipfile.BadZipFile("it is not whole")
    return archive


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _facts_values(path: Path, kind: str) -> Any:
    if kind == "onnx":
        return _parsed(path, kind, _from_onnx(path))
    if kind == "json":
        description = _parsed(path, kind, _read_at_most(path, MAX_DESCRIPTION_BYTES))
        if not isinstance(description, dict) or FACTS_KEY not in description:
            raise _without_facts(path, kind)
        return description[FACTS_KEY]
    if kind == "engine":
        file = engine_facts_file(path)
        if not file.is_file():
            raise ArtifactError(f"{path}: its facts are not beside it; copy {file.name} too, or build the engine again")
        return _parsed(file, kind, _read_at_most(file, MAX_FACTS_BYTES))
    return _parsed(path, kind, _from_archive(path, kind))


def _parsed(path: Path, kind: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: this {TITLES[kind]} is damaged, its facts are no JSON: {error}") from error


def _from_archive(path: Path, kind: str) -> bytes:
    damaged = f"{path}: it is damaged, or no {TITLES[kind]}"
    path.open("rb").close()  # what the system refuses is no damage
    try:
        with _open_archive(path) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{FACTS_FILE}")]
            # The caps keep what unpacks to more than it says, or to too much, from being unpacked.
            if len(found) == 1 and found[0].file_size > MAX_FACTS_BYTES:
                raise zipfile.BadZipFile(f"its facts are too large ({found[0].file_size} bytes)")
            if len(found) == 1 and found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile("torch does not compress this way")
            text = archive.read(found[0]) if len(found) == 1 else b""
    except _ARCHIVE_ERRORS as error:
        raise ArtifactError(f"{damaged}: {error}") from error
    if not found:
        raise _without_facts(path, kind)
    if len(found) > 1:
        raise ArtifactError(f"{damaged}: it holds {len(found)} times facts")
    return text


def _from_onnx(path: Path) -> str:
    for entry in read_onnx(path).metadata_props:
        if entry.key == FACTS_KEY:
            return str(entry.value)
    raise _without_facts(path, "onnx")


def _read_at_most(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ArtifactError(f"{path}: it is too large ({path.stat().st_size} bytes, at most {limit})")
    return content


def _refused(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path}: cannot read it: {error.strerror or error}")


def _without_facts(path: Path, kind: str) -> ArtifactError:
    mend = f"make one with: python -m deploy.export --weights CHECKPOINT --formats {kind}"
    return ArtifactError(f"{path}: this {TITLES[kind]} carries no facts (class names, preprocessing); {mend}")


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Give every tensor of a graph, its constants, attributes, subgraphs and functions."""
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
    """Give the names of the tensors whose data lies outside the model, and of the files that hold it."""
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
    """Take the digest out of the metadata; raise ArtifactError where it is there and not the file's."""
    entries = [entry for entry in model.metadata_props if entry.key == DIGEST_KEY]
    if entries and {entry.value for entry in entries} != {onnx_digest(path, model, path.read_bytes())}:
        raise ArtifactError(f"{path}: it is damaged, or was changed after its export: it does not match its sha256")
    for entry in entries:
        model.metadata_props.remove(entry)


def _blanked(content: bytes) -> bytes:
    """Put zeros in place of the digest in an ONNX file: where protobuf has written the key and a text of 64 bytes."""
    start = content.rfind(_DIGEST_ENTRY) + len(_DIGEST_ENTRY)
    if start < len(_DIGEST_ENTRY):
        return content
    return content[:start] + b"0" * DIGEST_DIGITS + content[start + DIGEST_DIGITS :]
