"""A classifier's validation on TensorBoard: confusion, worst images, and the classes' curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from trainers.evaluation.class_curves import class_curves
from trainers.evaluation.classification_metrics import ClassificationValidation, WorstImage
from trainers.evaluation.confusion_cells import MOST_IN_A_MATRIX, matrix_of
from trainers.reporting.tensorboard_logger import TrainingLogger, load_or_grey
from visualization import raster

COLUMNS = 6  # of worst images


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
    if len(class_names) <= MOST_IN_A_MATRIX:
        matrix = matrix_of(result.cells, len(class_names))
        logger.image("val/confusion_matrix", raster.confusion_matrix_image(matrix, class_names), step)
    heat_maps = heat_maps or {}
    plain = {image.path: load_or_grey(load_image, image.path) for image in result.worst}
    for tag, images in (("val/worst", plain), ("val/worst_heatmaps", heat_maps)):
        chosen = [image for image in result.worst if image.path in images]
        if chosen:
            captions = [_caption(image, class_names) for image in chosen]
            pixels = [images[image.path] for image in chosen]
            logger.image(tag, raster.image_grid(pixels, captions, columns=COLUMNS, right=[False] * len(chosen)), step)
    for name in ("precision", "recall"):
        curves = class_curves(result.per_class, name)
        logger.scalars({f"val_{name}/{tag}": value for tag, value in curves.items()}, step)


def _caption(image: WorstImage, class_names: Sequence[str]) -> str:
    # A name's own line breaks would make further lines of the caption.
    label, prediction = (class_names[i].replace("\n", " ") for i in (image.label, image.answer))
    return f"{label}\n→ {prediction} {image.score:.1%}"
