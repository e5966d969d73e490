"""Are the calibration targets met? Measured for each score on many random splits of labelled images.

python -m tools.calibration_splits --weights net.pth --lists val.txt test.txt [--target_risk 0.01 ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from artifacts.calibration import ACCEPT, CONFORMAL, SCORES
from artifacts.detections import DEFAULT_SCORE, Detections
from artifacts.metadata import ModelMetadata
from common.cli import FlagParser, run_program
from data_loader.box_target import Boxes
from deploy.inference.uncertainty_scores import UncertaintyError, softmax, uncertainty_of
from deploy.uncertainty.calibration import CalibrationTarget, calibrate
from deploy.uncertainty.metrics import area_under_risks, reliability
from deploy.uncertainty.pixel_risk import PixelLogits
from tools.box_splits import report_box_splits
from tools.pixel_splits import report_pixel_splits

PROGRAM = "python -m tools.calibration_splits"


class Split(NamedTuple):
    """Measurements on the images of a split that did not calibrate; shares are from 0 to 1."""

    coverage: float
    error: float
    conformal_coverage: float
    set_size: float
    temperature: float
    ece_before: float
    ece_after: float
    aurc: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the net on the lists, calibrate on each split, and print a table; return the exit code."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Print the table that the flags ask for, and return 0. Raises UserError."""
    from artifacts.checkpoint import load_checkpoint

    metadata = load_checkpoint(args.weights).metadata
    if metadata.output == "mask_logits":
        print("\n".join(report_pixel_splits(args, _pixels(args))))
        return 0
    if metadata.output == "boxes":
        print("\n".join(report_box_splits(args, _objects(args), DEFAULT_SCORE)))
        return 0
    logits, labels, metadata = outputs_of(args)
    print(f"{len(labels)} images, accuracy {np.mean(logits.argmax(axis=1) == labels):.4f}")
    print(f"{args.splits} splits, calibrated on {args.pictures}, measured on {len(labels) - args.pictures}")
    target = CalibrationTarget(args.target_risk, args.confidence, args.conformal)
    found = {
        score: splits(logits, labels, metadata, replace(target, score=score), args.pictures, args.splits)
        for score in args.scores
    }
    print("\n".join(table(found, target)))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    parser = FlagParser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add, default = parser.add_argument, CalibrationTarget()
    add("--weights", metavar="F", type=Path, required=True, help="a checkpoint")
    add(
        "--lists",
        metavar="LIST",
        type=Path,
        nargs="+",
        help="labelled lists, class folders, or images with masks or boxes",
    )
    add("--list_root", metavar="DIR", type=Path, help="folder that the lists' paths start from")
    add(
        "--logits", metavar="NPZ", type=Path, help="a file that keeps logits and labels of the lists: read if it exists"
    )
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--splits", metavar="N", type=int, default=20, help="random splits (default 20)")
    add("--pictures", metavar="N", type=int, default=5000, help="images to calibrate on (default 5000)")
    add("--scores", metavar="S", nargs="+", choices=SCORES, default=SCORES, help="(default: all)")
    add("--target_risk", metavar="R", type=float, default=default.target_risk, help="(default %(default)s)")
    add("--confidence", metavar="P", type=float, default=default.confidence, help="(default %(default)s)")
    add("--conformal", metavar="R", type=float, default=default.conformal_risk, help="(default %(default)s)")
    return parser


def outputs_of(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, ModelMetadata]:
    """Return logits (N, K) and labels (N,) of the lists, and the net's metadata. Raises UserError."""
    from artifacts.checkpoint import load_checkpoint

    metadata = load_checkpoint(args.weights).metadata
    if args.logits is not None and args.logits.exists():
        with np.load(args.logits) as kept:
            logits, labels = kept["logits"], kept["labels"]
            of_weights = str(kept["weights_sha256"]) if "weights_sha256" in kept else metadata.weights_sha256
        if of_weights != metadata.weights_sha256 or logits.shape[1] != metadata.num_classes:
            raise UncertaintyError(f"{args.logits}: it holds another net's logits than {args.weights}; name a new file")
    elif args.lists:
        logits, labels = _run_net(args)
        if args.logits is not None:
            np.savez(args.logits, logits=logits, labels=labels, weights_sha256=metadata.weights_sha256)
    else:
        raise UncertaintyError("name the labelled images with --lists")
    if not 0 < args.pictures < len(labels):
        raise UncertaintyError(f"--pictures must be less than the {len(labels)} there are, got {args.pictures}")
    return logits, labels, metadata


def splits(
    logits: np.ndarray, labels: np.ndarray, metadata: ModelMetadata, target: CalibrationTarget, images: int, count: int
) -> list[Split | None]:
    """Calibrate on `images` drawn at random, measure on the others, `count` times; None where no threshold is found."""
    found: list[Split | None] = []
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(len(labels))
        held, rest = order[:images], order[images:]
        try:
            fitted = calibrate(logits[held], labels[held], metadata, target)
        except UncertaintyError:
            found.append(None)
        else:
            found.append(measure(logits[rest], labels[rest], fitted))
    return found


