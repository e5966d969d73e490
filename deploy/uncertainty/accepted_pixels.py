"""Predictions of a calibrated net of masks: the classes of the pixels, and which of them are accepted."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from data_loader.preprocess import ImageError
from deploy.inference.cli_inputs import InputsError
from deploy.inference.cli_loop import Tally, line_columns, predict_all, report_end, until_unreadable
from deploy.inference.console_table import LineLayout
from deploy.inference.image_writers import MaskCopies
from deploy.inference.mask_prediction import MaskPrediction
from deploy.inference.prediction import Prediction
from deploy.inference.predictor import Predictor, Source
from deploy.inference.result_writer import open_results

ACCEPTED_WIDTH = 18  # columns of a line that the accepted share takes


def accept_pixels(
    args: argparse.Namespace,
    program: str,
    predictor: Predictor,
    images: Iterator[Source],
    root: Path | None,
    output: Path | None,
    folder: Path | None,
) -> int:
    """Predict for the images, write results and masks, and return the exit code. Raises UserError."""
    if args.others or args.repeat:
        raise InputsError("the pixels of a mask are accepted by a single pass of one net: leave out --repeat")
    copies = MaskCopies(folder, predictor.metadata.preprocess) if folder is not None else None
    layout = LineLayout.of(predictor.prediction_type.text_widths(predictor.metadata), _columns())
    tally, shares = Tally(), list[float]()
    columns = predictor.csv_columns(args.topk)
    opened = open_results(output, columns, escape_formulas=not args.raw_csv) if output else nullcontext()

    def record(prediction: Prediction) -> None:
        if results is not None:
            results.write(prediction)
        if prediction.error:
            return
        assert isinstance(prediction, MaskPrediction)
        shares.append(prediction.accepted)
        if copies is not None:
            path = Path(prediction.file)
            try:
                copies.add(prediction, path.name if root is None else path.relative_to(root).as_posix())
            except ImageError as error:  # it was there when it was predicted
                tally.log_uncopied(program, prediction.file, error)

    def line(prediction: Prediction) -> str:
        is_good = isinstance(prediction, MaskPrediction) and not prediction.error
        if args.quiet and is_good:
            return ""
        return layout.line(prediction) + (f"  {shares[-1]:6.1%} accepted" if is_good else "")

    with opened as results:
        predictions = predictor.predict_files(until_unreadable(images, tally), args.batch_size, args.topk, args.workers)
        predict_all(predictions, record, line, tally)
    accepted = f"{sum(shares) / len(shares):.1%} of an image's pixels accepted in the mean" if shares else "none"
    sums = f"{tally.predicted} answered, {accepted}, {tally.failed} failed, {tally.speed(predictor.backend)}"
    return report_end(program, tally, sums, " and ".join(str(place) for place in (output, folder) if place is not None))


def _columns() -> int | None:
    columns = line_columns()
    return columns and columns - ACCEPTED_WIDTH
