"""A classifier's validation on TensorBoard: confusion, worst images, and the classes' curves."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainers.evaluation.classification_metrics import ClassificationValidation, WorstImage
from trainers.reporting.tensorboard_logger import TrainingLogger, load_or_grey
from visualization import raster

MAX_CLASS_CURVES = 50  # more curves than that make TensorBoard slow and help nobody
COLUMNS = 6  # of worst images
log = logging.getLogger(__name__)


def log_classification(
    logger: TrainingLogger,
    result: ClassificationValidation,
    class_names: Sequence[str],
    load_image: Callable[[str], np.ndarray],
    step: int,
    heat_maps: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Show the confusion matrix, the worst images, and each class's precision and recall.

    `load_image` returns a path's image as uint8 (H, W, C); one it cannot read (OSError, ValueError) shows grey.
    `heat_maps` holds, by path, the same images under the heat map of their predictions, as many as there are.
    """
    if not logger.enabled:
        return
    logger.image("val/confusion_matrix", raster.confusion_matrix_image(result.confusion, class_names), step)
    heat_maps = heat_maps or {}
    plain = {image.path: load_or_grey(load_image, image.path) for image in result.worst}
    for tag, images in (("val/worst", plain), ("val/worst_heatmaps", heat_maps)):
        chosen = [image for image in result.worst if image.path in images]
        if chosen:
            captions = [_caption(image, class_names) for image in chosen]
            pixels = [images[image.path] for image in chosen]
            logger.image(tag, raster.image_grid(pixels, captions, columns=COLUMNS, right=[False] * len(chosen)), step)
    _log_classes(logger, result, class_names, step)


def class_tags(class_names: Sequence[str]) -> list[str]:
    """Return class names as tags TensorBoard takes; names that become alike get their label behind them."""
    tags = [re.sub(r"[^-\w.]", "_", name) or "_" for name in class_names]
    return [f"{tag}_{label}" if tags.count(tag) > 1 else tag for label, tag in enumerate(tags)]


def _log_classes(
    logger: TrainingLogger, result: ClassificationValidation, class_names: Sequence[str], step: int
) -> None:
    if len(class_names) > MAX_CLASS_CURVES:
        _note_cap(len(class_names))
    tags = class_tags(class_names[:MAX_CLASS_CURVES])
    for tag, scores in zip(tags, result.per_class, strict=False):  # per_class goes on beyond the cap
        curves = {f"val_{name}/{tag}": scores[name] for name in ("precision", "recall")}
        logger.scalars({name: value for name, value in curves.items() if value is not None}, step)


@functools.cache
def _note_cap(count: int) -> None:
    """Note the cap in the log, once."""
    log.info(
        "TensorBoard gets precision and recall of the first %d of %d classes; report.html has them all",
        MAX_CLASS_CURVES,
        count,
    )


def _caption(image: WorstImage, class_names: Sequence[str]) -> str:
    # A name's own line breaks would make further lines of the caption.
    label, prediction = (class_names[i].replace("\n", " ") for i in (image.label, image.answer))
    return f"{label}\n→ {prediction} {image.score:.1%}"
