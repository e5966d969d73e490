"""Heat maps of a validation's worst images: the regions that their wrong predictions rest on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from artifacts.checkpoint import load_checkpoint
from artifacts.metadata import ModelMetadata
from data_loader.preprocess import ImageError, Preprocess, as_array
from nets.net_interface import build_net
from nets.support.saliency import heat_mapper
from visualization.heatmap_overlay import heat_map_image

SIDES_PX = (192, 384)  # of the images, which become thumbnails
logger = logging.getLogger(__name__)


def worst_heat_maps(
    net: torch.nn.Module, preprocess: Preprocess, images: Sequence[tuple[str, int]], device: torch.device
) -> dict[str, np.ndarray]:
    """Return by its path each image, uint8 (H, W, 3), under the map of the class that stands beside the path.

    Never stops a training: a map that cannot be made is missing, and the log has the reason. The net stays as it was.
    """
    made: dict[str, np.ndarray] = {}
    try:
        mapper = heat_mapper(net, preprocess.channels, preprocess.height, preprocess.width)
        for path, label in images:
            with suppress(ImageError):  # it is gone
                decoded = preprocess.decode(path)
                image = torch.from_numpy(preprocess(as_array(decoded)))[None].to(device)  # (1, C, H, W)
                heat = mapper(image, torch.tensor([label], device=device)).maps[0].numpy()
                shown = decoded.convert("RGB")
                made[path] = np.asarray(heat_map_image(shown, heat, preprocess.resize, sides_px=SIDES_PX))
    except Exception as error:  # whatever it is: too little memory, a net of unknown build
        logger.info("heat maps of the worst images: %s", error)
    return made


def net_of_checkpoint(checkpoint: str | Path, device: torch.device) -> tuple[torch.nn.Module, ModelMetadata] | None:
    """Return the deployed net of a checkpoint in eval mode, and its metadata; None, and the reason in the log, where it
    cannot be built again: the report then has no images of it.
    """
    try:
        saved = load_checkpoint(checkpoint)
        net = build_net(**saved.metadata.net_arguments())
        net.load_state_dict(saved.deployed())
        return net.to(device).eval(), saved.metadata
    except Exception as error:  # whatever it is: the training is over, and its report comes
        logger.info("the worst images: %s", error)
        return None


def best_heat_maps(
    checkpoint: str | Path, images: Sequence[tuple[str, int]], device: torch.device
) -> dict[str, np.ndarray]:
    """Return `worst_heat_maps` of the net in a checkpoint; none where it cannot be built again."""
    best = net_of_checkpoint(checkpoint, device) if images else None
    return worst_heat_maps(best[0], best[1].preprocess, images, device) if best else {}
