"""The flags of inference_uncertain.py."""

from __future__ import annotations

import argparse

from artifacts.calibration import SCORES
from common.cli import FlagParser, named_path, number
from deploy.inference.cli_args import DEFAULT_RESULT, add_images, add_machine, add_net, add_second_image
from deploy.inference.result_writer import RAW_CSV_HELP, RESULTS_HELP
from deploy.uncertainty.calibration import DEFAULT_SCORE

DEFAULT_OUTPUT = f"{DEFAULT_RESULT}/uncertain.csv"
DEFAULT_PASSES = 20
LEAST_SHARE = 1e-6  # nearer to 0 or 1 no list is long enough
LIST_HELP = (
    "a labelled list, or one folder per class (of a detector: annotated images; of masks: images with label images), "
    "not trained on"
)
RISK_HELP = (
    "share of wrong predictions among the accepted (default 0.01); of a detector, of an image's objects that are "
    "missed (default 0.1); of masks, of wrong pixels among an image's accepted ones (default 0.1)"
)
REPEATS = ("dropout", "views")
VIEWS = ("flip", "shift", "scale")
EXAMPLES = """\
examples:
  python inference_uncertain.py --weights net.pth --calibrate valset.txt
      once: fit the thresholds, and write them into net.pth; exports carry them
  python inference_uncertain.py --weights net.pth -idir photos --output a.csv
      class, score, uncertainty, accept or set_aside, and the classes possible
  python inference_uncertain.py --weights model.onnx -idir photos --set_aside D
      copies of the uncertain images, a contact sheet and a list to label
  python inference_uncertain.py --weights net.pth --evaluate testset.txt --ood D
      are the targets met? a page with all scores and the worst mistakes
  python inference_uncertain.py --weights a.pth b.pth c.pth -idir photos
      also the disagreement of three nets; the first one predicts and decides

Without --output and --set_aside the results go to data_example/result.
exit codes: 0 every image has a prediction, or calibrated, or evaluated; 1 some
images failed; 2 a mistake in the flags or files, or no threshold meets the
target; 130 stopped with Ctrl-C (the results so far are kept)"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of inference_uncertain.py."""
    parser = FlagParser(
        prog="inference_uncertain.py",
        description="Classify images, and set aside the predictions that are too uncertain.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_images(parser)
    add_second_image(parser.add_argument_group("nets of pairs"))
    add_net(parser, weights="+")
    _add_calibration(parser)
    _add_evaluation(parser)
    _add_repetition(parser)
    _add_results(parser)
    add_machine(parser)
    return parser


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("calibration, once for a checkpoint").add_argument
    add("--calibrate", metavar="LIST", type=named_path, help=LIST_HELP)
    add(
        "--list_root",
        metavar="DIR",
        type=named_path,
        help="folder that a list's paths start from (default: as trained)",
    )
    add("--score", metavar="S", choices=SCORES, help=f"of {', '.join(SCORES)} (default {DEFAULT_SCORE})")
    add("--target_risk", metavar="R", type=_share, help=RISK_HELP)
    add("--confidence", metavar="P", type=_share, help="probability that it stays under that (default 0.95)")
    add("--conformal", metavar="R", type=_share, help="share of conformal sets without the true class (default 0.05)")


def _add_evaluation(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("evaluation of a calibrated net").add_argument
    add(
        "--evaluate",
        metavar="LIST",
        type=named_path,
        help="a labelled list, or one folder per class: used for nothing before; of masks, images with label images, "
        "for one file or several --weights side by side",
    )
    add(
        "--ood",
        metavar="DIR",
        type=named_path,
        help="a folder of out-of-distribution images, of none of its classes",
    )
    add(
        "--means",
        metavar="LIST",
        type=named_path,
        help="images for the class means of the distance (default: 2,000 trained on)",
    )
    add(
        "--report",
        metavar="DIR",
        type=named_path,
        help=f"for uncertainty.html and .json (default {DEFAULT_RESULT}); of masks for mask_evaluation.json",
    )


def _add_repetition(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "repetition",
        "More columns, from several passes: predictive_entropy = expected_entropy +\n"
        "mutual_information. Several --weights: one pass of each net. The decision is\n"
        "that of one pass of the first net, which was calibrated.",
    )
    group.add_argument("--repeat", choices=REPEATS, help="dropout kept on, or several views of each image")
    group.add_argument(
        "--passes", metavar="N", type=number(2, 1000), help=f"with --repeat dropout (default {DEFAULT_PASSES})"
    )
    group.add_argument(
        "--views",
        metavar="V",
        type=_views,
        help=f"with --repeat views: of {','.join(VIEWS)} (default shift,scale, and flip where the training flipped)",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("results").add_argument
    add("--topk", metavar="K", type=number(1, 10**9), default=1, help="classes listed per image (default 1)")
    add("--output", metavar="F", type=named_path, help=f"{RESULTS_HELP} (default {DEFAULT_OUTPUT})")
    add("--raw_csv", action="store_true", help=RAW_CSV_HELP)
    add(
        "--set_aside",
        metavar="DIR",
        type=named_path,
        help="a new folder for copies of the uncertain images, most uncertain first; of masks, for the mask of each "
        "image and what is set aside of it",
    )
    add("--quiet", action="store_true", help="no line for an image that was accepted")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'must be a number between 0 and 1, got "{text}"')
    if not LEAST_SHARE <= value <= 1 - LEAST_SHARE:
        raise argparse.ArgumentTypeError(f'must be {LEAST_SHARE:g} away from 0 and from 1 at least, got "{text}"')
    return value


def _views(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in VIEWS]:
        raise argparse.ArgumentTypeError(f'must be of {",".join(VIEWS)}, got "{unknown[0]}"')
    return names
