"""The file of labelled predictions: one line each, on the disk before it counts, read again at the next start."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from artifacts.metadata import ModelMetadata
from common.atomic_io import atomic_path, check_folder, check_in_place, writing
from common.file_lock import lock_file
from deploy.service.routes import ServiceError

VERSION = 1
KEY_BYTES = 32


class LabelledPrediction(NamedTuple):
    """A prediction that a person has labelled; `label` is None for an image of none of the net's classes."""

    nonce: str
    predicted: int
    label: int | None


class AuditFile:
    """Appends labelled predictions; `key` signs the ids that go with this file."""

    def __init__(self, path: Path, key: bytes, rows: list[LabelledPrediction], descriptor: int, size: int) -> None:
        self.key, self.rows = key, rows
        self._path, self._descriptor, self._size = path, descriptor, size

    def append(self, row: LabelledPrediction) -> None:
        """Write a line through to the disk. Raises OSError; then the file is as before."""
        check_in_place(self._path, self._descriptor, self._size)
        line = json.dumps({"id": row.nonce, "predicted": row.predicted, "label": row.label}).encode() + b"\n"
        try:
            os.ftruncate(self._descriptor, self._size)  # what a failed line could not take back
            if os.write(self._descriptor, line) != len(line):
                raise OSError(f"{self._path}: the disk is full")
            os.fsync(self._descriptor)
        except OSError:
            with suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(line)


@contextmanager
def open_audit_file(path: Path, metadata: ModelMetadata) -> Iterator[AuditFile]:
    """Read a net's audit file, or begin one, and hold it for this process. Raises ServiceError, ResultsError."""
    check_folder(path.parent)
    with ExitStack() as held:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(lock_file(path.with_name(f"{path.name}.lock")))
            except BlockingIOError as error:
                raise ServiceError(f"{path}: another service writes it; give each its own --audit file") from error
            if not path.exists():
                _begin(path, metadata)
            key, rows, size = _read(path, metadata)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
            held.callback(os.close, descriptor)
            os.ftruncate(descriptor, size)  # a line that a killed process did not complete
        yield AuditFile(path, key, rows, descriptor, size)


def _begin(path: Path, metadata: ModelMetadata) -> None:
    header = {"version": VERSION, **_of_net(metadata), "key": secrets.token_hex(KEY_BYTES)}
    with atomic_path(path) as temporary:
        temporary.touch(mode=0o600)  # the key is nobody else's
        temporary.write_text(json.dumps(header) + "\n", encoding="utf-8")


def _of_net(metadata: ModelMetadata) -> dict[str, Any]:
    """Return what the target risk belongs to: other weights or thresholds have another."""
    assert metadata.calibration is not None
    calibrated = {"temperature": metadata.temperature, "thresholds": metadata.thresholds}
    return {"weights_sha256": metadata.weights_sha256, **calibrated, "calibration": metadata.calibration.to_dict()}


def _read(path: Path, metadata: ModelMetadata) -> tuple[bytes, list[LabelledPrediction], int]:
    """Return key, rows, and the bytes of the complete lines. Raises ServiceError, OSError."""
    content = path.read_bytes()
    size = content.rfind(b"\n") + 1
    lines = content[:size].splitlines()
    header: dict[str, Any] = {}
    number = 1
    try:
        header = json.loads(lines[0])
        key = bytes.fromhex(header.pop("key"))
        is_known = header.pop("version") == VERSION and len(key) == KEY_BYTES
        rows = []
        for number, line in enumerate(lines[1:], 2):  # noqa: B007  (for the message)
            values = json.loads(line)
            rows.append(_row(values, metadata.num_classes))
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ServiceError(f"{path}:{number}: it is no line of an audit file; name another file") from error
    if not is_known:
        raise ServiceError(f"{path}: it is an audit file of another version; name another file")
    if header != json.loads(json.dumps(_of_net(metadata))):
        raise ServiceError(f"{path}: it belongs to another net or calibration; begin a new file with --audit")
    return key, rows, size


def _row(values: Any, num_classes: int) -> LabelledPrediction:
    """Return a line's row. Raises KeyError, TypeError, ValueError."""
    nonce, predicted, label = values["id"], values["predicted"], values["label"]
    labels = (predicted,) if label is None else (predicted, label)
    if type(nonce) is not str or not all(type(one) is int and 0 <= one < num_classes for one in labels):
        raise ValueError("a value is of another kind")
    return LabelledPrediction(nonce, predicted, label)