def measure(logits: np.ndarray, labels: np.ndarray, metadata: ModelMetadata) -> Split:
    """Measure calibrated metadata on logits (N, K) and labels (N,)."""
    assert metadata.calibration is not None and metadata.temperature is not None
    scores = softmax(logits, metadata.temperature)
    uncertainty = uncertainty_of(logits, metadata.calibration.score, metadata.temperature)
    wrong = logits.argmax(axis=1) != labels
    accepted = uncertainty <= metadata.thresholds[ACCEPT]
    sets = 1 - scores <= metadata.thresholds[CONFORMAL]
    return Split(
        float(accepted.mean()),
        float(wrong[accepted].mean()) if accepted.any() else float("nan"),
        float(sets[np.arange(len(labels)), labels].mean()),
        float(sets.sum(axis=1).mean()),
        metadata.temperature,
        reliability(softmax(logits), labels).error,
        reliability(scores, labels).error,
        area_under_risks(uncertainty, wrong)[0],
    )


def table(found: dict[str, list[Split | None]], target: CalibrationTarget) -> list[str]:
    """Return a line per score: the mean over its splits, and their range."""
    lines = [f"{'score':18}{'splits':>8}{'accepted':>10}{'wrong of them':>26}{'too often':>11}{'AURC x1000':>12}"]
    for score, splits_of in found.items():
        done = [split for split in splits_of if split is not None]
        start = f"{score:18}{f'{len(done)}/{len(splits_of)}':>8}"
        if not done:
            lines.append(f"{start}  no threshold meets the target")
            continue
        mean, low, high = _spread(done)
        wrong = "none accepted" if np.isnan(mean.error) else f"{mean.error:.3%} ({low.error:.3%}-{high.error:.3%})"
        broken = sum(split.error > target.target_risk for split in done)
        lines.append(f"{start}{mean.coverage:10.2%}{wrong:>26}{broken:11}{mean.aurc * 1000:12.4f}")
    if all_done := [split for splits_of in found.values() for split in splits_of if split is not None]:
        mean, low, high = _spread(all_done)
        lines += [
            f"conformal sets: the true class in {mean.conformal_coverage:.2%} ({low.conformal_coverage:.2%}-"
            f"{high.conformal_coverage:.2%}), target {1 - target.conformal_risk:.4g}; {mean.set_size:.3f} classes",
            f"temperature {mean.temperature:.4f} ({low.temperature:.4f}-{high.temperature:.4f}); ECE before "
            f"{mean.ece_before:.3%}, after {mean.ece_after:.3%} ({low.ece_after:.3%}-{high.ece_after:.3%})",
        ]
    return lines


def _spread(splits_done: Sequence[Split]) -> tuple[Split, Split, Split]:
    values = np.array(splits_done)
    measured = [column[~np.isnan(column)] for column in values.T]  # a split that accepts nothing has no error
    measured = [column if len(column) else np.array([np.nan]) for column in measured]
    mean, low, high = ([float(of(column)) for column in measured] for of in (np.mean, np.min, np.max))
    return Split(*mean), Split(*low), Split(*high)


def _pixels(args: argparse.Namespace) -> list[PixelLogits]:
    from deploy.backends.loading import load_torch
    from deploy.uncertainty.calibrate_pixels import pixels_of
    from deploy.uncertainty.outputs import config_of

    if not args.lists:
        raise UncertaintyError("name the images with masks with --lists")
    args.batch_size, args.workers = 8, 2
    backend, metadata = load_torch(args.weights, args.device, None)
    net = (args.weights, config_of(args.weights), backend, metadata)
    return [image for source in args.lists for image in pixels_of(source, args, *net)]


def _objects(args: argparse.Namespace) -> list[tuple[Boxes, Detections]]:
    from deploy.backends.loading import load_torch
    from deploy.uncertainty.calibrate_boxes import found_objects
    from deploy.uncertainty.outputs import config_of

    if not args.lists:
        raise UncertaintyError("name the annotated images with --lists")
    args.batch_size, args.workers = 8, 2
    backend, metadata = load_torch(args.weights, args.device, None)
    net = (args.weights, config_of(args.weights), backend, metadata)
    return [row for source in args.lists for row in found_objects(source, args, *net)]


def _run_net(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    from deploy.backends.loading import load_torch
    from deploy.uncertainty.outputs import check_not_trained_on, collect, config_of, labelled_samples, trained_on

    backend, metadata = load_torch(args.weights, args.device, None)
    config = config_of(args.weights)
    trained, samples = trained_on(config, metadata) or frozenset(), []
    for source in args.lists:
        found = labelled_samples(source, config, metadata, args.list_root, flag="--lists")
        print(f"{found.note}\n" * bool(found.note) + f"{len(found.samples)} images: {found}")
        check_not_trained_on(found.samples, source, trained)
        samples += found.samples
    outputs = collect(backend, metadata, samples, batch_size=128)
    return outputs.logits, outputs.labels


if __name__ == "__main__":
    raise SystemExit(main())
