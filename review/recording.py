"""What a script records: values with a title and a kind, checked, each as what a page or a file can hold."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.formatting import did_you_mean
from common.json_values import plain
from data_loader.decoding import decode
from data_loader.errors import ImageError
from review.errors import ReviewError

IMAGE, STRING, SCALAR, JSON, FILE, VIDEO = KINDS = ("IMAGE", "STRING", "SCALAR", "JSON", "FILE", "VIDEO")
COLORS = ("BGR", "RGB")
FORM = '{"id": 0, "score": {"data": 0.9, "type": "SCALAR"}}'


@dataclass(frozen=True)
class Item:
    """One value of a record. `data` of an IMAGE is a PNG's bytes, of FILE and VIDEO a path, else as JSON has it."""

    title: str
    kind: str
    data: Any


def id_of(record: Any) -> int | str:
    """Return the id of what a script records. Raises ReviewError, a ValueError."""
    if not isinstance(record, Mapping) or "id" not in record:
        raise ReviewError(f"a record must have an id, such as {FORM}")
    found = record["id"].item() if isinstance(record["id"], np.generic) else record["id"]
    if isinstance(found, bool) or not isinstance(found, (int, str)):
        raise ReviewError(f"the id of a record must be a whole number or text, got {found!r}")
    return found


def items_of(record: Mapping[str, Any], color: str) -> list[Item]:
    """Return the values of a record but its id; `color` is the order of an array's channels, one of COLORS.

    Raises ReviewError, a ValueError, for another kind, or a value that is not of its kind.
    """
    where = f"record {id_of(record)}"
    return [_item(title, entry, where, color) for title, entry in record.items() if title != "id"]


def png_of(data: Any, where: str, color: str) -> bytes:
    """Return an array as a PNG: uint8 (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). Raises ReviewError."""
    array = np.asarray(data)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or 0 in array.shape:
        raise ReviewError(f"{where}: an image must be uint8 (H, W) or (H, W, 3), got {array.dtype} {array.shape}")
    array = array[..., 0] if array.shape[2:] == (1,) else array
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        raise ReviewError(f"{where}: an image must have 1, 3 or 4 channels, got {array.shape[2]}")
    if array.ndim == 3 and color == COLORS[0]:
        array = array[..., [2, 1, 0, *range(3, array.shape[2])]]  # BGR(A) -> RGB(A)
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _item(title: Any, entry: Any, where: str, color: str) -> Item:
    where = f'{where}: "{title}"'
    if not isinstance(title, str) or not isinstance(entry, Mapping) or not {"data", "type"} <= entry.keys():
        raise ReviewError(f'{where} must be {{"data": ..., "type": ...}}')
    kind, data = entry["type"], entry["data"]
    if kind not in KINDS:
        hint = did_you_mean(str(kind), KINDS, ignore_case=True)
        raise ReviewError(f"{where}: type must be one of {', '.join(KINDS)}, got {kind!r}{hint}")
    if kind == IMAGE and not isinstance(data, (str, Path)):
        return Item(title, kind, png_of(data, where, color))
    if kind in (IMAGE, FILE, VIDEO):
        return Item(title, kind, _content(data, where) if kind == IMAGE else _path(data, where))
    if kind == STRING and not isinstance(data, str):
        raise ReviewError(f"{where}: the data of a STRING must be text, got {type(data).__name__}")
    if kind == SCALAR and not isinstance(data, (int, float, np.number)):
        raise ReviewError(f"{where}: the data of a SCALAR must be a number, got {type(data).__name__}")
    return Item(title, kind, plain(data))


def _path(data: Any, where: str) -> Path:
    if not isinstance(data, (str, Path)) or not Path(data).is_file():
        raise ReviewError(f"{where}: there is no file {str(data)[:200]!r}")
    return Path(data)


def _content(data: Any, where: str) -> bytes:
    """Return the file of an image as a PNG, upright. Raises ReviewError."""
    try:
        return png_of(np.asarray(decode(_path(data, where), 3).convert("RGB")), where, "RGB")
    except ImageError as error:
        raise ReviewError(f"{where}: {data} cannot be read: {error}") from error
