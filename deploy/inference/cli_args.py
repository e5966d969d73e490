"""The flags of inference.py."""

from __future__ import annotations

import argparse
import os

from common.cli import FlagParser, named_path, number
from configs.schema import DEFAULT_CONFIG
from data_loader.decode_guard import DECODE_TIMEOUT_S
from deploy.backends.base import ACCEPT_CHANGED_HELP, DEFAULT_OVERLAP, PRECISION_HELP, PRECISIONS, RUNTIMES
from deploy.inference.result_writer import RAW_CSV_HELP, RESULTS_HELP
from deploy.inference.shards import shard_of

DEFAULT_POLYGON = 32
DEFAULT_IMAGES, DEFAULT_RESULT = "data_example/images", "data_example/result"
EXAMPLES = """\
examples:
  python inference.py
      data_example/images, sorted into data_example/result
  python inference.py --image cat.jpg --weights net.pth
      one image
  python inference.py --image_dir photos --weights model.onnx --output a.csv
      a folder, with all below it; the file itself holds classes and size
  python inference.py --weights net.pth --pytorch2onnx --pytorch2json
      model.onnx, model.json and model.safetensors beside net.pth
  python inference.py --image_dir photos --weights net.pth --heatmap maps
      each photo under a heat map of its prediction
  python inference.py --image_dir photos --weights net.pth --output a.csv
      --shard 2/8
      the second of eight parts, for a machine of its own

Without --output, --save_images and --heatmap the first two go to
data_example/result.
exit codes: 0 every image has a prediction, or every file is written; 1 some
images failed; 2 a mistake in the flags or files; 3 a conversion predicted
otherwise than the net, and was not kept; 130 stopped with Ctrl-C (the results
so far are kept)"""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of inference.py."""
    parser = FlagParser(
        prog="inference.py",
        description="Predict for images with a trained net, or convert it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_images(parser)
    add_net(parser)
    _add_masks(parser)
    _add_conversions(parser)
    _add_results(parser)
    add_machine(parser)
    return parser


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the flags that name the images."""
    add = parser.add_argument_group("images").add_mutually_exclusive_group().add_argument
    add("-image", "--image", metavar="FILE", type=named_path, help="one image")
    add(
        "-idir",
        "--image_dir",
        metavar="DIR",
        type=named_path,
        help=f"a folder, with all below it (default {DEFAULT_IMAGES}); for a net of pairs one that holds A/ and B/",
    )


def add_second_image(group: argparse._ArgumentGroup) -> None:
    """Add the flag that names the later image of a pair."""
    text = "with --image, for a net of pairs: the later image"
    group.add_argument("--second_image", metavar="FILE", type=named_path, help=text)


def add_net(parser: argparse.ArgumentParser, weights: int | str | None = None) -> None:
    """Add the flags that name the net; `weights` is argparse's nargs of --weights."""
    add = parser.add_argument_group("net").add_argument
    add(
        "--weights",
        metavar="F",
        type=named_path,
        nargs=weights,
        help="a checkpoint (.pth), TorchScript (.pt), torch.export (.pt2), ONNX (.onnx), a network description (.json) "
        "or a TensorRT engine (.engine); each holds its own metadata (default: the config's checkpoint)",
    )
    add(
        "-cfg",
        "--config",
        metavar="F",
        type=named_path,
        help=f"the config of the net (without --weights: {DEFAULT_CONFIG})",
    )
    add("--accept_changed", action="store_true", help=ACCEPT_CHANGED_HELP)
    add("-net", "--net", metavar="NAME", help="instead of the config's model_net_name")
    add("-model", "--model", "-module", "--module", metavar="MODULE", help="instead of the config's model_module_name")
    add("-cls", "--cls", metavar="N", type=number(2, 10**9), help="instead of the config's num_classes")
    add("-size", "--size", metavar="N", type=number(1, 8192), help="instead of img_height and img_width")


