"""Predictions, accepted or set aside: `python inference_uncertain.py --weights W --image_dir DIR --output F`.

`--calibrate LIST` once before: it fits the thresholds, and writes them into the checkpoint. `--evaluate LIST` measures
the result.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from artifacts.calibration import PIXEL_SCORE
from common.atomic_io import check_folder, writing
from common.cli import run_program
from common.console import printable
from configs.schema import Config
from data_loader.decode_guard import GUARD
from datasets.files import write_annotations
from deploy.inference.cli_args import DEFAULT_IMAGES
from deploy.inference.cli_inputs import (
    InputsError,
    images_below,
    input_images,
    load_net,
    one_image,
    warn_of_foreign_calibration,
    weights_and_config,
)
from deploy.inference.cli_loop import Tally, line_columns, predict_all, report_end, until_unreadable
from deploy.inference.console_table import LineLayout
from deploy.inference.decision import ACCEPTED, SET_ASIDE
from deploy.inference.result_writer import ResultsFile, check_results_path, open_results
from deploy.uncertainty.cli_args import DEFAULT_OUTPUT, make_parser
from deploy.uncertainty.review_folder import ReviewFolder, check_new_folder

if TYPE_CHECKING:
    from artifacts.metadata import ModelMetadata
    from deploy.backends.base import Backend
    from deploy.inference.class_prediction import ClassPrediction
    from deploy.inference.predictor import Predictor, Source

PROGRAM = "inference_uncertain.py"
OF_PREDICTION = ("image", "image_dir", "output", "set_aside")  # flags, without their dashes
OF_CALIBRATION = ("score", "target_risk", "confidence", "conformal")
OF_EVALUATION = ("evaluate", "ood", "means", "report")
DECISION_WIDTH = 22  # columns of a line that uncertainty and decision take


@dataclass(frozen=True)
class Request:
    """The flags' values, checked as far as possible without the net."""

    weights: Path
    config: Config | None
    images: Iterator[Source]
    root: Path | None  # the folder of the images; None where one was named
    output: Path | None
    set_aside: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Calibrate, evaluate, or predict and decide; return the exit code.

    0: calibrated, evaluated, or a prediction for every image; 1: some failed; 2: a mistake of the user's; 128 + n:
    signal n.
    """
    args = make_parser().parse_args(argv)
    GUARD.timeout_s = args.decode_timeout_s
    args.weights, args.others = (args.weights[0], tuple(args.weights[1:])) if args.weights else (None, ())
    if args.calibrate:
        return run_program(PROGRAM, lambda: calibrate(args))
    return run_program(PROGRAM, lambda: evaluate(args) if args.evaluate else run(args, check(args)))


def calibrate(args: argparse.Namespace) -> int:
    """Fit scores and thresholds on a labelled list, and write them into the file.

    Raises UserError.
    """
    others = (*OF_PREDICTION, *OF_EVALUATION, "repeat", "passes", "views", "others")
    if surplus := [name for name in others if getattr(args, name)]:
        flag = "--weights of several nets" if surplus[0] == "others" else f"--{surplus[0]}"
        raise InputsError(f"--calibrate fits one net's single pass, and predicts for no images: leave out {flag}")
    if not args.calibrate.exists():
        raise InputsError(f"{args.calibrate}: no such list or folder (relative paths start from {Path.cwd()})")
    if args.accept_changed:
        raise InputsError("a calibration would seal a file that was changed: leave out --accept_changed")
    weights, config = weights_and_config(args)
    check_can_be_calibrated(weights)
    from deploy.uncertainty.calibrate_boxes import calibrate_boxes
    from deploy.uncertainty.calibrate_command import calibrate_file
    from deploy.uncertainty.calibrate_pixels import calibrate_pixels

    backend, metadata = load_net(args, PROGRAM, weights, config)
    if metadata.output == "mask_logits":
        print(calibrate_pixels(args, weights, config, backend, metadata))
        return 0
    if metadata.output == "boxes":
        print(calibrate_boxes(args, weights, config, backend, metadata))
        return 0
    _check_output(weights, metadata)
    print(calibrate_file(args, weights, config, backend, metadata))
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Measure a calibrated net on a labelled list, and on out-of-distribution images. Raises UserError."""
    if surplus := [name for name in (*OF_CALIBRATION, *OF_PREDICTION) if getattr(args, name) is not None]:
        raise InputsError(f"--evaluate writes a report, and predicts for no images: leave out --{surplus[0]}")
    _check_repetition(args)
    for path, what in ((args.evaluate, "list or folder"), (args.ood, "folder"), (args.means, "list or folder")):
        if path is not None and not path.exists():
            raise InputsError(f"{path}: no such {what} (relative paths start from {Path.cwd()})")
    weights, config = weights_and_config(args)
    _check_kinds(weights, *args.others)
    from deploy.uncertainty.evaluate_command import evaluate_net
    from deploy.uncertainty.evaluate_masks import evaluate_masks

    backend, metadata = load_net(args, PROGRAM, weights, config)
    if metadata.output == "mask_logits":
        print(evaluate_masks(args, weights, config, backend, metadata))
        return 0
    _check_calibrated(args, weights, backend, metadata)
    print(evaluate_net(args, weights, config, backend, metadata))
    return 0


