"""A validation's worst images with their boxes: what is there, and what the net finds, side by side."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from artifacts.detections import Detections, find_objects
from data_loader.box_geometry import unfitted
from data_loader.box_target import Boxes
from data_loader.mask_classes import MaskClass
from data_loader.preprocess import ImageError, Preprocess, as_array
from data_loader.samples import SampleList
from trainers.evaluation.validation import evaluating
from trainers.reporting.heatmaps import net_of_checkpoint
from visualization.boxes import draw_boxes
from visualization.masks import rgb, strip

logger = logging.getLogger(__name__)


def worst_boxes(
    net: torch.nn.Module,
    preprocess: Preprocess,
    classes: Sequence[MaskClass],
    samples: SampleList,
    paths: Sequence[str],
    threshold: float,
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Return by its path each image with its objects, beside the same with what the net finds: uint8 (H, W, 3).

    Never stops a training: one that cannot be made is missing, and the log has the reason. The net stays as it was.
    """
    made: dict[str, np.ndarray] = {}
    wanted = set(paths)
    try:
        with torch.inference_mode(), evaluating(net):
            for sample in (sample for sample in samples.samples if sample.path in wanted):
                with suppress(ImageError):  # it is gone
                    image = as_array(preprocess.decode(sample.path))
                    batch = torch.from_numpy(preprocess(image))[None].to(device)  # (1, C, H, W)
                    found = find_objects(net(batch).float().cpu().numpy(), threshold)[0]
                    boxes = unfitted(preprocess, found.boxes, (image.shape[1], image.shape[0]))
                    truth = with_truth(image, sample.target, classes)
                    made[sample.path] = strip([truth, with_found(image, found._replace(boxes=boxes), classes)])
    except Exception as error:  # whatever it is, such as too little memory
        logger.info("boxes of the worst images: %s", error)
    return made


def best_boxes(
    checkpoint: str | Path, samples: SampleList, paths: Sequence[str], threshold: float, device: torch.device
) -> dict[str, np.ndarray]:
    """Return `worst_boxes` of the net in a checkpoint; none where it cannot be built again."""
    best = net_of_checkpoint(checkpoint, device) if paths else None
    if best is None:
        return {}
    net, metadata = best
    return worst_boxes(net, metadata.preprocess, metadata.mask_classes, samples, paths, threshold, device)


def with_truth(image: np.ndarray, truth: Boxes, classes: Sequence[MaskClass]) -> np.ndarray:
    """Return an image with its objects, uint8 (H, W, 3); of ignored ones the corners."""
    texts = [classes[label].title for label in truth.labels]
    colours = [classes[label].color for label in truth.labels]
    return draw_boxes(image, truth.boxes, texts, colours, truth.ignored.tolist())


def with_found(image: np.ndarray, found: Detections, classes: Sequence[MaskClass]) -> np.ndarray:
    """Return an image with what was found in it and the scores, the highest on top, uint8 (H, W, 3)."""
    order = slice(None, None, -1)
    labels, scores = found.labels[order].tolist(), found.scores[order].tolist()
    texts = [f"{classes[label].title} {score:.2f}" for label, score in zip(labels, scores, strict=True)]
    return draw_boxes(image, found.boxes[order], texts, [classes[label].color for label in labels])


def stacked(strips: Sequence[np.ndarray]) -> np.ndarray:
    """Return images of any sizes below one another, on black."""
    width = max(image.shape[1] for image in strips)
    return np.concatenate([np.pad(rgb(image), ((0, 0), (0, width - image.shape[1]), (0, 0))) for image in strips])
