"""The flags of deploy.export."""

from __future__ import annotations

import argparse
import re
import textwrap

from common.cli import FlagParser, named_path, number
from deploy.export.console import PROGRAM
from deploy.export.formats import (
    ALL,
    EXPORT_FORMATS,
    FORMAT_NAMES,
    INT8_FORMATS,
    MAX_BATCH,
    MAX_SAMPLES,
    OPSET,
    OPSET_BF16,
    OPSETS,
    PRECISIONS,
    UNKNOWN_LICENCE,
    WTS,
)

COLUMNS, TITLE_COLUMN = 79, 27
NOTES = """\
Every file is compared with the net on real images; export_report.json holds
all that was measured. Exit codes: 0 written, 2 a mistake in the request,
3 a file differs from the net and was not kept, 128 + n stopped by signal n
(the files already verified are kept)."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of deploy.export."""
    parser = FlagParser(
        prog=PROGRAM,
        description="Write a trained net in other formats, each file verified on real images.",
        epilog=f"formats:\n{_format_table()}\n{NOTES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_files(parser)
    _add_images(parser)
    _add_folders(parser)
    return parser


def _format_table() -> str:
    rows = [(row.name, row.files[0], row.title) for row in EXPORT_FORMATS.values()]
    rows.append((ALL, "", "all of them; one whose library is missing is left out, which the table notes"))
    indent = " " * TITLE_COLUMN
    return "\n".join(
        textwrap.fill(f"  {name:<8}{file:<17}{title}", COLUMNS, subsequent_indent=indent) for name, file, title in rows
    )


def _add_files(parser: argparse.ArgumentParser) -> None:
    with_precision = ", ".join(row.name for row in EXPORT_FORMATS.values() if not row.precision)
    add = parser.add_argument
    add("--weights", metavar="F", type=named_path, required=True, help="a checkpoint, or bare weights with --config")
    add("--formats", metavar="A,B", type=_formats, default=[], help=f"of {', '.join(FORMAT_NAMES)}")
    add("--output_dir", metavar="DIR", type=named_path, help="where the files go (default: beside the weights)")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help=f"of {with_precision} (default fp32; int8: of {' and '.join(INT8_FORMATS)})",
    )
    add(
        "--with_preprocess",
        nargs="?",
        const="rgb",
        default="",
        choices=("rgb", "bgr"),
        help="put scale, mean and std into the graph: it takes uint8 (N, H, W, C), RGB or BGR (default rgb)",
    )
    add(
        "--batch_profile",
        metavar="A,B,C",
        type=_profile,
        help="least, best and most images at once, for engines (default 1,8,64)",
    )
    add(
        "--opset",
        metavar="N",
        type=number(*OPSETS),
        help=f"of ONNX (default {OPSET}, for bf16 {OPSET_BF16}); a higher one needs newer runtimes",
    )
    add(
        "--any_size",
        action="store_true",
        help="of nets of masks: jit, pt2, onnx and int8 take images of any height and width that are multiples of the "
        "net's stride",
    )
    add("--int8_symmetric", action="store_true", help="int8 with all zero points 0, which TensorRT takes")
    add("--wts", action="store_true", help=f"also write {WTS}, the state dict as tensorrtx's text weights")
    add("--config", metavar="F", type=named_path, help="describes bare weights, and how their lists are written")


def _add_folders(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("folders for other programs").add_argument
    add(
        "--triton",
        metavar="DIR",
        type=named_path,
        help="a model repository of Triton, in which the net gets a folder with the engine, ONNX or int8 file of "
        "--formats, its config.pbtxt and the class names",
    )
    add(
        "--hub",
        metavar="DIR",
        type=named_path,
        help="a new folder for the Hugging Face Hub: config.json, model.safetensors and a model card made from the "
        "training's report.json; needs no --formats",
    )
    add("--report", metavar="F", type=named_path, help="that report.json (default: the one beside the weights)")
    add(
        "--licence",
        metavar="ID",
        type=_licence,
        default=UNKNOWN_LICENCE,
        help=f"of the weights, for the model card, such as apache-2.0 (default {UNKNOWN_LICENCE})",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--samples",
        metavar="F",
        type=named_path,
        help="a list (path, separator, label a line) or a folder of images (default: the net's validation data)",
    )
    add(
        "--samples_root",
        metavar="DIR",
        type=named_path,
        help="where the paths in that list start (default: the config's folders or the list's own, whichever has "
        "most of the images)",
    )
    add(
        "--max_samples",
        metavar="N",
        type=_count,
        help=f"images of it, evenly spread; 0: all (default {MAX_SAMPLES}, or what fits in 2 GB); each is held in "
        "memory with height x width x 3 bytes",
    )
    add("--device", metavar="D", default="auto", help="where it is verified: auto (default), cpu, cuda or cuda:N")


def _formats(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _licence(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.+-]+", text):
        raise argparse.ArgumentTypeError(f'must be an identifier such as apache-2.0, got "{text}"')
    return text


def _profile(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in text.split(",") if size.isdecimal()]
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2] <= MAX_BATCH:
        raise argparse.ArgumentTypeError(f'must be three rising batch sizes such as 1,8,64, got "{text}"')
    return sizes[0], sizes[1], sizes[2]


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f'must be a whole number from 0, got "{text}"')
    return int(text)
