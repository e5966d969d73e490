"""Measure this program on a GPU against its targets, in under nine minutes: `python -m tools.gpu_check --json F`.

Each part runs in a process of its own with a time limit; a part that fails or exceeds it is reported, and the others
still run. CIFAR-10, in class folders below train/ and test/, is read from --cifar10; without it its parts are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import FlagParser, run_program
from common.errors import UserError
from common.paths import ROOT

if TYPE_CHECKING:
    import torch

    from configs.schema import Config

PROGRAM = "python -m tools.gpu_check"
IMAGES, CLASSES = 8192, 5  # of the synthetic training set
WARM_EPOCHS = 2
CIFAR10_EPOCHS = 40
REPEATS = 50


class NoGpuError(UserError):
    """A machine without a CUDA device; the message is one sentence for the user."""


@dataclass(frozen=True)
class Figure:
    """One measured figure and its target; `aim` is a lower bound where `at_least`, else an upper bound."""

    part: str
    what: str
    value: float
    unit: str
    aim: float
    at_least: bool = True

    def is_reached(self) -> bool:
        """Return whether the target was reached."""
        return self.value >= self.aim if self.at_least else self.value <= self.aim


@dataclass(frozen=True)
class Part:
    """A measurement and its time limit."""

    measure: Callable[[argparse.Namespace], Iterator[Figure]]
    limit_s: float
    needs_cifar10: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the parts; return 0, 1 where a part failed, or 2 where there is no GPU."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Measure the parts, print and write the figures; return the exit code. Raises NoGpuError, OSError."""
    if args.part:
        for figure in PARTS[args.part].measure(args):
            print(json.dumps(asdict(figure)), flush=True)
        return 0
    import torch

    if not torch.cuda.is_available():
        raise NoGpuError("there is no CUDA device here")
    machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    print(machine, flush=True)
    figures, failures = [], {}
    for name in args.parts:
        measured, failure = run_part(name, args.cifar10)
        figures += measured
        if failure:
            failures[name] = failure
            print(f"{name}: {failure}", flush=True)
        for figure in measured:
            print(format_figure(figure), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "figures": [asdict(figure) for figure in figures], "failures": failures}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 1 if failures else 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.gpu_check."""
    parser = FlagParser(prog=PROGRAM, description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--cifar10", metavar="DIR", type=Path, help="CIFAR-10: DIR/train/CLASS/*.png and DIR/test/CLASS/*.png")
    add("--json", metavar="F", type=Path, help="also write the figures")
    add(
        "--parts",
        metavar="PART",
        nargs="+",
        choices=tuple(PARTS),
        default=list(PARTS),
        help=f"of {', '.join(PARTS)} (all)",
    )
    add("--part", choices=tuple(PARTS), help=argparse.SUPPRESS)  # the process of one of them
    return parser


def run_part(name: str, cifar10: Path | None) -> tuple[list[Figure], str]:
    """Measure a part in a process of its own; return its figures and, where it failed, the reason."""
    part = PARTS[name]
    if part.needs_cifar10 and cifar10 is None:
        return [], "not measured: it needs --cifar10"
    command = [sys.executable, "-m", "tools.gpu_check", "--part", name]
    command += ["--cifar10", str(cifar10.resolve())] if cifar10 else []
    failure = ""
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
        try:
            output, _ = running.communicate(timeout=part.limit_s)
        except subprocess.TimeoutExpired:
            running.kill()
            output, _ = running.communicate()
            failure = f"it took more than {part.limit_s:g} seconds"
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    if running.returncode and not failure:
        failure = lines[-1] if lines else f"it ended with exit code {running.returncode}"
    return [Figure(**json.loads(line)) for line in output.splitlines() if line.startswith("{")], failure


def format_figure(figure: Figure) -> str:
    """Return a figure as a line of the table."""
    sign = "reached" if figure.is_reached() else "missed "
    bound = "at least" if figure.at_least else "at most"
    return f"{sign} {figure.part:8} {figure.what}: {figure.value:.4g} {figure.unit} ({bound} {figure.aim:g})"


def train(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield images per second of GeM_ResNet_AVP resnet34 at 128 px: eager, compiled, compiled with CUDA graphs."""
    with tempfile.TemporaryDirectory() as folder:
        make_images(Path(folder), IMAGES, 128)
        for way, mode in {"": False, ", compiled": True, ", compiled, CUDA graphs": "reduce-overhead"}.items():
            config = training_config(Path(folder), compile=mode)
            name = f"resnet34 128 px, batch {config.batch_size}{way}"
            yield Figure("train", name, median_rate(config, epochs=8), "images/s", 28_000)


def training_config(folder: Path, **values: Any) -> Config:
    """Return the config of the training part."""
    from configs.schema import Config

    return Config.model_validate(
        {
            "model_module_name": "GeM_ResNet_module",
            "model_net_name": "GeM_ResNet_AVP",
            "model_args": {"model_type": "resnet34"},
            **{"img_height": 128, "img_width": 128, "num_classes": CLASSES, "batch_size": 512},
            **{"train_data_root_dir": str(folder), "val_data_root_dir": str(folder)},
            **{"data_cache": "ram", "augment_on": "device", "dataloader_workers": 0, "num_epochs": 1000},
            **{"validation_interval": 1000, "save_path": str(folder / "logs"), "is_tensorboard": False},
            **values,
        }
    )


