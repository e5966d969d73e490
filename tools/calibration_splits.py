"""Is what calibration promises kept? Many random splits of labelled images, and how far each score can be relied on.

python -m tools.calibration_splits --weights net.pth --lists val.txt test.txt [--target_risk 0.01 ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from artifacts.calibration import ACCEPT, CONFORMAL, SCORES
from artifacts.metadata import ModelMetadata
from deploy.inference.uncertainty_scores import UncertaintyError, softmax, uncertainty_of
from deploy.uncertainty.calibration import Promise, calibrate
from deploy.uncertainty.metrics import area_under_risks, reliability

PROGRAM = "python -m tools.calibration_splits"


class Split(NamedTuple):
    """What was seen on the images of a split that calibrated nothing; shares are from 0 to 1."""

    coverage: float
    error: float
    conformal_coverage: float
    set_size: float
    temperature: float
    ece_before: float
    ece_after: float
    aurc: float


def main(argv: Sequence[str] | None = None) -> int:
    """Ask the net about the lists, calibrate on each split, and print a table; give the exit code."""
    args = make_parser().parse_args(argv)
    try:
        logits, labels, metadata = answers_of(args)
        print(f"{len(labels)} images, accuracy {np.mean(logits.argmax(axis=1) == labels):.4f}")
        print(f"{args.splits} splits, calibrated on {args.pictures}, measured on {len(labels) - args.pictures}")
        promise = Promise(args.target_risk, args.confidence, args.conformal)
        found = {
            score: splits(logits, labels, metadata, replace(promise, score=score), args.pictures, args.splits)
            for score in args.scores
        }
        print("\n".join(told(found, promise)))
    except ValueError as error:  # every mistake of the user's is one, and its message the sentence to show
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    return 0


def make_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add, standard = parser.add_argument, Promise()
    add("--weights", metavar="F", type=Path, required=True, help="a checkpoint")
    add("--lists", metavar="LIST", type=Path, nargs="+", help="labelled lists or class folders, not trained on")
    add("--logits", metavar="NPZ", type=Path, help="logits and labels of the lists, kept here: read where it is there")
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--splits", metavar="N", type=int, default=20, help="random splits (default 20)")
    add("--pictures", metavar="N", type=int, default=5000, help="images that calibrate (default 5000)")
    add("--scores", metavar="S", nargs="+", choices=SCORES, default=SCORES, help="(default: all)")
    add("--target_risk", metavar="R", type=float, default=standard.target_risk, help="(default %(default)s)")
    add("--confidence", metavar="P", type=float, default=standard.confidence, help="(default %(default)s)")
    add("--conformal", metavar="R", type=float, default=standard.conformal_risk, help="(default %(default)s)")
    return parser


def answers_of(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, ModelMetadata]:
    """Give logits (N, K) and labels (N,) of the lists, and the net's metadata. Raises ValueError."""
    from artifacts.checkpoint import load_checkpoint

    metadata = load_checkpoint(args.weights).metadata
    if args.logits is not None and args.logits.exists():
        with np.load(args.logits) as kept:
            logits, labels = kept["logits"], kept["labels"]
    elif args.lists:
        logits, labels = _ask(args)
        if args.logits is not None:
            np.savez(args.logits, logits=logits, labels=labels)
    else:
        raise UncertaintyError("name the labelled images with --lists")
    if not 0 < args.pictures < len(labels):
        raise UncertaintyError(f"--pictures must be less than the {len(labels)} there are, got {args.pictures}")
    return logits, labels, metadata


def splits(
    logits: np.ndarray, labels: np.ndarray, metadata: ModelMetadata, promise: Promise, images: int, count: int
) -> list[Split | None]:
    """Calibrate on `images` drawn by chance, measure on the others, so often; None where there is no threshold."""
    found: list[Split | None] = []
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(len(labels))
        held, rest = order[:images], order[images:]
        try:
            fitted = calibrate(logits[held], labels[held], metadata, promise)
        except UncertaintyError:
            found.append(None)
        else:
            found.append(measure(logits[rest], labels[rest], fitted))
    return found


def measure(logits: np.ndarray, labels: np.ndarray, metadata: ModelMetadata) -> Split:
    """Measure what calibrated metadata make of logits (N, K) and labels (N,)."""
    assert metadata.calibration is not None and metadata.temperature is not None
    scores = softmax(logits, metadata.temperature)
    uncertainty = uncertainty_of(logits, metadata.calibration.score, metadata.temperature)
    wrong = logits.argmax(axis=1) != labels
    accepted = uncertainty <= metadata.thresholds[ACCEPT]
    sets = 1 - scores <= metadata.thresholds[CONFORMAL]
    return Split(
        float(accepted.mean()),
        float(wrong[accepted].mean()) if accepted.any() else 0.0,
        float(sets[np.arange(len(labels)), labels].mean()),
        float(sets.sum(axis=1).mean()),
        metadata.temperature,
        reliability(softmax(logits), labels).error,
        reliability(scores, labels).error,
        area_under_risks(uncertainty, wrong)[0],
    )


def told(found: dict[str, list[Split | None]], promise: Promise) -> list[str]:
    """Tell in lines what the splits of every score came to: mean, and least to most of the splits."""
    lines = [f"{'score':18}{'splits':>8}{'accepted':>10}{'wrong of them':>26}{'too often':>11}{'AURC x1000':>12}"]
    for score, splits_of in found.items():
        done = [split for split in splits_of if split is not None]
        start = f"{score:18}{f'{len(done)}/{len(splits_of)}':>8}"
        if not done:
            lines.append(f"{start}  no threshold keeps the promise")
            continue
        mean, low, high = _spread(done)
        wrong = f"{mean.error:.3%} ({low.error:.3%}-{high.error:.3%})"
        broken = sum(split.error > promise.target_risk for split in done)
        lines.append(f"{start}{mean.coverage:10.2%}{wrong:>26}{broken:11}{mean.aurc * 1000:12.4f}")
    if all_done := [split for splits_of in found.values() for split in splits_of if split is not None]:
        mean, low, high = _spread(all_done)
        lines += [
            f"conformal sets: the true class in {mean.conformal_coverage:.2%} ({low.conformal_coverage:.2%}-"
            f"{high.conformal_coverage:.2%}), promised {1 - promise.conformal_risk:.4g}; {mean.set_size:.3f} classes",
            f"temperature {mean.temperature:.4f} ({low.temperature:.4f}-{high.temperature:.4f}); ECE before "
            f"{mean.ece_before:.3%}, after {mean.ece_after:.3%} ({low.ece_after:.3%}-{high.ece_after:.3%})",
        ]
    return lines


def _spread(splits_done: Sequence[Split]) -> tuple[Split, Split, Split]:
    values = np.array(splits_done)
    return Split(*values.mean(axis=0)), Split(*values.min(axis=0)), Split(*values.max(axis=0))


def _ask(args: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    from deploy.backends.loading import load_torch
    from deploy.uncertainty.outputs import check_not_trained_on, collect, config_of, labelled_samples, trained_on

    backend, metadata = load_torch(args.weights, args.device, None)
    config = config_of(args.weights)
    trained, samples = trained_on(config, metadata) or frozenset(), []
    for source in args.lists:
        found = labelled_samples(source, config, metadata)
        check_not_trained_on(found, source, trained)
        samples += found
    outputs = collect(backend, metadata, samples, batch_size=128)
    return outputs.logits, outputs.labels


if __name__ == "__main__":
    raise SystemExit(main())
