"""Reading facts back: whatever kind of artefact carries them, nothing in the file is executed."""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.facts import Facts

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
        raise ArtifactError(f"{path}: cannot read it: {error.strerror or error}") from error
    try:
        return Facts.from_dict(values)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ArtifactError(f"{path}: in this {TITLES[kind]} {_told(error)}") from error


def artifact_kind(path: str | Path) -> str:
    """Say what a weights file is, one of KINDS's values: by its ending, but torch's archives by what is in them.

    Raises ArtifactError where it is missing or of no known kind; needs no torch.
    """
    path = Path(path)
    if not path.is_file():
        kind = "it is a folder, not a weights file" if path.is_dir() else "no such file"
        raise ArtifactError(f"{path}: {kind} (relative paths start from {Path.cwd()})")
    promised = KINDS.get(path.suffix.lower())
    found = _archive_kind(path) if promised in (None, "checkpoint", "jit", "pt2") else ""
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
    """Parse an ONNX file without its external data. Raises ArtifactError where it is damaged or its data lies outside.

    A tensor may name any file of the disk as its data: only those of the model's own folder are let through.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{path}: it is damaged, or no ONNX file") from error
    except OSError as error:
        raise ArtifactError(f"{path}: cannot read it: {error.strerror or error}") from error
    if not model.graph.node:
        raise ArtifactError(f"{path}: it is damaged, or no ONNX file: there is no graph in it")
    for tensor in _tensors(model):
        _check_external_data(path, tensor)
    return model


def _archive_kind(path: Path) -> str:
    """Tell the archives of torch.save, torch.jit.save and torch.export.save apart; "" where it is none of them."""
    try:
        with _open_archive(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except _ARCHIVE_ERRORS:
        return "checkpoint" if _starts_as_a_pickle(path) else ""
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


def _starts_as_a_pickle(path: Path) -> bool:
    """Say whether a .pt file may be of torch.save as it was before torch 1.6."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".pt" and file.read(2) == b"\x80\x02"


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


def _told(error: Exception) -> str:
    return str(error) if str(error).startswith("the facts") else f"the facts are damaged: {error}"


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


def _check_external_data(path: Path, tensor: TensorProto) -> None:
    """Raise ArtifactError unless a tensor's data is in the file itself, or in one of the file's own folder."""
    for entry in tensor.external_data:
        if entry.key != "location":
            continue
        try:
            file = (path.parent / entry.value).resolve()
            is_inside = file.is_relative_to(path.parent.resolve())
        except (OSError, ValueError, RuntimeError):  # a NUL byte, or links that lead in a circle
            is_inside = False
        if not is_inside:
            where = f'tensor "{tensor.name}" lies in "{entry.value}"'
            raise ArtifactError(f"{path}: its {where}, outside the file's folder; it is not opened")
        if not file.is_file():
            raise ArtifactError(f'{path}: its data file "{entry.value}" is not beside it')
