"""Predict with a trained net: `python inference.py --image_dir DIR`; without flags: the classic start.

`--pytorch2onnx`, `--pytorch2jit` and `--pytorch2json` convert the net instead.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.atomic_io import check_folder
from common.cli import run_program
from configs.schema import Config
from data_loader.decode_guard import GUARD
from deploy.inference.cli_args import DEFAULT_IMAGES, DEFAULT_RESULT, make_parser
from deploy.inference.cli_inputs import (
    InputsError,
    check_flags_of_a_checkpoint,
    check_polygons,
    images_below,
    input_images,
    load_net,
    one_image,
    warn_of_foreign_calibration,
    weights_and_config,
    with_score_threshold,
)
from deploy.inference.cli_loop import Tally, line_columns, predict_all, report_end, until_unreadable
from deploy.inference.cli_shard import check_shard
from deploy.inference.console_table import LineLayout
from deploy.inference.result_writer import ResultsFile, check_results_path, open_results
from deploy.inference.shards import source_of

if TYPE_CHECKING:
    from deploy.inference.heatmap_writer import HeatMapCopies
    from deploy.inference.image_writers import AnnotatedCopies, MaskCopies, SortedCopies
    from deploy.inference.label_files import LabelFiles
    from deploy.inference.label_lists import LabelList
    from deploy.inference.prediction import Prediction
    from deploy.inference.predictor import Predictor, Source
    from deploy.inference.shard_file import ShardFile

    Copies = AnnotatedCopies | SortedCopies | MaskCopies | HeatMapCopies | LabelFiles | LabelList

PROGRAM = "inference.py"


@dataclass(frozen=True)
class Request:
    """The flags' values, checked as far as possible without the net."""

    weights: Path
    config: Config | None
    root: Path | None  # the image folder; None: one image
    images: Iterator[str]
    output: Path | None
    save_images: Path | None
    heatmap: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Classify or convert, and return the exit code.

    0: all images classified, or all files written; 1: some failed; 2: a mistake of the user's; 3: a conversion was
    refused; 128 + n: signal n.
    """
    args = make_parser().parse_args(argv)
    GUARD.timeout_s = args.decode_timeout_s
    return run_program(PROGRAM, lambda: convert(args) if conversions(args) else run(args, check(args)))


def check(args: argparse.Namespace) -> Request:
    """Check the flags without torch. Raises UserError."""
    if args.heatmap_class is not None and args.heatmap is None:
        raise InputsError("--heatmap_class goes with --heatmap DIR, the folder that the heat maps go to")
    classic = args.output is None and args.save_images is None and args.heatmap is None
    output = Path(DEFAULT_RESULT, "results.csv") if classic else args.output
    save_images = Path(DEFAULT_RESULT) if classic else args.save_images
    if output is not None:
        check_results_path(output)
    if args.shard is not None:
        check_shard(args, output)
    asked = args.image or args.image_dir or Path(DEFAULT_IMAGES)
    if args.polygons is not None:
        check_polygons(args)
    folders = {folder: what for folder, what in ((save_images, "copies"), (args.heatmap, "heat maps")) if folder}
    for folder, what in folders.items():
        check_folder(folder)
        if asked.resolve().is_relative_to(folder.resolve()):
            raise InputsError(f"{asked}: it lies inside {folder}, where the {what} go; choose another folder")
    images = one_image(asked) if args.image else images_below(asked, *folders)
    weights, config = weights_and_config(args)
    return Request(weights, config, None if args.image else asked, images, output, save_images, args.heatmap)


def run(args: argparse.Namespace, request: Request) -> int:
    """Load the net, predict for every image, print the sums; return the exit code. Raises UserError."""
    from artifacts.formats import TITLES, artifact_kind

    kind = artifact_kind(request.weights)  # a file that nothing loads is refused before torch is imported
    if request.heatmap is not None and kind != "checkpoint":
        from deploy.inference.heatmap_writer import refuse_without_gradients

        refuse_without_gradients(request.weights, TITLES[kind])
    from deploy.inference.predictor import Predictor

    backend, metadata = load_net(args, PROGRAM, request.weights, request.config)
    if args.score_threshold is not None:
        metadata = with_score_threshold(metadata, args.score_threshold)
    warn_of_foreign_calibration(PROGRAM, request.weights, backend, metadata, args.precision)
    predictor = Predictor(backend, metadata)
    if args.tiles is not None:
        from deploy.inference.tiles import TiledPredictor

        predictor = TiledPredictor(backend, metadata, args.tiles)
    if args.whole:
        from deploy.inference.whole_images import WholePredictor

        predictor = WholePredictor(backend, metadata)
    images = input_images(args, request.images, request.root, metadata)
    copies = _copies(args, request, predictor)
    tally = Tally()
    predict = _predict_shard if args.shard else _predict_folder
    try:
        predict(args, request, images, predictor, copies, tally)
    finally:  # a run that was stopped keeps what it has, too
        for copy in copies:
            if hasattr(copy, "finish"):
                copy.finish()
    uncopied = f"{tally.uncopied} not copied, " if tally.uncopied else ""
    before = f"{tally.before} predicted before, " if tally.before else ""
    sums = f"{tally.predicted} answered, {tally.failed} failed, {uncopied}{before}{tally.speed(backend)}"
    return report_end(PROGRAM, tally, sums, _places(args, request))


def conversions(args: argparse.Namespace) -> list[str]:
    """Return the formats that the classic switches ask for."""
    return [name for name in ("json", "jit", "onnx") if getattr(args, f"pytorch2{name}")]


def convert(args: argparse.Namespace) -> int:
    """Write the net in other formats beside its weights; return the exit code, 3 where one was refused.

    Raises UserError.
    """
    if args.output or args.save_images:
        raise InputsError(
            "a conversion goes beside the weights and classifies nothing: leave out --output and "
            "--save_images, or use python -m deploy.export --output_dir DIR"
        )
    if args.heatmap or args.heatmap_class:
        raise InputsError("a conversion makes no heat maps: leave out --heatmap and --heatmap_class")
    if args.shard:
        raise InputsError(f"a conversion has no parts: leave out --shard {args.shard}")
    if args.image:
        raise InputsError(f"{args.image}: one image verifies no conversion; name a folder with --image_dir")
    if args.image_dir:
        next(images_below(args.image_dir))
    weights, config = weights_and_config(args)
    from artifacts.formats import artifact_kind

    if artifact_kind(weights) == "checkpoint":
        check_flags_of_a_checkpoint(args, weights)
    from deploy.export.exporter import export_formats
    from deploy.export.request import ExportRequest

    request = ExportRequest(
        weights=weights,
        formats=conversions(args),
        output_dir=weights.parent,
        samples=args.image_dir,
        config=config,
        device=args.device,
    )
    return export_formats(request)


def _predict_folder(
    args: argparse.Namespace,
    request: Request,
    images: Iterator[Source],
    predictor: Predictor,
    copies: Sequence[Copies],
    tally: Tally,
) -> None:
    columns = predictor.csv_columns(args.topk)
    as_text = not args.raw_csv
    opened = open_results(request.output, columns, escape_formulas=as_text) if request.output else nullcontext()
    with opened as results:
        _predict_all(args, request, images, predictor, results, copies, tally)


def _predict_shard(
    args: argparse.Namespace,
    request: Request,
    images: Iterator[Source],
    predictor: Predictor,
    copies: Sequence[Copies],
    tally: Tally,
) -> None:
    from deploy.inference.cli_shard import opened_shard

    assert request.output is not None and request.root is not None  # see `check_shard`
    with opened_shard(args, request.output, request.root, images, request.weights, predictor) as shard:
        tally.before, tally.failed_before = shard.content.done, shard.content.failed
        waiting = (source_of(entry, request.root) for entry in shard.waiting)
        _predict_all(args, request, waiting, predictor, shard, copies, tally)


def _predict_all(
    args: argparse.Namespace,
    request: Request,
    images: Iterator[Source],
    predictor: Predictor,
    results: ResultsFile | ShardFile | None,
    copies: Sequence[Copies],
    tally: Tally,
) -> None:
    from data_loader.preprocess import ImageError

    layout = LineLayout.of(predictor.prediction_type.text_widths(predictor.metadata), line_columns())

    def record(prediction: Prediction) -> None:
        path = Path(prediction.file)
        relative = path.name if request.root is None else path.relative_to(request.root).as_posix()
        try:
            for kind in copies:
                kind.add(prediction, relative)
        except ImageError as error:  # it was there when it was classified
            tally.log_uncopied(PROGRAM, prediction.file, error)
        if results is not None:  # last: an image with a row is done
            results.write(prediction)

    def line(prediction: Prediction) -> str:
        return "" if args.quiet and not prediction.error else layout.line(prediction)

    found = until_unreadable(images, tally)
    predictions = predictor.predict_files(found, args.batch_size, args.topk, args.workers)
    predict_all(predictions, record, line, tally)


def _places(args: argparse.Namespace, request: Request) -> str:
    output = None if request.output and request.output.parent == request.save_images else request.output
    output = args.shard.path(request.output) if args.shard else output
    places = [place for place in (output, request.save_images, request.heatmap) if place is not None]
    return " and ".join(dict.fromkeys(map(str, places)))


def _copies(args: argparse.Namespace, request: Request, predictor: Predictor) -> list[Copies]:
    """Return what writes images. Raises HeatMapError where a heat map cannot be made."""
    from deploy.inference.image_writers import AnnotatedCopies, MaskCopies, SortedCopies
    from deploy.inference.label_lists import label_writer

    metadata = predictor.metadata
    made: list[Copies] = []
    if request.save_images is not None and metadata.output == "mask_logits":
        made.append(MaskCopies(request.save_images, metadata.preprocess, args.polygons))
    elif request.save_images is not None and args.save_as == "folders" and metadata.output == "logits":
        made.append(SortedCopies(request.save_images, metadata.class_names))
    elif request.save_images is not None:
        made.append(AnnotatedCopies(request.save_images, metadata.preprocess))
    if args.labels:
        if request.save_images is None or metadata.output != "boxes":
            raise InputsError("--labels goes with --save_images DIR, and with a net that gives boxes")
        if not args.shard:  # of shards the merge writes them
            from datasets.studio_writer import predicted_tasks

            made.append(label_writer(args.labels, request.save_images, request.root, metadata, predicted_tasks))
    if request.heatmap is not None:
        from deploy.inference.heatmap_writer import heat_map_copies

        made.append(heat_map_copies(request.heatmap, predictor, args.heatmap_class))
    return made


if __name__ == "__main__":
    raise SystemExit(main())
