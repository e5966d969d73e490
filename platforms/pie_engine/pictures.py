"""The pictures of an epoch: the best validation image with its label and the net's prediction, as PNGs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from artifacts.detections import find_objects
from data_loader.band_image import as_array, gaps_of
from data_loader.box_geometry import unfitted
from data_loader.mask_classes import VOID, MaskClass
from data_loader.preprocess import joined
from data_loader.samples import Sample
from deploy.inference.mask_prediction import own_size
from platforms.base import write_bytes
from trainers.evaluation.validation import evaluating
from trainers.reporting.box_strips import with_found
from trainers.tasks.detection import DetectionTask
from trainers.tasks.segmentation import SegmentationTask
from visualization.masks import colour_table, coloured

MOST_SIDE_PX = 2048


@torch.inference_mode()
def write_mask_pictures(task: SegmentationTask, sample: Sample, folder: Path) -> None:
    """Write image.png, or A.png and B.png, label.png and pred.png. Raises ImageError, ResultsError."""
    preprocess = task.input
    paths = task.masks.image_paths(sample)
    images = [preprocess.decode(path) for path in paths]
    batch = torch.from_numpy(joined([preprocess.fit(image) for image in images])).permute(2, 0, 1)[None]  # (1, C, H, W)
    with evaluating(task.net):
        logits = task.predict(preprocess.normalize(batch.to(task.device)))[0].cpu().numpy()  # (K, h, w)
    shown = [_shrunk(image.convert("RGB"), Image.Resampling.BILINEAR) for image in images]
    size = shown[0].size
    table = colour_table([found.color for found in task.masks.classes])
    mask = task.masks.load(sample)
    if (gaps := gaps_of(images)) is not None:
        mask = task.masks.without(mask, gaps)
    label = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
    predicted = np.where(label == VOID, VOID, own_size(logits, preprocess, size))
    names = ("image",) if len(paths) == 1 else ("A", "B")
    for name, image in zip(names, shown, strict=True):
        _write(folder / f"{name}.png", np.asarray(image))
    _write(folder / "label.png", coloured(label, table))
    _write(folder / "pred.png", coloured(predicted, table))


@torch.inference_mode()
def write_box_picture(
    task: DetectionTask, classes: Sequence[MaskClass], sample: Sample, threshold: float, folder: Path
) -> None:
    """Write pred.png: the image with what the net finds in it. Raises ImageError, ResultsError."""
    preprocess = task.input
    decoded = preprocess.decode(sample.path)
    batch = torch.from_numpy(preprocess(as_array(decoded)))[None].to(task.device)  # (1, C, H, W)
    with evaluating(task.net):
        found = find_objects(task.predict(batch).cpu().numpy(), threshold)[0]
    image = _shrunk(decoded.convert("RGB"), Image.Resampling.BILINEAR)
    boxes = unfitted(preprocess, found.boxes, image.size)
    _write(folder / "pred.png", with_found(np.asarray(image), found._replace(boxes=boxes), classes))


def _shrunk(image: Image.Image, resampling: Image.Resampling) -> Image.Image:
    """Return an image whose longer side is MOST_SIDE_PX at most."""
    if max(image.size) <= MOST_SIDE_PX:
        return image
    return ImageOps.contain(image, (MOST_SIDE_PX, MOST_SIDE_PX), resampling)


def _write(path: Path, pixels: np.ndarray) -> None:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    write_bytes(path, file.getvalue())
