"""Evaluating a calibrated net: run it on the lists once, write the page, print a summary."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from artifacts.formats import artifact_kind
from artifacts.metadata import ModelMetadata
from artifacts.sample_sources import FoundSamples, config_samples
from common.console import elide
from configs.schema import Config
from data_loader.image_files import walk_images
from data_loader.samples import NO_LABEL, Sample
from deploy.backends.base import CHANGED, Backend
from deploy.inference.cli_args import DEFAULT_RESULT
from deploy.inference.decision import foreign_calibration
from deploy.inference.uncertainty_scores import ClassMeans, UncertaintyError
from deploy.uncertainty.cli_passes import passes_of
from deploy.uncertainty.evaluation import evaluate
from deploy.uncertainty.outputs import (
    Outputs,
    check_not_trained_on,
    collect,
    config_of,
    labelled_samples,
    real_paths,
    trained_on,
)
from deploy.uncertainty.report import PAGE, VALUES, write_page

MAX_FOR_MEANS = 2000  # training images, evenly spread, whose features give the class means
COLUMNS = 79  # of a terminal's 80: some wrap a full line
NO_MEANS = "The distance to the class means is left out: "


def evaluate_net(
    args: argparse.Namespace, weights: Path, config: Config | None, backend: Backend, metadata: ModelMetadata
) -> str:
    """Evaluate a calibrated net as the flags ask, write page and values, and return what to print. Raises UserError.

    `config` is what --config names, for a file without one.
    """
    config = (config_of(weights) if artifact_kind(weights) == "checkpoint" else None) or config
    found = labelled_samples(args.evaluate, config, metadata, args.list_root, flag="--evaluate")
    samples = found.samples
    if (trained := trained_on(config, metadata)) is not None:
        check_not_trained_on(samples, args.evaluate, trained)
    ood_samples = out_of_distribution_samples(args.ood, samples) if args.ood else None
    reference, note = _means_samples(args.means, config, metadata, backend)
    means_samples = reference.samples if reference else []
    passes = passes_of(args, backend, metadata, weights)

    def outputs_of(asked: Sequence[Sample], *, repeat: bool = True) -> Outputs:
        how = {"batch_size": args.batch_size, "workers": args.workers, "passes": passes if repeat else None}
        return collect(backend, metadata, asked, with_features=bool(means_samples), **how)

    means = None
    if means_samples:
        of_means = outputs_of(means_samples, repeat=False)
        assert of_means.features is not None
        means = ClassMeans.of(of_means.features, of_means.labels)
    known, ood = outputs_of(samples), outputs_of(ood_samples) if ood_samples else None
    skipped = [*known.skipped, *(ood.skipped if ood else ())]
    foreign = foreign_calibration(metadata, backend.name, args.precision)
    changed = CHANGED if metadata.is_changed else ""
    notes = [text for text in (found.note, reference.note if reference else "", note) if text]
    notes += [f"{text[0].upper()}{text[1:]}." for text in (foreign, changed) if text]
    if skipped:
        notes.append(f"Images that cannot be read and were left out: {len(skipped)}; the first: {skipped[0]}.")
    named = {"net": metadata.net["name"], "weights": str(weights), "list": str(args.evaluate), "root": found.root}
    evaluation = {**named, "ood": str(args.ood or ""), "notes": notes, **evaluate(known, metadata, ood, means)}
    folder = args.report or Path(DEFAULT_RESULT)
    write_page(evaluation, folder, metadata.preprocess)
    read = [
        f"the images of {each.origin} were read below {each.root}" for each in (found, reference) if each and each.root
    ]
    return "\n".join([*summary_lines(evaluation), *dict.fromkeys(read), f"{folder / PAGE} and {VALUES} beside it"])


def out_of_distribution_samples(folder: Path, known: Sequence[Sample]) -> list[Sample]:
    """Return the images of a folder, none of the net's classes. Raises UncertaintyError, NoImagesError."""
    if not folder.is_dir():
        raise UncertaintyError(f"{folder}: no such folder; name one of out-of-distribution images with --ood")
    found = [Sample(path, NO_LABEL) for path in walk_images(folder)]
    evaluated = frozenset(real_paths(known))
    if both := sum(path in evaluated for path in real_paths(found)):
        raise UncertaintyError(
            f"{folder}: {both} of its images are among the evaluated ones, so they are not out-of-distribution"
        )
    return found


