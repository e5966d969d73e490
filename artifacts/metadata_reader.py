"""Reading metadata from every kind of artefact; nothing in the file is executed."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.archive import ARCHIVE_ERRORS, open_archive
from artifacts.errors import ArtifactError
from artifacts.formats import METADATA_FILE, METADATA_KEY, TITLES, artifact_kind, engine_metadata_file, unreadable
from artifacts.metadata import ModelMetadata
from artifacts.onnx_file import parse_onnx, read_onnx

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_METADATA_BYTES = 16 * 2**20
MAX_DESCRIPTION_BYTES = 256 * 2**20


def read_metadata(path: str | Path, *, accept_changed: bool = False) -> ModelMetadata:
    """Read the metadata of a checkpoint, TorchScript, torch.export, ONNX or description file, or of an engine.

    With `accept_changed` an ONNX file that does not match its sha256 is read, and `is_changed` is set. Raises
    ArtifactError, and CheckpointError for a checkpoint.
    """
    path = Path(path)
    kind = artifact_kind(path)
    if kind == "checkpoint":
        from artifacts.checkpoint import load_checkpoint  # late: it needs torch

        return load_checkpoint(path).metadata
    try:
        values = _metadata_values(path, kind, accept_changed)
        if not isinstance(values, dict):
            raise ArtifactError(f"{path}: the metadata in this {TITLES[kind]} is no JSON object")
    except OSError as error:
        raise unreadable(path, error) from error
    is_changed = accept_changed and kind == "onnx" and parse_onnx(path)[1]
    try:
        return replace(ModelMetadata.from_dict(values), is_changed=is_changed)
    except ValueError as error:
        raise ArtifactError(f"{path}: in this {TITLES[kind]} {error}") from error


def _metadata_values(path: Path, kind: str, accept_changed: bool) -> Any:
    if kind == "onnx":
        return _parsed(path, kind, _from_onnx(path, parse_onnx(path)[0] if accept_changed else read_onnx(path)))
    if kind == "json":
        description = _parsed(path, kind, _read_at_most(path, MAX_DESCRIPTION_BYTES))
        if not isinstance(description, dict) or METADATA_KEY not in description:
            raise _without_metadata(path, kind)
        return description[METADATA_KEY]
    if kind == "engine":
        file = engine_metadata_file(path)
        if not file.is_file():
            raise ArtifactError(
                f"{path}: its metadata is not beside it; copy {file.name} too, or build the engine again"
            )
        return _parsed(file, kind, _read_at_most(file, MAX_METADATA_BYTES))
    return _parsed(path, kind, _from_archive(path, kind))


def _parsed(path: Path, kind: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: this {TITLES[kind]} is damaged, its metadata is no JSON: {error}") from error


def _from_archive(path: Path, kind: str) -> bytes:
    damaged = f"{path}: it is damaged, or no {TITLES[kind]}"
    path.open("rb").close()  # a file that the system refuses to open is not damaged
    try:
        with open_archive(path) as archive:
            found = [entry for entry in archive.infolist() if entry.filename.endswith(f"/extra/{METADATA_FILE}")]
            # The limits keep an entry that unpacks to more than it declares, or to too much, from being unpacked.
            if len(found) == 1 and found[0].file_size > MAX_METADATA_BYTES:
                raise zipfile.BadZipFile(f"its metadata is too large ({found[0].file_size} bytes)")
            if len(found) == 1 and found[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise zipfile.BadZipFile("torch does not compress this way")
            text = archive.read(found[0]) if len(found) == 1 else b""
    except ARCHIVE_ERRORS as error:
        raise ArtifactError(f"{damaged}: {error}") from error
    if not found:
        raise _without_metadata(path, kind)
    if len(found) > 1:
        raise ArtifactError(f"{damaged}: it holds metadata {len(found)} times")
    return text


def _from_onnx(path: Path, model: ModelProto) -> str:
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return str(entry.value)
    raise _without_metadata(path, "onnx")


def _read_at_most(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ArtifactError(f"{path}: it is too large ({path.stat().st_size} bytes, at most {limit})")
    return content


def _without_metadata(path: Path, kind: str) -> ArtifactError:
    hint = f"make one with: python -m deploy.export --weights CHECKPOINT --formats {kind}"
    return ArtifactError(f"{path}: this {TITLES[kind]} carries no metadata (class names, preprocessing); {hint}")
