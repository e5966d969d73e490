"""timm's side of `tools.benchmark train` and `infer`: its loader, model, optimizer and autocast, in its scripts' order.

After train.py and inference.py of its repository (https://github.com/huggingface/pytorch-image-models), through its
public functions. What differs: no checkpoints, logs or validation; inference.py's table is written by Python's csv.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import LogitDistillationTask
from timm.utils import AverageMeter, random_seed

from tools.benchmark.memory import PEAK_GB, peak_gb, reset_peak
from tools.benchmark.protocol import RATE, Round, Turns

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RATE_OF_256 = 0.1  # --lr-base, for --lr-base-size images
EPOCHS = 300  # --epochs


def training(args: argparse.Namespace) -> Callable[[], Round]:
    """Return a round of train.py, an epoch, by its default flags or --amp --amp-dtype bfloat16 --channels-last."""
    random_seed(42, 0)
    model = create_model(args.model, num_classes=args.num_classes)
    loader = _training_loader(args, resolve_data_config(_input_of(args), model=model))
    model.to(device=DEVICE)
    if args.amp:
        model.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        model, opt="sgd", lr=RATE_OF_256 * args.batch_size / 256, weight_decay=2e-5, momentum=0.9
    )
    loss_of = LabelSmoothingCrossEntropy(smoothing=0.1).to(device=DEVICE)
    task = _distillation(model, loss_of, args) if args.teacher else None
    schedule, _ = create_scheduler_v2(optimizer, sched="cosine", num_epochs=EPOCHS, warmup_epochs=5, warmup_lr=1e-5)
    epoch = 0

    def play() -> Round:
        nonlocal epoch
        reset_peak()
        started, count = time.perf_counter(), 0
        losses = AverageMeter()
        model.train()
        optimizer.zero_grad()
        for number, (images, target) in enumerate(loader):
            if args.amp:
                images = images.contiguous(memory_format=torch.channels_last)
            with _autocast(args):
                loss = task(images, target)["loss"] if task else loss_of(model(images), target)
            loss.backward()
            optimizer.step()
            losses.update(loss.item(), len(images))
            optimizer.zero_grad()
            schedule.step_update(num_updates=epoch * len(loader) + number + 1, metric=losses.avg)
            count += len(images)
        seconds = time.perf_counter() - started
        epoch += 1
        schedule.step(epoch)
        return {RATE: count / seconds, PEAK_GB: peak_gb()}

    return play


def inference(args: argparse.Namespace) -> Callable[[], Round]:
    """Return a round of inference.py: a folder with --num-classes N --topk 1, from JPEG to CSV; its batch is 256."""
    model = create_model(args.model, num_classes=args.num_classes)
    data_config = resolve_data_config(_input_of(args), model=model)
    model = model.to(device=DEVICE).eval()
    if args.amp:
        model = model.to(memory_format=torch.channels_last)
    dataset = create_dataset("", root=args.data, split="validation")
    loader = create_loader(
        dataset, batch_size=args.batch_size, use_prefetcher=True, num_workers=args.workers, device=DEVICE, **data_config
    )
    place = tempfile.TemporaryDirectory()

    def play() -> Round:
        started = time.perf_counter()
        outputs, found = [], []
        with torch.inference_mode():
            for images, _ in loader:
                with _autocast(args):
                    output = model(images)
                output, indices = output.softmax(-1).topk(1)
                found.append(indices.cpu())
                outputs.append(output.float().cpu())
        rows = zip(
            dataset.filenames(basename=True), torch.cat(found).tolist(), torch.cat(outputs).tolist(), strict=True
        )
        with Path(place.name, "results.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("filename", "index", "prob"), *((name, *i, *p) for name, i, p in rows)])
        return {RATE: len(dataset) / (time.perf_counter() - started)}

    return play


def _distillation(model: Any, loss_of: Any, args: argparse.Namespace) -> Any:
    """Return --kd-distill-type logit, with a teacher of random weights, as timm's train.py makes it."""
    teacher = create_model(args.teacher, num_classes=args.num_classes).to(device=DEVICE).eval().requires_grad_(False)
    if args.amp:
        teacher.to(memory_format=torch.channels_last)
    return LogitDistillationTask(
        model, teacher, criterion=loss_of, distill_loss_weight=1.0, temperature=4.0, device=DEVICE, verbose=False
    ).train()


def _training_loader(args: argparse.Namespace, data_config: dict[str, Any]) -> Any:
    return create_loader(
        create_dataset("", root=args.data, split="train", is_training=True, batch_size=args.batch_size),
        input_size=data_config["input_size"],
        mean=data_config["mean"],
        std=data_config["std"],
        device=DEVICE,
        use_prefetcher=True,
        batch_size=args.batch_size,
        is_training=True,
        scale=[0.08, 1.0],
        ratio=[3 / 4, 4 / 3],
        hflip=0.5,
        color_jitter=0.4,
        interpolation="random",
        num_workers=args.workers,
        worker_seeding="all",
    )


def _input_of(args: argparse.Namespace) -> dict[str, Any]:
    return {"img_size": args.size}


def _autocast(args: argparse.Namespace) -> AbstractContextManager[None]:
    return torch.autocast(DEVICE.type, dtype=torch.bfloat16) if args.amp else nullcontext()


def main() -> None:
    """Run this side until the last round."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.peers.timm", allow_abbrev=False)
    kinds = {"train": training, "folder": inference}
    parser.add_argument("what", choices=kinds)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="resnet34")
    for name in ("--num_classes", "--size", "--batch_size", "--workers"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--teacher", default="")
    args = parser.parse_args()
    turns = Turns()
    turns.play(kinds[args.what](args), "timm")


if __name__ == "__main__":
    main()
