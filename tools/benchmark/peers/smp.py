"""The side of `tools.benchmark masks` that trains a LinkNet of segmentation_models_pytorch in a plain loop.

Its batches are read, cropped and normalised by the code of train.py, and rates, weight decay and number of steps are
those of our config, so that only net, loop and precision differ. The loop is that of PyTorch's tutorials: AdamW for all
parameters, cross entropy over all pixels of a batch, a rate a step, no EMA.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import segmentation_models_pytorch  # type: ignore[import-not-found]
import torch
from torch.nn.functional import cross_entropy

from configs.schema import Config
from data_loader.mask_classes import VOID
from nets.linknet_module import BACKBONES
from tools.benchmark.memory import PEAK_GB, peak_gb, reset_peak
from tools.benchmark.own_runner import make_trainer
from tools.benchmark.protocol import MINUTES, RATE, Round, Turns
from trainers.optim.lr_schedule import schedule_of
from trainers.reporting.reporter import log_nothing

PACKAGE = "segmentation_models_pytorch"


class PlainLoop:
    """A LinkNet from random weights, and its training."""

    def __init__(self, config: Config, *, bf16: bool) -> None:
        self.config, self.bf16, self.epoch = config, bf16, 0
        self.batches = make_trainer(config, log_nothing).batches
        self.schedule = schedule_of(config, 1)
        torch.manual_seed(config.seed)
        encoder = BACKBONES[config.model_net_name]
        net = segmentation_models_pytorch.Linknet(encoder, encoder_weights=None, classes=config.num_classes)
        self.layout = torch.channels_last if bf16 else torch.contiguous_format
        self.device = self.batches.runtime.device
        self.net = net.to(device=self.device, memory_format=self.layout)
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )

    def train_epoch(self) -> int:
        """Train an epoch; return the number of images."""
        self.net.train()
        steps, count = self.batches.plan(), 0
        for number, batch in enumerate(self.batches.training(self.epoch, steps)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.schedule.at(self.epoch + number / len(steps))
            loss = cross_entropy(self._logits(batch), batch["target"].long(), ignore_index=VOID)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            count += len(batch["target"])
        self.epoch += 1
        return count

    def mean_iou(self) -> float:
        """Return the mean IoU on the validation images in percent, over the classes that are there."""
        self.net.eval()
        classes = self.config.num_classes
        confusion = torch.zeros(classes * classes, dtype=torch.int64, device=self.device)
        with torch.inference_mode():
            for batch in self.batches.validation():
                truth, found = batch["target"].long(), self._logits(batch).argmax(1)
                known = truth != VOID
                confusion += torch.bincount(truth[known] * classes + found[known], minlength=classes * classes)
        counts = confusion.view(classes, classes).double()
        union = counts.sum(0) + counts.sum(1) - counts.diagonal()
        return float(100 * (counts.diagonal() / union)[union > 0].mean())

    def _logits(self, batch: dict[str, Any]) -> torch.Tensor:
        images = batch["image"].contiguous(memory_format=self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits: torch.Tensor = self.net(images)
        return logits.float()


def main() -> None:
    """Run this side until the last round: an epoch, or with --fit a whole training, each with the next seed."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.peers.smp", allow_abbrev=False)
    parser.add_argument("--config", required=True, help="the config itself, as JSON")
    parser.add_argument("--bf16", action="store_true", help="autocast and channels_last")
    parser.add_argument("--fit", action="store_true")
    args = parser.parse_args()
    turns = Turns()
    config = Config.model_validate(json.loads(args.config))
    loop = PlainLoop(config, bf16=args.bf16)
    seeds = iter(range(config.seed, config.seed + 1000))

    def fit() -> Round:
        started = time.perf_counter()
        whole = PlainLoop(config.model_copy(update={"seed": next(seeds)}), bf16=args.bf16)
        for _ in range(config.num_epochs):
            whole.train_epoch()
        return {RATE: whole.mean_iou(), MINUTES: (time.perf_counter() - started) / 60}

    def epoch() -> Round:
        reset_peak()
        started = time.perf_counter()
        count = loop.train_epoch()
        return {RATE: count / (time.perf_counter() - started), PEAK_GB: peak_gb()}

    turns.play(fit if args.fit else epoch, PACKAGE)


if __name__ == "__main__":
    main()
