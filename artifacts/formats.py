"""The file formats of a trained net, and how a file's format is recognised."""

from __future__ import annotations

from pathlib import Path

from artifacts.archive import ARCHIVE_ERRORS, is_safetensors, open_archive
from artifacts.errors import ArtifactError

KINDS = {  # by suffix
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
METADATA_FILE = "facts.json"  # among TorchScript's and torch.export's extra files, and behind an engine's name
METADATA_KEY = "facts"  # of ONNX metadata and of a description
REPORT = "export_report.json"


def artifact_kind(path: str | Path) -> str:
    """Return the kind of a weights file, one of KINDS's values: by its suffix, but torch's archives by their entries.

    Raises ArtifactError where it is missing, cannot be read or is of no known kind. Needs no torch.
    """
    path = Path(path)
    by_suffix = KINDS.get(path.suffix.lower())
    try:
        if not path.is_file():
            kind = "it is a folder, not a weights file" if path.is_dir() else "no such file"
            raise ArtifactError(f"{path}: {kind} (relative paths start from {Path.cwd()})")
        found = _archive_kind(path) if by_suffix in (None, "checkpoint", "jit", "pt2") else ""
    except OSError as error:
        raise unreadable(path, error) from error
    if not found and by_suffix is None and is_safetensors(path):
        return "checkpoint"  # bare weights
    if not found and by_suffix is None:
        ending = f'the ending "{path.suffix}"' if path.suffix else "a file without an ending"
        raise ArtifactError(f"{path}: no backend for {ending}; known are {', '.join(KINDS)}")
    return found or by_suffix or ""


def engine_metadata_file(path: str | Path) -> Path:
    """Return the path of the file beside an engine that holds its metadata."""
    path = Path(path)
    return path.with_name(f"{path.name}.{METADATA_FILE}")


def unreadable(path: Path, error: OSError) -> ArtifactError:
    """Return the error that names a file which the system does not let us read."""
    return ArtifactError(f"{path}: cannot read it: {error.strerror or error}")


def _archive_kind(path: Path) -> str:
    """Return which of torch.save, torch.jit.save and torch.export.save wrote an archive; "" where none did."""
    try:
        with open_archive(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except ARCHIVE_ERRORS as error:
        suffix, start = path.suffix.lower(), _first_bytes(path)
        if suffix == ".pth" and start in (b"", b"PK"):  # the old files of torch.save are no archives
            raise ArtifactError(f"{path}: it is damaged or cut short") from error
        return "checkpoint" if suffix == ".pt" and start == b"\x80\x02" else ""  # as torch.save was before torch 1.6
    if "constants.pkl" in names:
        return "jit"
    if "archive_format" in names:
        return "pt2"
    return "checkpoint" if "data.pkl" in names else ""


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)
