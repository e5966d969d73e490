"""Where a request's data and start weights are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from platforms.pie_engine.errors import RequestError
from platforms.pie_engine.traincfg import Values

DATASET_ROOT, DATASET_ID = "PIE_DATASET_ROOT", "AI_DATASET_ID"  # of the environment


def find_data(values: Values, log: Callable[[str], None]) -> Path:
    """Return the folder of the data set that `dataset_path`, else `dataset_id` names. Raises RequestError."""
    return Path(data_place(values))


def find_resume(values: Values) -> str:
    """Return the file of weights that `resume_path` names, "" for none. Raises RequestError where it is not there."""
    place, name = _text(values, "resume_path").strip(), _text(values, "model_name")
    if not place:
        return ""
    path = Path(place)
    file = path if path.is_file() else path / f"{name}.th"
    if not file.is_file():
        raise RequestError([f"resume_path: there is no file {file}; leave it empty to train from the beginning"])
    return str(file.absolute())


def data_place(values: Values) -> str:
    """Return the folder or URL of the data set. Raises RequestError where nothing names it."""
    if path := _text(values, "dataset_path").strip():
        return path
    dataset_id = _text(values, "dataset_id").strip() or os.environ.get(DATASET_ID, "").strip()
    root = os.environ.get(DATASET_ROOT, "").strip()
    if dataset_id and root:
        if dataset_id in (".", "..") or "/" in dataset_id or "\\" in dataset_id:
            raise RequestError([f'dataset_id must be the name of a folder below {DATASET_ROOT}, got "{dataset_id}"'])
        return f"{root.rstrip('/')}/{dataset_id}"
    lacking = f"the environment's {DATASET_ROOT}" if dataset_id else f"dataset_id, and the environment's {DATASET_ID},"
    verb = "is not set" if dataset_id else "are empty"
    hint = f"set dataset_path to a folder or s3:// URL, or {DATASET_ROOT} to what holds <dataset_id>/"
    raise RequestError([f"no data set: {lacking} {verb}; {hint}"])


def _text(values: Values, key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""
