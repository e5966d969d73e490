"""This program's own sides of a benchmark, each a process with the protocol of `tools.benchmark.protocol`.

They call the functions that train.py and inference.py call.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tools.benchmark.memory import PEAK_GB, peak_gb, reset_peak
from tools.benchmark.protocol import MINUTES, RATE, Round, Turns

if TYPE_CHECKING:
    from configs.schema import Config
    from trainers.trainer import Trainer

ENDLESS = 1_000_000  # epochs


class _LastRoundError(Exception):
    """Ends a training after the last round."""


def train(turns: Turns, config: Config) -> None:
    """Train; a round is an epoch, its rate the trainer's own images per second, without saving."""
    before = (0, 0.0)

    def log(text: str) -> None:
        nonlocal before
        if not text.startswith("epoch "):
            return
        after = trainer.progress.pictures_trained, trainer.progress.train_seconds
        turns.report({RATE: (after[0] - before[0]) / (after[1] - before[1]), PEAK_GB: peak_gb()})
        before = after
        if not turns.wait():
            raise _LastRoundError
        reset_peak()

    trainer = make_trainer(config, log)
    turns.ready("torch")
    if turns.wait():
        reset_peak()
        with contextlib.suppress(_LastRoundError):
            trainer.fit()


def fit(turns: Turns, config: Config) -> None:
    """Train to the end; a round is a training with the next seed, its rate the last validation's measure in percent."""
    from trainers.reporting.reporter import log_nothing

    seeds = itertools.count(config.seed)

    def play() -> Round:
        started = time.perf_counter()
        trainer = make_trainer(config.model_copy(update={"seed": next(seeds)}), log_nothing)
        trainer.fit()
        score: float = trainer.progress.curves["val"][-1][trainer.task.measure.key]
        return {RATE: 100 * score, MINUTES: (time.perf_counter() - started) / 60}

    turns.play(play, "torch")


def make_trainer(config: Config, log: Callable[[str], None]) -> Trainer:
    """Build the trainer as train.py does, for one process. Raises UserError."""
    from trainers.builder import build_start_net, build_trainer
    from trainers.data.reading import read_data, read_unlabelled_data
    from trainers.reporting.reporter import Reporter, log_nothing
    from trainers.runtime.device import Runtime, choose_device, choose_precision

    device, _ = choose_device(config.gpu_ids())
    runtime = Runtime(device, choose_precision(config.precision, device))
    train, val, _ = read_data(config, runtime.world, log_nothing)
    net = build_start_net(config, log_nothing)
    unlabelled, _ = read_unlabelled_data(config, train, val, runtime.world, log_nothing)
    return build_trainer(config, net, train, val, runtime=runtime, reporter=Reporter(log), unlabelled=unlabelled)


def load(turns: Turns, config: Config, *, with_start: bool) -> None:
    """Read the training images, ready for the net; a round is an epoch, `with_start` including the loader's start."""
    images = EpochOfImages(config)

    def play() -> Round:
        nonlocal images
        started = time.perf_counter()
        if with_start:
            images = EpochOfImages(config)
        count = images.read()
        return {RATE: count / (time.perf_counter() - started)}

    turns.play(play, "torch")


class EpochOfImages:
    """The training batches of a config, augmented and normalised, float32 (N, C, H, W)."""

    def __init__(self, config: Config) -> None:
        import torch

        from artifacts.metadata import build_metadata
        from common.malloc import keep_freed_memory
        from data_loader.augment import mirrored_half
        from data_loader.epoch_plan import EpochBatches
        from data_loader.loaders import training_loader
        from trainers.builder import batch_views, training_images
        from trainers.data.reading import read_data
        from trainers.reporting.reporter import log_nothing
        from trainers.runtime.device import SINGLE, choose_device

        keep_freed_memory()
        samples, _, _ = read_data(config, SINGLE, log_nothing)
        self.config, self.samples, self.epoch = config, samples, 0
        self.preprocess = build_metadata(config, samples.class_names).preprocess
        self.views = batch_views(config, self.preprocess, 1)
        self.batches = EpochBatches()
        self.mirrored_half = torch.from_numpy(mirrored_half(config.seed, len(samples.samples)))
        data = training_images(config, samples, self.preprocess, 1)
        self.device, _ = choose_device(config.gpu_ids())
        self.loader = training_loader(data, self.batches, config.dataloader_workers, device=self.device)

    def read(self) -> int:
        """Read an epoch; return the number of images."""
        from data_loader.bad_images import checked
        from data_loader.epoch_plan import epoch_order, plan_epoch

        total = len(self.samples.samples)
        order = epoch_order(total, self.epoch, self.config.seed)
        self.batches.set_epoch(self.epoch, order, plan_epoch(total, self.config.batch_size))
        self.epoch += 1
        count = 0
        for batch in self.loader:
            images = checked(batch)["image"].to(self.device)
            if self.views is not None:
                mirrored = self.mirrored_half[batch["index"]] == (self.epoch % 2 == 0)
                images = self.views(images, mirrored.to(self.device))
            images = self.preprocess.normalize(images)
            count += len(images)
        if self.device.type == "cuda":
            images[:1].cpu()  # wait for the device
        return count


def stream(turns: Turns, config: Config) -> None:
    """Read the training batches as a training does, the shards of a pack from an address; a round is an epoch."""
    from trainers.reporting.reporter import log_nothing

    batches = make_trainer(config, log_nothing).batches
    epochs = itertools.count()

    def play() -> Round:
        started = time.perf_counter()
        count = sum(len(batch["image"]) for batch in batches.training(next(epochs), batches.plan()))
        return {RATE: count / (time.perf_counter() - started)}

    turns.play(play, "torch")
    batches.close()


def folder(turns: Turns, weights: Path, images: Path, batch_size: int, workers: int, precision: str) -> None:
    """Classify all images of a folder and write a CSV, as inference.py does; a round is the folder."""
    from data_loader.image_files import iter_images
    from deploy.backends.loading import load_backend
    from deploy.inference.predictor import Predictor
    from deploy.inference.result_writer import open_results

    predictor = Predictor(*load_backend(weights, precision=precision))
    with tempfile.TemporaryDirectory() as place:

        def play() -> Round:
            started, count = time.perf_counter(), 0
            with open_results(Path(place, "results.csv"), predictor.csv_columns(1)) as results:
                for prediction in predictor.predict_files(iter_images(images), batch_size, 1, workers):
                    results.write(prediction)
                    count += 1
            return {RATE: count / (time.perf_counter() - started)}

        turns.play(play, "torch")


def main() -> None:
    """Run one side until the last round."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.own_runner", allow_abbrev=False)
    parser.add_argument("what", choices=("train", "fit", "load", "first_load", "stream", "folder"))
    parser.add_argument("--config", help="the config itself, as JSON")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", default="auto")
    args = parser.parse_args()
    turns = Turns()
    if args.what == "folder":
        folder(turns, args.weights, args.images, args.batch_size, args.workers, args.precision)
        return
    from configs.schema import Config

    with tempfile.TemporaryDirectory() as place:
        own = {"save_path": place, "log_path": place, "is_tensorboard": False, "next_stage": {}}
        if args.what != "fit":
            own |= {"num_epochs": ENDLESS, "validation_interval": ENDLESS}
        config = Config.model_validate({**json.loads(args.config), **own})
        if args.what in ("train", "fit", "stream"):
            {"train": train, "fit": fit, "stream": stream}[args.what](turns, config)
        else:
            load(turns, config, with_start=args.what == "first_load")


if __name__ == "__main__":
    main()