def check_can_be_calibrated(weights: Path) -> None:
    """Raise UserError for a file whose metadata cannot be changed: neither a checkpoint nor ONNX, or write-protected.

    It is written into the folder that a link leads to.
    """
    from artifacts.formats import TITLES, artifact_kind

    if (kind := artifact_kind(weights)) not in ("checkpoint", "onnx"):
        hint = "calibrate the checkpoint (.pth) that it was made from, and export it again"
        raise InputsError(f"{weights}: this {TITLES[kind]} cannot be changed; {hint}")
    check_folder(weights.resolve().parent)


def check(args: argparse.Namespace) -> Request:
    """Check the flags without torch. Raises UserError."""
    _check_flags(args)
    asked = args.image or args.image_dir or Path(DEFAULT_IMAGES)
    output = Path(DEFAULT_OUTPUT) if args.output is None and args.set_aside is None else args.output
    if output is not None:
        check_results_path(output)
    if args.set_aside is not None:
        check_new_folder(args.set_aside)
        if asked.resolve().is_relative_to(args.set_aside.resolve()):
            raise InputsError(f"{asked}: it lies inside {args.set_aside}, where copies go; choose another folder")
    below = (args.set_aside,) if args.set_aside is not None else ()
    images = one_image(asked) if args.image else images_below(asked, *below)
    weights, config = weights_and_config(args)
    return Request(weights, config, images, None if args.image else asked, output, args.set_aside)


def run(args: argparse.Namespace, request: Request) -> int:
    """Load the net, predict and decide for every image, print the sums; return the exit code. Raises UserError."""
    _check_kinds(request.weights, *args.others)
    from deploy.inference.predictor import Predictor
    from deploy.uncertainty.cli_passes import passes_of
    from deploy.uncertainty.multi_pass import Repetition

    backend, metadata = load_net(args, PROGRAM, request.weights, request.config)
    _check_calibrated(args, request.weights, backend, metadata)
    found = input_images(args, cast("Iterator[str]", request.images), request.root, metadata)
    if metadata.output == "mask_logits":
        from deploy.uncertainty.accepted_pixels import accept_pixels

        where = (request.root, request.output, request.set_aside)
        return accept_pixels(args, PROGRAM, Predictor(backend, metadata), found, *where)
    passes = passes_of(args, backend, metadata, request.weights)
    predictor = Predictor(backend, metadata, Repetition(passes) if passes else None)
    review = ReviewFolder(request.set_aside, metadata) if request.set_aside is not None else None
    decisions: Counter[str] = Counter()
    tally, columns = Tally(), predictor.csv_columns(args.topk)
    as_text = not args.raw_csv
    opened = open_results(request.output, columns, escape_formulas=as_text) if request.output else nullcontext()
    with opened as results:
        _predict_all(args, replace(request, images=found), predictor, results, review, decisions, tally)
    if review is not None and request.set_aside is not None:
        for file, problem in review.finish():
            tally.log_uncopied(PROGRAM, file, problem)
        _annotate(request.set_aside, review, metadata)
    sums = (
        f"{decisions[ACCEPTED]} accepted, {decisions[SET_ASIDE]} set aside, {tally.failed} failed, "
        f"{tally.speed(backend)}"
    )
    places = " and ".join(str(place) for place in (request.output, request.set_aside) if place is not None)
    return report_end(PROGRAM, tally, sums, places)


