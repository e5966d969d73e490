"""A folder for the Hugging Face Hub from a checkpoint: config.json, model.safetensors and the model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from artifacts.checkpoint import load_checkpoint
from artifacts.hub_folder import CARD, CONFIG, WEIGHTS
from artifacts.metadata import PRODUCER, ModelMetadata
from common.atomic_io import atomic_folder
from deploy.export.errors import ExportError
from deploy.export.model_card import model_card
from deploy.export.staging import raise_disk_error

KEYS = {  # of a report, and what each must hold
    **dict.fromkeys(("title", "net", "measure"), str),
    **dict.fromkeys(("class_names", "per_class", "skipped_images"), list),
    **dict.fromkeys(("best", "primary_measure", "config", "versions"), dict),
    **dict.fromkeys(("num_train", "num_val"), int),
}


def write_hub_folder(weights: Path, report_file: Path, folder: Path, licence: str) -> None:
    """Write a folder, complete or not at all, with the weights that are deployed and the card of their training.

    Raises ExportError, CheckpointError; OSError where it cannot be written.
    """
    from safetensors.torch import save_file

    checkpoint = load_checkpoint(weights)
    metadata, report = checkpoint.metadata, _read_report(report_file, checkpoint.metadata)
    state = {name: tensor.clone().contiguous() for name, tensor in checkpoint.deployed().items()}  # none shares memory
    with atomic_folder(folder) as new:
        try:
            save_file(state, new / WEIGHTS[0], {"format": "pt"})
        except Exception as error:  # safetensors has an error of its own for a full disk
            raise_disk_error(error, folder / WEIGHTS[0])
            raise
        (new / CONFIG).write_text(_json(hub_values(metadata)), encoding="utf-8")
        (new / CARD).write_text(model_card(report, metadata, licence), encoding="utf-8")


def hub_values(metadata: ModelMetadata) -> dict[str, Any]:
    """Return what config.json holds: the keys that `artifacts.hub_folder` reads of any net, and the metadata."""
    return {
        "architecture": metadata.net["name"],
        "library_name": PRODUCER,
        "num_classes": metadata.num_classes,
        "label_names": list(metadata.class_names),
        "facts": metadata.to_dict(),
    }


def _read_report(file: Path, metadata: ModelMetadata) -> dict[str, Any]:
    """Return the report of the net's own training. Raises ExportError."""
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise ExportError(
            f"{file}: the model card needs the training's report: {reason}; name it with --report"
        ) from error
    if not isinstance(report, dict) or any(not isinstance(report.get(key), kind) for key, kind in KEYS.items()):
        raise ExportError(f"{file}: it is no report.json of a training")
    if tuple(report["class_names"]) != metadata.class_names:
        raise ExportError(f"{file}: it is of other classes than the weights'; name their own with --report")
    return report


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2) + "\n"