def median_rate(config: Config, epochs: int) -> float:
    """Train for `epochs` after the first two, and return the median of their images per second."""
    from tools.benchmark.own_runner import make_trainer

    class Enough(Exception):
        pass

    def log(text: str) -> None:
        if text.startswith("epoch "):
            progress = trainer.progress
            seen.append((progress.pictures_trained, progress.train_seconds))
            if len(seen) == WARM_EPOCHS + epochs:
                raise Enough

    seen: list[tuple[int, float]] = []
    trainer = make_trainer(config, log)
    with contextlib.suppress(Enough):
        trainer.fit()
    pairs = zip(seen[WARM_EPOCHS - 1 :], seen[WARM_EPOCHS:], strict=False)
    return statistics.median((after[0] - before[0]) / (after[1] - before[1]) for before, after in pairs)


def forward(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield milliseconds of a bf16 forward pass at 128 px: eager, and replayed from a CUDA graph."""
    import torch

    net = deployed_net(torch.device("cuda"))
    for batch_size, aim in ((32, 0.40), (1, 0.25)):
        images = torch.rand(batch_size, 3, 128, 128, device="cuda", dtype=torch.bfloat16)
        images = images.to(memory_format=torch.channels_last)
        plain = forward_ms(partial(net, images), images.device)
        yield Figure("forward", f"batch {batch_size}, eager", plain, "ms", aim, at_least=False)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            net(images)
        replayed = forward_ms(graph.replay, images.device)
        yield Figure("forward", f"batch {batch_size}, CUDA graph", replayed, "ms", aim, at_least=False)


def deployed_net(device: torch.device) -> torch.nn.Module:
    """Return a GeM_ResNet_AVP resnet34 in bf16, in eval mode."""
    import torch

    from nets.net_interface import build_net

    net = build_net(
        "GeM_ResNet_module",
        "GeM_ResNet_AVP",
        num_classes=CLASSES,
        img_height=128,
        img_width=128,
        model_args={"model_type": "resnet34"},
    )
    return net.eval().requires_grad_(False).to(device, torch.bfloat16).to(memory_format=torch.channels_last)


def forward_ms(call: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Return the median milliseconds of a call, synchronised with the device."""
    import torch

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        for _ in range(5):
            call()
        times = []
        for _ in range(repeats):
            wait()
            started = time.perf_counter()
            call()
            wait()
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1000


def cifar10(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield seconds until a ResNet-18 classifies 95 and 96 % of CIFAR-10's test images, trained by train.py."""
    overrides = {"num_epochs": CIFAR10_EPOCHS, "validation_interval": 2}
    report, seconds = trained("configs/cifar10_resnet18_config.json", args.cifar10, overrides)
    best = report["best"]["top1"] * 100
    yield Figure("cifar10", f"top-1 after {report['train_seconds']:.0f} s of training", best, "%", 96)
    an_epoch = report["train_seconds"] / CIFAR10_EPOCHS
    for aim, most in ((0.95, 20), (0.96, 60)):
        reached = [entry["epoch"] for entry in report["curves"]["val"] if entry["top1"] >= aim]
        if reached:
            yield Figure("cifar10", f"training until {aim:.0%}", reached[0] * an_epoch, "s", most, at_least=False)
    yield Figure("cifar10", "the whole program, cold", seconds, "s", 120, at_least=False)


def simsiam(args: argparse.Namespace) -> Iterator[Figure]:
    """Yield the seconds of SimSiam's 200 epochs of CIFAR-10, and the kNN accuracy."""
    overrides = {"num_epochs": 200, "validation_interval": 50, "data_cache": "ram"}
    report, _ = trained("configs/simsiam_cifar10_config.json", args.cifar10, overrides, "--stage", "1")
    yield Figure("simsiam", "200 epochs", report["train_seconds"], "s", 360, at_least=False)
    yield Figure("simsiam", "kNN", report["best"]["top1"] * 100, "%", 80)


def trained(config: str, data: Path, overrides: Mapping[str, object], *flags: str) -> tuple[dict[str, Any], float]:
    """Run train.py on CIFAR-10; return its report and the seconds of the complete program."""
    with tempfile.TemporaryDirectory() as folder:
        values = {"save_path": folder, "log_path": folder, "is_tensorboard": False, **overrides}
        values |= {"train_data_root_dir": str(data / "train"), "val_data_root_dir": str(data / "test")}
        command = [sys.executable, "train.py", "--config", config, *flags]
        command += [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        started = time.perf_counter()
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
        seconds = time.perf_counter() - started
        return json.loads(Path(folder, "report.json").read_text(encoding="utf-8")), seconds


def make_images(folder: Path, count: int, size: int) -> None:
    """Write images of blurred random colours into class folders."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / f"class{label}").mkdir()
    for number in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        cloud = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        cloud.save(folder / f"class{number % CLASSES}" / f"{number}.jpg", quality=85)


PARTS = {
    "train": Part(train, 120),
    "forward": Part(forward, 60),
    "cifar10": Part(cifar10, 130, needs_cifar10=True),
    "simsiam": Part(simsiam, 220, needs_cifar10=True),
}


if __name__ == "__main__":
    sys.exit(main())