def summary_lines(evaluation: dict[str, Any]) -> list[str]:
    """Return an evaluation in lines that fit a terminal of 80 columns."""
    decided, target = evaluation["decided"], evaluation["calibration"]
    error = "none" if decided["error"] is None else f"{decided['error']:.2%}"
    lines = [
        elide(f"{evaluation['pictures']} images of {evaluation['list']}", COLUMNS),
        f"accuracy {evaluation['accuracy']:.2%} of all; {decided['coverage']:.1%} accepted, of which wrong: {error}",
        f"  (target: under {target['target_risk']:.4g} with confidence {target['confidence']:g})",
        f"conformal sets: the true class in {decided['conformal_coverage']:.1%} "
        f"(target {1 - target['conformal_risk']:.1%}),",
        f"  {decided['conformal_size']:.2f} classes per set, {decided['conformal_sizes'][0]} sets empty",
        f"{'':20}{'T = 1':>10}  T = {evaluation['temperature']:.4f}",
    ]
    for key, name in (("ece", "ECE (15 bins)"), ("nll", "NLL"), ("brier", "Brier")):
        lines.append(f"{name:20}{evaluation['before'][key]:10.5f}{evaluation['after'][key]:12.5f}")
    return [*lines, *_table(evaluation), *_closing_lines(evaluation)]


def _table(evaluation: dict[str, Any]) -> list[str]:
    ood = evaluation["strange"]
    lines = [f"{'score':22}{'AURC x1000':>12}{'excess':>10}" + (f"{'AUROC':>10}{'FPR95':>10}" if ood else "")]
    for name, score in evaluation["scores"].items():
        shown = f"{name} *" if name == evaluation["default_score"] else name
        line = f"{shown:22}{score['aurc'] * 1000:12.3f}{score['e_aurc'] * 1000:10.3f}"
        lines.append(line + (f"{score['auroc']:10.4f}{score['fpr95']:10.1%}" if ood else ""))
    return [*lines, "* decides"]


def _closing_lines(evaluation: dict[str, Any]) -> list[str]:
    lines = []
    if ood := evaluation["strange"]:
        lines.append(f"of {ood['pictures']} out-of-distribution images {ood['share_accepted']:.1%} are accepted")
    if passes := evaluation["passes"]:
        share = f"{passes['accuracy_of_their_mean']:.2%}"
        lines.append(f"the mean of {passes['count']} passes is right for {share}")
    return [*lines, *(line for note in evaluation["notes"] for line in textwrap.wrap(note, COLUMNS))]


def _means_samples(
    means: Path | None, config: Config | None, metadata: ModelMetadata, backend: Backend
) -> tuple[FoundSamples | None, str]:
    """Return the labelled images for the class means; None with a sentence about the reason where there are none."""
    if backend.name != "torch":
        if means is not None:
            raise UncertaintyError("--means goes with a checkpoint: an exported file gives no features")
        return None, f"{NO_MEANS}an exported file gives no features."
    if means is not None:
        return labelled_samples(means, config, metadata, flag="--means"), ""
    if config is None or trained_on(config, metadata) is None:
        return None, f"{NO_MEANS}the training images are not on this machine; --means LIST names others."
    found = config_samples(config.train_data_file, config.train_data_root_dir, config, metadata)
    step = max(len(found.samples) // MAX_FOR_MEANS, 1)
    return replace(found, samples=found.samples[::step][:MAX_FOR_MEANS]), ""
