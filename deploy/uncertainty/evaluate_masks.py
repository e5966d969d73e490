"""Evaluating nets of masks on images with label images: IoU and accuracy of one file, or of several side by side."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.calibration import MOST_WRONG
from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata
from artifacts.pixel_confusion import class_ious, mean_iou, pixel_confusion
from common.atomic_io import check_folder, write_atomic, writing
from common.console import elide, text_columns
from configs.schema import Config
from data_loader.mask_classes import VOID
from deploy.backends.base import Backend
from deploy.backends.loading import load_backend
from deploy.inference.decision import foreign_calibration
from deploy.inference.predictor import Predictor
from deploy.inference.uncertainty_scores import UncertaintyError
from deploy.uncertainty.mask_source import MaskSource
from deploy.uncertainty.outputs import config_of

VALUES = "mask_evaluation.json"
MOST_LOST = 0.01  # of the mean IoU, above which a file's loss against the first one is a warning
NAME_COLUMNS, VALUE_COLUMNS = 30, 10


@dataclass(frozen=True)
class MaskEvaluation:
    """One file on the images: its confusion (K, K) of their pixels, at the images' own size.

    `accepted` and `wrong` are of a calibrated file: the share of an image's pixels that is accepted, and of these the
    share that is wrong, means over the images; `target` is what it was calibrated to.
    """

    weights: Path
    metadata: ModelMetadata
    runtime: str
    images: int
    confusion: np.ndarray
    accepted: float | None = None
    wrong: float | None = None

    def rows(self) -> dict[str, float | None]:
        """Return its numbers, shares from 0 to 1, by what they are called; None where there is none."""
        total = self.confusion.sum()
        ious = [None if np.isnan(value) else float(value) for value in class_ious(self.confusion)]
        return {
            "mean IoU": mean_iou(self.confusion),
            "pixel accuracy": float(self.confusion.trace() / total) if total else None,
            **{f"IoU {name}": value for name, value in zip(self.metadata.class_names, ious, strict=True)},
            "accepted": self.accepted,
            "wrong among the accepted": self.wrong,
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "weights": str(self.weights),
            "runtime": self.runtime,
            "precision": self.metadata.precision,
            "images": self.images,
            "classes": list(self.metadata.class_names),
            "confusion": self.confusion.tolist(),
            "target": self.metadata.thresholds.get(MOST_WRONG),
            **{name.replace(" ", "_"): value for name, value in self.rows().items()},
        }


def evaluate_masks(
    args: argparse.Namespace, weights: Path, config: Config | None, backend: Backend, metadata: ModelMetadata
) -> str:
    """Evaluate the files on the same images, write VALUES with --report, and return what to print. Raises UserError."""
    if surplus := [name for name in ("ood", "means", "repeat", "views", "passes") if getattr(args, name)]:
        raise UncertaintyError(f"--{surplus[0]} is not for nets that give masks: leave it out")
    config = (config_of(weights) if artifact_kind(weights) == "checkpoint" else None) or config
    source = MaskSource.of(args.evaluate, args.list_root, weights, config, metadata)
    found = [_evaluated(args, weights, backend, metadata, source)]
    for path in args.others:
        backend, metadata = load_backend(path, device=args.device, runtime=args.runtime, precision=args.precision)
        if metadata.output != "mask_logits" or metadata.class_names != found[0].metadata.class_names:
            raise UncertaintyError(f"{path}: it has no masks of the classes of {weights}, and cannot be set beside it")
        found.append(_evaluated(args, path, backend, metadata, source))
    if args.report is not None:
        _write(found, source, args.report)
    return "\n".join(_lines(found, source, args))


def _evaluated(
    args: argparse.Namespace, weights: Path, backend: Backend, metadata: ModelMetadata, source: MaskSource
) -> MaskEvaluation:
    count = metadata.num_classes
    confusion, images, shares = np.zeros((count, count), np.int64), 0, list[tuple[float, float]]()
    for prediction, truth in source.predicted(Predictor(backend, metadata), args.batch_size, args.workers):
        images += 1
        confusion += pixel_confusion(truth, prediction.indices, count)
        known = truth != VOID
        if prediction.accept is not None and known.any():
            accepted = known & ~prediction.set_aside
            right = (prediction.indices == truth)[accepted]
            shares.append((float(accepted.sum() / known.sum()), 1 - float(right.mean()) if len(right) else 0.0))
    both = np.mean(shares, axis=0).tolist() if shares else (None, None)
    return MaskEvaluation(weights, metadata, backend.name, images, confusion, *both)


def _lines(found: Sequence[MaskEvaluation], source: MaskSource, args: argparse.Namespace) -> list[str]:
    first = found[0]
    pixels = int(first.confusion.sum())
    lines = [f"{source.origin}: {first.images} images, {pixels} pixels of a class, at the images' own size"]
    if len(found) > 1:
        lines += [f"[{number}] {each.weights} on {each.runtime}" for number, each in enumerate(found, 1)]
        lines.append(" " * NAME_COLUMNS + "".join(f"{f'[{n}]':>{VALUE_COLUMNS}}" for n in range(1, len(found) + 1)))
    columns = [each.rows() for each in found]
    for name in columns[0]:
        values = [column[name] for column in columns]
        if any(value is not None for value in values):
            cells = ("" if value is None else f"{value:.2%}" for value in values)
            row = "".join(f"{cell:>{VALUE_COLUMNS}}" for cell in cells)
            shown = elide(name, NAME_COLUMNS - 1)
            lines.append(shown + " " * (NAME_COLUMNS - text_columns(shown)) + row)
    for number, each in enumerate(found[1:], 2):
        change = mean_iou(each.confusion) - mean_iou(first.confusion)
        over = "; warning: over a point is lost" if change < -MOST_LOST else ""
        lines.append(f"[{number}] against [1]: mean IoU {100 * change:+.2f} points{over}")
    for each in found:
        if (target := each.metadata.thresholds.get(MOST_WRONG)) is not None and each.wrong is not None:
            lines.append(f"{each.weights}: calibrated to at most {target:.2%} wrong among the accepted, in expectation")
        if foreign := foreign_calibration(each.metadata, each.runtime, args.precision):
            lines.append(f"{each.weights}: {foreign}")
    return lines


def _write(found: Sequence[MaskEvaluation], source: MaskSource, folder: Path) -> None:
    """Write VALUES into a folder, complete or not at all. Raises ResultsError."""
    check_folder(folder)
    values = {"list": str(source.origin), "files": [each.to_dict() for each in found]}
    with writing(folder / VALUES):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / VALUES, f"{json.dumps(values, ensure_ascii=False, indent=1)}\n".encode())
