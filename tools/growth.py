"""How cost grows with the work: seconds of a processor and memory for each size, every point in a process of its own.

python -m tools.growth [--only lists classes ...] [--most 100000] [--json F]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.atomic_io import check_folder, write_atomic, writing
from common.cli import FlagParser, run_program
from common.errors import BenchmarkError
from common.paths import ROOT
from common.system_info import machine_info, package_versions
from tools.benchmark.memory import peak_gb, reset_peak

PROGRAM = "python -m tools.growth"
CLASSES, SIDE, SHOWN = 10, 64, 2000  # of the images that are made; the images of a validation
LINKS = 10_000  # names of one file; ext4 allows 65,000
Work = Callable[[], object]


class Kind(NamedTuple):
    """One kind of work: what a size counts, its sizes, and a function (size, folder) that prepares the work itself."""

    title: str
    unit: str
    sizes: tuple[int, ...]
    prepare: Callable[[int, Path], Work]


class Point(NamedTuple):
    """One size: processor seconds, and the peak of the memory above what the process had before, in MB."""

    size: int
    seconds: float
    peak_mb: float


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code, 2 for a mistake of the user's."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = FlagParser(prog=PROGRAM, description="Measure how cost grows with the work.", allow_abbrev=False)
    parser.add_argument("--only", metavar="KIND", nargs="+", choices=KINDS, default=[*KINDS], help=", ".join(KINDS))
    parser.add_argument("--most", metavar="N", type=int, default=10**6, help="leave larger sizes out (default 1000000)")
    parser.add_argument("--json", metavar="F", type=Path, help="also write the figures")
    parser.add_argument("--point", metavar="N", type=int, help=argparse.SUPPRESS)  # in the process of one point
    return parser


def run(args: argparse.Namespace) -> int:
    """Print a table for each kind, or one point as JSON; return 0. Raises UserError."""
    if args.point is not None:
        print(json.dumps(measure(KINDS[args.only[0]], args.point)))
        return 0
    if args.json:
        check_folder(args.json.parent)
    found: dict[str, list[Point]] = {}
    for name in args.only:
        kind = KINDS[name]
        found[name] = [in_own_process(name, size) for size in kind.sizes if size <= args.most]
        print(f"{table(kind, found[name])}\n", flush=True)
    if args.json:
        values = {"machine": machine_info(), "versions": package_versions(), "points": found}
        with writing(args.json):
            write_atomic(args.json, json.dumps(values, indent=1) + "\n")
    return 0


def measure(kind: Kind, size: int) -> Point:
    """Prepare the work, and measure it in this process."""
    with tempfile.TemporaryDirectory() as folder:
        work = kind.prepare(size, Path(folder))
        reset_peak()
        before, started = peak_gb(), time.process_time()
        work()
        seconds, peak = time.process_time() - started, peak_gb()
        return Point(size, seconds, max(1e3 * (peak - before), 0.0))  # memory may have been given back


def in_own_process(name: str, size: int) -> Point:
    """Measure a point in a process of its own, with one thread. Raises BenchmarkError where it fails."""
    command = [sys.executable, "-m", "tools.growth", "--only", name, "--point", str(size)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise BenchmarkError(f"{name} of {size}: {last}")
    return Point(*json.loads(done.stdout.splitlines()[-1]))


def table(kind: Kind, points: Sequence[Point]) -> str:
    """Return a table of Markdown: of each size the cost, and by what it has grown since the size before."""
    heads = (kind.title, "processor seconds", f"a thousand {kind.unit}", "peak MB", "work", "time", "memory")
    lines = [f"| {' | '.join(heads)} |", f"|{' ---: |' * len(heads)}"]
    before: Point | None = None
    for point in points:
        grown = [""] * 3
        if before is not None:
            pairs = zip(point, before, strict=True)
            grown = [f"{value / earlier:.1f}" if earlier > 0 else "" for value, earlier in pairs]
        each = 1e3 * point.seconds / point.size
        cells = [f"{point.size:,}", f"{point.seconds:.2f}", f"{each:.3g} s", f"{point.peak_mb:.0f}", *grown]
        lines.append(f"| {' | '.join(cells)} |")
        before = point
    return "\n".join(lines)


def _lists(count: int, folder: Path) -> Work:
    """Read a list, and see that its images are there."""
    from data_loader.list_reader import read_list

    names = _many(count, folder)
    text = "".join(f"{name}----{number % CLASSES}\n" for number, name in enumerate(names))
    (folder / "list.txt").write_text(text, encoding="utf-8")
    return lambda: read_list(folder / "list.txt", folder, "----", CLASSES)


def _folders(count: int, folder: Path) -> Work:
    """Find the images of a folder, without reading them."""
    from data_loader.image_files import iter_images

    _many(count, folder)
    return lambda: list(iter_images(folder))


def _classes(count: int, folder: Path) -> Work:
    """Measure a validation of SHOWN images, keep it as a checkpoint does, and write the report."""
    import torch

    from trainers.evaluation.classification_metrics import ClassificationMetrics
    from trainers.reporting.report import TrainingReport, write_report

    names = [f"class {number}" for number in range(count)]
    paths = [f"{number}.jpg" for number in range(SHOWN)]
    generator = torch.Generator().manual_seed(0)

    def work() -> None:
        metrics = ClassificationMetrics(count, "cpu")
        for part in torch.arange(SHOWN).split(50):
            logits = torch.randn(len(part), count, generator=generator)
            metrics.update(logits, torch.randint(count, (len(part),), generator=generator), part)
        result = metrics.compute(paths, names)
        torch.save(result.to_dict(), folder / "result.pt")
        point = {"epoch": 1, "step": 1, "loss": result.loss, **result.scalars()}
        fields = {"best": point, "final": point, "curves": {"train": [], "val": [point]}, **result.report_fields()}
        write_report(TrainingReport("growth", "net", "finished", names, **fields).to_dict(), folder)

    return work


def _sides(side: int, folder: Path) -> Work:
    """Decode one square JPEG and fit it to 224 px, as inference does."""
    from data_loader.preprocess import Preprocess

    _image(folder / "image.jpg", side)
    preprocess = Preprocess(224, 224, max_pixels=side * side)
    return lambda: preprocess.fit(preprocess.decode(folder / "image.jpg"))


def _inference(count: int, folder: Path) -> Work:
    """Answer for a folder with a resnet18 at SIDE px, from the file to the CSV."""
    import inference
    from artifacts.checkpoint import Checkpoint, save_checkpoint
    from artifacts.metadata import ModelMetadata
    from data_loader.preprocess import Preprocess
    from nets.net_interface import build_net

    size = {"num_classes": CLASSES, "img_height": SIDE, "img_width": SIDE}
    net = build_net("resnet_module", "resnet18", num_channels=3, model_args={}, **size)
    described = {"module": "resnet_module", "name": "resnet18", "args": {}}
    metadata = ModelMetadata(tuple(map(str, range(CLASSES))), Preprocess(SIDE, SIDE), described)
    save_checkpoint(Checkpoint({}, metadata, net.state_dict()), folder / "net.pth")
    images = folder / "images"
    images.mkdir()
    _many(count, images)
    flags = ["--weights", folder / "net.pth", "--image_dir", images, "--output", folder / "result.csv", "--quiet"]
    return lambda: inference.main([*map(str, flags), "--device", "cpu"])


def _many(count: int, folder: Path) -> list[str]:
    """Make folders of one JPEG under many names, a thousand in each; return the names."""
    names = [f"{number // 1000:04d}/{number}.jpg" for number in range(count)]
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if number % LINKS == 0:
            _image(path)
            first = path
        else:
            os.link(first, path)
    return names


def _image(path: Path, side: int = SIDE) -> None:
    """Write a square JPEG of smooth noise."""
    small = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)


TENS = tuple(10**power for power in range(3, 7))
KINDS: Mapping[str, Kind] = {
    "lists": Kind("lines of a list, read", "lines", TENS, _lists),
    "folders": Kind("images of a folder, found", "images", TENS[:-1], _folders),
    "inference": Kind("images of a folder, answered", "images", (100, 1000, 10_000), _inference),
    "classes": Kind("classes of a validation and its report", "classes", (10, 100, 1000, 10_000, 100_000), _classes),
    "sides": Kind("pixels of a side, decoded", "pixels", (32, 100, 320, 1000, 3200, 10_000), _sides),
}


if __name__ == "__main__":
    raise SystemExit(main())
