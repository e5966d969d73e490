"""webdataset's side of `tools.benchmark stream`: tar files over HTTP, decoded and augmented in its WebLoader.

As its documentation has it: the shards are shuffled for each epoch, the images in a buffer of 1,000; batches are made
in the loader processes. It reads each shard with curl, and keeps nothing on the disk.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import webdataset  # type: ignore[import-not-found]
from torchvision import transforms

from configs.schema import Config
from data_loader.preprocess import IMAGENET_MEAN, IMAGENET_STD
from tools.benchmark.protocol import RATE, Round, Turns

BUFFER = 1000


def make_loader(config: Config, urls: list[str], workers: int) -> Any:
    """Return the loader of the training batches, with the crops and flips of the config."""
    size = (config.img_height, config.img_width)
    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, tuple(config.random_crop_scale), tuple(config.random_crop_ratio)),
            transforms.RandomHorizontalFlip(config.horizontal_flip),
            transforms.ToTensor(),
            transforms.Normalize(config.mean or IMAGENET_MEAN, config.std or IMAGENET_STD),
        ]
    )
    dataset = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=config.seed, nodesplitter=None)
    pairs = dataset.shuffle(BUFFER).decode("pil").to_tuple("jpg", "cls").map_tuple(view, int)
    batches = pairs.batched(config.batch_size)
    return webdataset.WebLoader(batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


def main() -> None:
    """Run this side until the last round."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.peers.webdataset", allow_abbrev=False)
    parser.add_argument("--config", required=True, help="the config itself, as JSON")
    parser.add_argument("--urls", required=True, help="the shards, as JSON")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    turns = Turns()
    config = Config.model_validate(json.loads(args.config))
    loader = make_loader(config, json.loads(args.urls), args.workers)

    def play() -> Round:
        started = time.perf_counter()
        count = sum(len(images) for images, _ in loader)
        return {RATE: count / (time.perf_counter() - started)}

    turns.play(play, "webdataset")


if __name__ == "__main__":
    main()
