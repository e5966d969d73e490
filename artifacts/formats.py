"""The file formats of a trained net, and how a file's format is recognised."""

from __future__ import annotations

from pathlib import Path

from artifacts.archive import _ARCHIVE_ERRORS, _open_archive
from artifacts.errors import ArtifactError

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
METADATA_FILE = "facts.json"  # among TorchScript's and torch.export's extra files, and behind an engine's name
METADATA_KEY = "facts"  # of ONNX metadata and of a description
REPORT = "export_report.json"


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


def engine_metadata_file(path: str | Path) -> Path:
    """Name the file beside an engine that holds its metadata."""
    path = Path(path)
    return path.with_name(f"{path.name}.{METADATA_FILE}")


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


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(2)


def _refused(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"{path}: cannot read it: {error.strerror or error}")