def _annotate(folder: Path, review: ReviewFolder, metadata: ModelMetadata) -> None:
    """Write the copies as standard annotations, with what was predicted: `browser/images` opens them."""
    if not review.copied:
        return
    records = [
        {
            "image_file": name,
            "tag": printable(prediction.file),
            "predictions": {
                **{"image_label": prediction.label, "image_label_name": prediction.class_name},
                **{"score": prediction.score, "uncertainty": prediction.uncertainty, "decision": prediction.decision},
                "weights_sha256": metadata.weights_sha256,
            },
        }
        for name, prediction in review.copied.items()
    ]
    with writing(folder):
        write_annotations(folder, records, metadata.class_names)


def _predict_all(
    args: argparse.Namespace,
    request: Request,
    predictor: Predictor,
    results: ResultsFile | None,
    review: ReviewFolder | None,
    decisions: Counter[str],
    tally: Tally,
) -> None:
    columns = line_columns()
    widths = predictor.prediction_type.text_widths(predictor.metadata)
    layout = LineLayout.of(widths, columns and columns - DECISION_WIDTH)

    def record(prediction: ClassPrediction) -> None:
        decisions[prediction.decision] += 1
        if results is not None:
            results.write(prediction)
        if review is not None:
            review.add(prediction)

    def line(prediction: ClassPrediction) -> str:
        if args.quiet and prediction.decision == ACCEPTED:
            return ""
        decided = "" if prediction.error else f"  {prediction.uncertainty:<9.3g}  {prediction.decision}"
        return layout.line(prediction) + decided

    images = until_unreadable(request.images, tally)
    predictions = predictor.predict_files(images, args.batch_size, args.topk, args.workers)
    classes = cast("Generator[ClassPrediction, None, None]", predictions)  # only logits can be calibrated
    predict_all(classes, record, line, tally)


def _check_kinds(*files: Path) -> None:
    """Raise UserError for a file that nothing loads, before torch is imported."""
    from artifacts.formats import artifact_kind

    for file in files:
        artifact_kind(file)


def _check_output(weights: Path, metadata: ModelMetadata) -> None:
    """Raise InputsError for a net whose output has no calibration."""
    if metadata.output == "boxes":
        hint = "--calibrate finds the score threshold for inference.py"
        raise InputsError(
            f"{weights}: accepted or set aside is one class for an image, and this net gives boxes of objects; {hint}"
        )


def _check_calibrated(args: argparse.Namespace, weights: Path, backend: Backend, metadata: ModelMetadata) -> None:
    """Raise InputsError for a net that is not calibrated; print where its thresholds are of other outputs."""
    is_calibrated = metadata.calibration is not None
    if metadata.output == "mask_logits":
        is_calibrated = PIXEL_SCORE in metadata.thresholds
    else:
        _check_output(weights, metadata)
    if not is_calibrated:
        hint = f"python {PROGRAM} --weights CHECKPOINT --calibrate LIST; then export it again if this was exported"
        raise InputsError(f"{weights}: it is not calibrated, so it has no thresholds; calibrate it with: {hint}")
    warn_of_foreign_calibration(PROGRAM, weights, backend, metadata, args.precision)


def _check_flags(args: argparse.Namespace) -> None:
    """Raise InputsError for flags that need another flag, which is missing."""
    if surplus := [name for name in (*OF_CALIBRATION, "list_root") if getattr(args, name) is not None]:
        raise InputsError(f"--{surplus[0]} goes with --calibrate LIST; the net's own calibration decides")
    if surplus := [name for name in OF_EVALUATION if getattr(args, name) is not None]:
        raise InputsError(f"--{surplus[0]} goes with --evaluate LIST")
    _check_repetition(args)


def _check_repetition(args: argparse.Namespace) -> None:
    if args.others and args.repeat:
        raise InputsError("several --weights run once each: leave out --repeat")
    if args.passes and args.repeat != "dropout":
        raise InputsError("--passes goes with --repeat dropout")
    if args.views and args.repeat != "views":
        raise InputsError("--views goes with --repeat views")


if __name__ == "__main__":
    raise SystemExit(main())
