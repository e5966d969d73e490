"""The plain side of `tools.benchmark load`: torchvision's ImageFolder and transforms under torch's DataLoader."""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from configs.schema import Config
from data_loader.preprocess import IMAGENET_MEAN, IMAGENET_STD
from tools.benchmark.protocol import RATE, Round, Turns


def make_loader(config: Config, workers: int) -> DataLoader[Any]:
    """Return the loader of a config's training images, with its augmentation, as tutorials write it."""
    size = (config.img_height, config.img_width)
    steps: list[Any] = [transforms.Resize(size)]
    if config.data_aug:
        steps = [transforms.RandomResizedCrop(size, tuple(config.random_crop_scale), tuple(config.random_crop_ratio))]
        steps += [transforms.RandomHorizontalFlip(config.horizontal_flip)] if config.horizontal_flip else []
        if any(config.color_jitter):
            steps.append(transforms.ColorJitter(*config.color_jitter))
    normalize = transforms.Normalize(config.mean or IMAGENET_MEAN, config.std or IMAGENET_STD)
    dataset = ImageFolder(config.train_data_root_dir, transforms.Compose([*steps, transforms.ToTensor(), normalize]))
    return DataLoader(dataset, config.batch_size, shuffle=True, num_workers=workers, persistent_workers=workers > 0)


def main() -> None:
    """Run this side until the last round."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.peers.imagefolder", allow_abbrev=False)
    parser.add_argument("--config", required=True, help="the config itself, as JSON")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--first", action="store_true", help="a new loader for every round")
    args = parser.parse_args()
    turns = Turns()
    config = Config.model_validate(json.loads(args.config))
    loader = make_loader(config, args.workers)

    def play() -> Round:
        nonlocal loader
        started = time.perf_counter()
        if args.first:
            loader = make_loader(config, args.workers)
        count = sum(len(images) for images, _ in loader)
        return {RATE: count / (time.perf_counter() - started)}

    turns.play(play, "torchvision")


if __name__ == "__main__":
    main()
