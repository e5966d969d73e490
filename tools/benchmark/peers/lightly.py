"""lightly's side of `tools.benchmark simsiam`: its transform, heads and loss, in the order of its example loop.

After examples/pytorch/simsiam.py of https://github.com/lightly-ai/lightly. What differs from it: the sizes of the heads
and the augmentation are those of our config, autocast, loader processes that fit this machine and stay alive.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity  # type: ignore[import-not-found]
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead  # type: ignore[import-not-found]
from lightly.transforms import SimSiamTransform  # type: ignore[import-not-found]
from torch import nn
from torch.utils.data import DataLoader

from configs.schema import Config
from tools.benchmark.protocol import RATE, Round, Turns

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FEATURES = 512  # of a ResNet-18
RATE_OF_256 = 0.06  # the example's


class SimSiam(nn.Module):
    """The example's net: a ResNet-18 without its last layer, and lightly's two heads."""

    def __init__(self, *, small_stem: bool, projector_size: int, predictor_size: int) -> None:
        super().__init__()
        resnet = torchvision.models.resnet18()
        if small_stem:
            resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
            resnet.maxpool = nn.Identity()
        self.backbone = nn.Sequential(*list(resnet.children())[:-1])
        self.projection_head = SimSiamProjectionHead(FEATURES, projector_size, projector_size)
        self.prediction_head = SimSiamPredictionHead(projector_size, predictor_size, projector_size)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the projection, without a gradient, and the prediction of one view, each (N, P)."""
        features = self.backbone(images).flatten(start_dim=1)  # (N, D, 1, 1) to (N, D)
        projection = self.projection_head(features)
        return projection.detach(), self.prediction_head(projection)


def make_loader(config: Config, workers: int) -> DataLoader[Any]:
    """Return the loader of two views of each image, with lightly's transform in our config's settings."""
    brightness, contrast, saturation, hue = config.color_jitter
    transform = SimSiamTransform(
        input_size=config.img_height,
        cj_prob=config.color_jitter_probability,
        cj_bright=brightness,
        cj_contrast=contrast,
        cj_sat=saturation,
        cj_hue=hue,
        min_scale=config.random_crop_scale[0],
        random_gray_scale=config.random_grayscale,
        gaussian_blur=config.gaussian_blur,
        hf_prob=config.horizontal_flip,
        normalize={"mean": config.mean, "std": config.std},
    )
    dataset = torchvision.datasets.ImageFolder(config.train_data_root_dir, transform)
    return DataLoader(
        dataset, config.batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
    )


def main() -> None:
    """Run this side until the last round."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.peers.lightly", allow_abbrev=False)
    parser.add_argument("--config", required=True, help="the config itself, as JSON")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--channels_last", action="store_true")
    args = parser.parse_args()
    turns = Turns()
    config = Config.model_validate(json.loads(args.config))
    own = config.net_args()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    model = SimSiam(
        small_stem=own["stem"] == "small", projector_size=own["projector_size"], predictor_size=own["predictor_size"]
    ).to(device=DEVICE, memory_format=layout)  # type: ignore[call-overload]
    loader = make_loader(config, args.workers)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE_OF_256)

    def play() -> Round:
        started, count = time.perf_counter(), 0
        total = torch.zeros((), device=DEVICE)
        for batch in loader:
            x0, x1 = (view.to(DEVICE).contiguous(memory_format=layout) for view in batch[0])
            with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
                z0, p0 = model(x0)
                z1, p1 = model(x1)
                loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
            total += loss.detach()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            count += len(x0)
        total.item()  # wait for the device
        return {RATE: count / (time.perf_counter() - started)}

    turns.play(play, "lightly")


if __name__ == "__main__":
    main()
