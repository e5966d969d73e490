"""A folder of the Hugging Face Hub: weights, and a config.json that says what they are. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from artifacts.errors import CheckpointError

WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there is read
CONFIG, CARD = "config.json", "README.md"
CARD_HEADER = re.compile(r"---\n(.*?)\n---", re.DOTALL)  # YAML
LICENCE = re.compile(r"^license:[ \t]*['\"]?([^'\"\n#]+)", re.MULTILINE)
LFS_POINTER = b"version https://git-lfs.github.com/"


def weights_file(path: Path) -> Path:
    """Return the weights file of a folder; what is no folder as it is. Raises CheckpointError."""
    if not path.is_dir():
        if _is_lfs_pointer(path):
            raise CheckpointError(f'{path}: a pointer of Git LFS, not the weights; run "git lfs pull" in its folder')
        return path
    file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    if file is not None:
        return weights_file(file)
    if any((path / f"{name}.index.json").is_file() for name in WEIGHTS):
        raise CheckpointError(f"{path}: its weights are split over several files, which is not read; join them in one")
    raise CheckpointError(f"{path}: no weights in this folder: neither {' nor '.join(WEIGHTS)}")


def hub_config(path: Path) -> dict[str, Any]:
    """Return the config.json of a folder, or beside one of its weights files; {} where there is none of the Hub.

    It has "architecture" and "pretrained_cfg" if timm wrote it. Raises CheckpointError where it is no JSON object.
    """
    if not path.is_dir() and path.name not in WEIGHTS:
        return {}
    file = (path if path.is_dir() else path.parent) / CONFIG
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot read it: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{file}: holds a {type(values).__name__}, not an object")
    return values


def hub_provenance(path: Path) -> dict[str, str]:
    """Return the name, sha256, licence and source of a folder's weights; {} where there is no config.json of the Hub.

    The licence is that of timm's "pretrained_cfg", else of the model card's header. Raises CheckpointError.
    """
    values = hub_config(path)
    if not values:
        return {}
    file = weights_file(path)
    published = values.get("pretrained_cfg")
    published = published if isinstance(published, dict) else {}
    name = ".".join(str(part) for part in (values.get("architecture"), published.get("tag")) if part)
    return {
        "package": name or str(values.get("_name_or_path") or file.parent.name),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "licence": str(published.get("license") or _card_licence(file.parent / CARD) or "no licence stated"),
        "source": str(published.get("origin_url") or published.get("hf_hub_id") or "a folder of the Hugging Face Hub"),
    }


def hub_class_names(values: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names of a config.json in the order of the labels; () where it names none.

    timm writes "label_names", a list; transformers "id2label", an object.
    """
    names = values.get("label_names")
    if names is None and isinstance(labels := values.get("id2label"), dict):
        names = [labels.get(str(label)) for label in range(len(labels))]
    return class_names_in(names)


def class_names_in(names: object) -> tuple[str, ...]:
    """Return class names that a file holds as a list; () for what is no list of different texts."""
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()


def _card_licence(card: Path) -> str:
    """Return the licence that a model card's header names; "" where there is no card or no licence in it."""
    try:
        header = CARD_HEADER.match(card.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    found = LICENCE.search(header[1]) if header else None
    return found[1].strip() if found else ""


def _is_lfs_pointer(path: Path) -> bool:
    """Return whether a file is what Git leaves of a large file where Git LFS has not fetched it."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:  # whoever reads it says why not
        return False