def _add_masks(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("nets that give masks or boxes")
    group.add_argument(
        "--score_threshold",
        metavar="X",
        type=number(0.0, 1.0),
        help="for nets that give boxes: the least score of an object (default: the checkpoint's own)",
    )
    group.add_argument(
        "--labels",
        choices=("voc", "yolo", "coco", "studio"),
        help="with --save_images, for nets that give boxes: also a label file for each image, as VOC XML or YOLO txt, "
        "or one for all: COCO's results or Label Studio's tasks with predictions",
    )
    sizes = group.add_mutually_exclusive_group()
    sizes.add_argument(
        "--whole",
        action="store_true",
        help="for nets that give masks: see each image whole at its own scale; a checkpoint, or a file exported with "
        "--any_size",
    )
    sizes.add_argument(
        "--tiles",
        metavar="OVERLAP",
        type=number(0.0, 0.9),
        nargs="?",
        const=DEFAULT_OVERLAP,
        help="see images at their own scale in tiles of the net's input size, which overlap by this share (default "
        f"{DEFAULT_OVERLAP})",
    )
    group.add_argument(
        "--polygons",
        metavar="PIXELS",
        type=number(1, 10**9),
        nargs="?",
        const=DEFAULT_POLYGON,
        help="of georeferenced images also the areas of each class as GeoJSON, those of fewer pixels merged "
        f"into their neighbours (default {DEFAULT_POLYGON}); needs requirements-geo.txt",
    )
    add_second_image(group)


def _add_conversions(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "conversions",
        "Write the net in other formats beside its weights, and classify nothing. The\n"
        "images verify the files (default: the checkpoint's validation list).\n"
        "python -m deploy.export has more formats and options.",
    )
    for file_format, text in (
        ("json", "model.json and model.safetensors, a network description for TensorRT"),
        ("jit", "model.pt, TorchScript"),
        ("onnx", "model.onnx"),
    ):
        group.add_argument(
            f"--pytorch2{file_format}", metavar="True", nargs="?", type=_truth, const=True, default=False, help=text
        )


def _add_results(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("results").add_argument
    add("--topk", metavar="K", type=number(1, 10**9), default=5, help="classes listed per image (default 5)")
    add("--output", metavar="F", type=named_path, help=f"{RESULTS_HELP} (default {DEFAULT_RESULT}/results.csv)")
    add("--raw_csv", action="store_true", help=RAW_CSV_HELP)
    add(
        "--save_images",
        metavar="DIR",
        type=named_path,
        help=f"a folder for copies of the images, or their masks (default {DEFAULT_RESULT})",
    )
    add(
        "--save_as",
        choices=("folders", "annotated"),
        default="folders",
        help="sort the copies into a folder per class (default), or write the prediction below each",
    )
    add(
        "--heatmap",
        metavar="DIR",
        type=named_path,
        help="a folder for the images under a heat map of their prediction; needs a checkpoint",
    )
    add("--heatmap_class", metavar="NAME", help="with --heatmap: also a heat map of this class")
    add("--quiet", action="store_true", help="no line for an image with a prediction")
    add(
        "--shard",
        metavar="I/N",
        type=shard_of,
        help="predict for part I of N, from 1, of the folder: each N-th of its images, into a file beside --output; "
        "started again it goes on; python -m deploy.batch.merge makes --output of all N",
    )


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Add the flags of how and where it runs."""
    add = parser.add_argument_group("machine").add_argument
    add("--batch_size", metavar="N", type=number(1, 65536), default=32, help="images at once (default 32)")
    workers = min(os.cpu_count() or 1, 16)
    add("--workers", metavar="N", type=number(1, 256), default=workers, help="processes that decode")
    add(
        "--decode_timeout_s",
        metavar="S",
        type=number(0.1, 86_400.0),
        default=DECODE_TIMEOUT_S,
        help=f"for decoding one image, which fails then (default {DECODE_TIMEOUT_S:g})",
    )
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add(
        "--runtime",
        choices=RUNTIMES,
        default="auto",
        help="what runs an ONNX file (default auto: onnxruntime on a GPU, else openvino where it is installed)",
    )
    add("--precision", choices=PRECISIONS, default="auto", help=PRECISION_HELP)


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f'must be True or False, or nothing, got "{text}"')
    return text.lower() in ("true", "1")
