"""A validation's worst masks: image, truth, prediction and error side by side; the confusion of pixels."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from data_loader.band_image import gaps_of
from data_loader.mask_classes import VOID
from data_loader.mask_target import MaskTarget
from data_loader.preprocess import ImageError, Preprocess, joined
from data_loader.samples import SampleList
from trainers.evaluation.segmentation_metrics import SegmentationValidation
from trainers.evaluation.validation import evaluating
from trainers.reporting.heatmaps import net_of_checkpoint
from trainers.reporting.tensorboard_logger import TrainingLogger
from visualization import raster
from visualization.masks import colour_table, coloured, error_image, strip

logger = logging.getLogger(__name__)


def worst_strips(
    net: torch.nn.Module,
    preprocess: Preprocess,
    target: MaskTarget,
    samples: SampleList,
    paths: Sequence[str],
    device: torch.device,
) -> dict[str, np.ndarray]:
    """Return by its path each image beside its mask, the net's prediction, and where that is wrong: uint8 (H, W, 3).

    Never stops a training: a strip that cannot be made is missing, and the log has the reason. The net stays as it was.
    """
    made: dict[str, np.ndarray] = {}
    table = colour_table([found.color for found in target.classes])
    wanted = set(paths)
    try:
        with torch.inference_mode(), evaluating(net):
            for sample in (sample for sample in samples.samples if sample.path in wanted):
                with suppress(ImageError):  # it is gone
                    decoded = [preprocess.decode(path) for path in target.image_paths(sample)]
                    images, mask = [preprocess.fit(image) for image in decoded], target.load(sample)
                    if (gaps := gaps_of(decoded)) is not None:
                        mask = target.without(mask, gaps)
                    truth = target.fit(preprocess, mask)  # (H, W)
                    batch = torch.from_numpy(joined(images)).permute(2, 0, 1)[None].to(device)  # (1, C, H, W)
                    prediction = net(preprocess.normalize(batch))[0].argmax(0).cpu().numpy().astype(np.uint8)
                    panels = [*images, coloured(truth, table), coloured(prediction, table)]
                    made[sample.path] = strip([*panels, error_image(truth, prediction, images[-1], VOID)])
    except Exception as error:  # whatever it is, such as too little memory
        logger.info("masks of the worst images: %s", error)
    return made


def best_strips(
    checkpoint: str | Path, target: MaskTarget, samples: SampleList, paths: Sequence[str], device: torch.device
) -> dict[str, np.ndarray]:
    """Return `worst_strips` of the net in a checkpoint; none where it cannot be built again."""
    best = net_of_checkpoint(checkpoint, device) if paths else None
    return worst_strips(best[0], best[1].preprocess, target, samples, paths, device) if best else {}


def log_masks(
    tensorboard: TrainingLogger,
    result: SegmentationValidation,
    class_names: Sequence[str],
    step: int,
    strips: Mapping[str, np.ndarray],
) -> None:
    """Show the confusion of pixels, and the worst images below one another, the worst first."""
    tensorboard.image("val/confusion_matrix", raster.confusion_matrix_image(result.confusion, class_names), step)
    chosen = [strips[row.path] for row in result.worst if row.path in strips]
    if chosen:
        tensorboard.image("val/worst", np.concatenate(chosen, axis=0), step)
