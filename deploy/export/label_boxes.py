"""The annotations of a verification's images: what an int8 detector costs is counted against the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from artifacts.coco_map import average_precision
from artifacts.detections import LEAST_SCORE, Detections, find_objects, nms_iou_of
from artifacts.metadata import ModelMetadata
from data_loader.box_geometry import within
from data_loader.box_target import Boxes, BoxTarget
from data_loader.preprocess import ImageError
from data_loader.samples import ListError

IMAGES = "images"
GROUPS = 10  # of images, of which each is left out once


def label_boxes(files: Sequence[str], metadata: ModelMetadata) -> np.ndarray | None:
    """Return each image's `Boxes` in pixels of the net's input, as an array (N,); None unless every image has some.

    They are those that a training on the folder of the images would read: VOC XML, YOLO txt or COCO's file.
    """
    folders = {Path(file).parent for file in files}
    if len(folders) != 1 or not metadata.mask_classes:
        return None
    folder = folders.pop()
    target = BoxTarget(metadata.num_classes, metadata.mask_classes, max_pixels=metadata.preprocess.max_pixels)
    try:
        samples = target.read_folder(str(folder.parent if folder.name == IMAGES else folder)).samples
        by_name = {Path(sample.path).name: sample for sample in samples}
        truths = np.empty(len(files), object)
        for place, file in enumerate(files):
            boxes, _ = target.scan(by_name[Path(file).name])
            rows = target.fit(metadata.preprocess, boxes)  # (M, 6)
            size = metadata.preprocess.width, metadata.preprocess.height
            truths[place] = Boxes(rows[:, :4].astype(float), rows[:, 4].astype(int), rows[:, 5] > 0, size)
    except (ListError, ImageError, KeyError):
        return None
    return truths


def objects_to_measure(outputs: np.ndarray, metadata: ModelMetadata) -> list[Detections]:
    """Return the objects of each image of outputs (N, A, 4 + K) that an average precision counts, cut at the input."""
    size = metadata.preprocess.width, metadata.preprocess.height
    found = find_objects(outputs, LEAST_SCORE, nms_iou_of(metadata))
    return [objects._replace(boxes=within(objects.boxes, size)) for objects in found]


def mean_ap(truths: Sequence[Boxes], found: Sequence[Detections], num_classes: int) -> float:
    """Return COCO's mAP, the mean over IoUs from 0.5 to 0.95."""
    return average_precision(truths, found, num_classes).means.get("map50_95", 0.0)


def ap_loss(
    truths: Sequence[Boxes], before: Sequence[Detections], after: Sequence[Detections], num_classes: int
) -> tuple[float, float, float]:
    """Return the mAP of two nets on the same images, and the standard deviation of what the second one loses.

    The deviation is the jackknife's that leaves out one of GROUPS groups of images at a time; of one image alone it is
    infinite.
    """
    own, other = (mean_ap(truths, found, num_classes) for found in (before, after))
    groups = min(GROUPS, len(truths))
    if groups < 2:
        return own, other, math.inf
    losses = []
    for group in range(groups):
        rest = [index for index in range(len(truths)) if index % groups != group]
        kept = [truths[index] for index in rest]
        pair = (mean_ap(kept, [found[index] for index in rest], num_classes) for found in (before, after))
        losses.append(next(pair) - next(pair))
    spread = np.array(losses) - np.mean(losses)
    return own, other, math.sqrt((groups - 1) / groups * float((spread**2).sum()))
