"""Heat maps of the pictures that a validation got most wrong: where the net saw its wrong answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from artifacts.checkpoint import load_checkpoint
from data_loader.preprocess import PictureError, Preprocess, as_array
from nets.net_interface import build_net
from nets.support.saliency import heat_mapper
from visualization.heatmap_overlay import heat_map_picture

SIDES_PX = (192, 384)  # of the pictures, which become thumbnails
logger = logging.getLogger(__name__)


def worst_heat_maps(
    net: torch.nn.Module, preprocess: Preprocess, pictures: Sequence[tuple[str, int]], device: torch.device
) -> dict[str, np.ndarray]:
    """Give by its path each decoded, uint8 (H, W, 3), under the map of the class that stands beside the path.

    An ornament, which never stops a training: what cannot be made is missing, and the log says why. The net stays as
    it was.
    """
    made: dict[str, np.ndarray] = {}
    try:
        mapper = heat_mapper(net, preprocess.channels, preprocess.height, preprocess.width)
        for path, label in pictures:
            with suppress(PictureError):  # it is gone
                decoded = preprocess.decode(path)
                image = torch.from_numpy(preprocess(as_array(decoded)))[None].to(device)  # (1, C, H, W)
                heat = mapper(image, torch.tensor([label], device=device)).maps[0].numpy()
                made[path] = np.asarray(heat_map_picture(decoded, heat, preprocess.resize, sides_px=SIDES_PX))
    except Exception as error:  # whatever it is: too little memory, a net of unknown build
        logger.info("heat maps of the worst pictures: %s", error)
    return made


def best_heat_maps(
    checkpoint: str | Path, pictures: Sequence[tuple[str, int]], device: torch.device
) -> dict[str, np.ndarray]:
    """Give `worst_heat_maps` of the net in a checkpoint; none where it cannot be built again."""
    if not pictures:
        return {}
    try:
        saved = load_checkpoint(checkpoint)
        facts = saved.facts
        net = build_net(
            facts.net["module"],
            facts.net["name"],
            num_classes=facts.num_classes,
            num_channels=facts.preprocess.channels,
            img_height=facts.preprocess.height,
            img_width=facts.preprocess.width,
            model_args=facts.net["args"],
        )
        net.load_state_dict(saved.deployed())
        net = net.to(device).eval()
    except Exception as error:
        logger.info("heat maps of the worst pictures: %s", error)
        return {}
    return worst_heat_maps(net, facts.preprocess, pictures, device)
