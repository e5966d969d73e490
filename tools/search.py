"""Find the images of a folder most similar to a query: `python -m tools.search --weights W --images DIR --query Q`.

Similarity is the cosine of the net's features, at most 1. W is as in tools.embed; with its file as --embeddings the
folder is not embedded again. A query in the folder is not among its own results.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.atomic_io import atomic_path, write_atomic, writing
from common.cli import FlagParser, run_program
from common.console import elide, printable
from common.formatting import csv_cell
from data_loader.image_files import iter_images
from deploy.inference.result_writer import RAW_CSV_HELP
from tools.embed import EmbedError, add_net_flags, check_target, embed_folder, iter_folder, load_embedder

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from deploy.inference.feature_extractor import Embedder, Embeddings

PROGRAM = "tools.search"
SHEET_QUERIES = 30  # few programs open the image of more
CELL_PX, FRAME_PX = 160, 4
QUERY_PX = 388  # the height of two rows of hits with captions of three lines
MAX_COLUMNS = 6
LEFT_COLUMNS = 2 + 3 + 2 + 7 + 2  # of a line before the path


@dataclass(frozen=True)
class Hit:
    """A found image: its path below the folder, and its cosine to the query."""

    file: str
    similarity: float


@dataclass(frozen=True)
class SearchResult:
    """The images found for one query, the most similar first."""

    query: str
    hits: tuple[Hit, ...]


def main(argv: Sequence[str] | None = None) -> int:
    """Search; return 0, 1 where some images could not be read, or 2 for a mistake of the user's."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Search, write the requested files and print the results; return the exit code. Raises UserError, OSError."""
    check(args)
    embedder = load_embedder(args)
    if args.embeddings:
        embeddings, failed = _read_embeddings(args, embedder), 0
    else:
        embeddings, failed = embed_folder(PROGRAM, embedder, args.images, args.batch_size, args.workers)
    results = []
    for image in embedder.embed_files(iter_queries(args.query), args.batch_size, args.workers):
        if image.features is None:
            failed += 1
            print(f"{PROGRAM}: {printable(image.file)}: {printable(image.error)}", file=sys.stderr)
            continue
        hits = most_similar(embeddings, args.images, image.file, image.features, args.k)
        results.append(SearchResult(image.file, tuple(hits)))
    if args.output and results:
        write_csv(args.output, args.images, results)
    if args.sheet and results:
        write_sheet(args.sheet, args.images, results, embedder.metadata.preprocess.max_pixels)
    for number, found in enumerate(results):  # last: stdout may be a pipe that is closed early
        print("\n" * bool(number) + "\n".join(format_result(found)))
    return 1 if failed else 0


def check(args: argparse.Namespace) -> None:
    """Check the flags without torch. Raises UserError."""
    if args.k < 1:
        raise EmbedError(f"--k must be at least 1, got {args.k}")
    next(iter_folder(args.images))
    if not args.query.exists():
        raise EmbedError(f"{args.query}: no such image or folder (relative paths start from {Path.cwd()})")
    next(iter_queries(args.query))
    if args.output:
        check_target(args.output, ".csv")
    if args.sheet:
        check_target(args.sheet, ".png")
        for folder in (args.images, args.query):
            if folder.is_dir() and args.sheet.resolve().is_relative_to(folder.resolve()):
                raise EmbedError(f"{args.sheet}: it would be one of the images of {folder}; choose another folder")


def iter_queries(query: Path) -> Iterator[str]:
    """Return an iterator over the image, or those below the folder. Raises EmbedError for an empty folder."""
    return iter_folder(query) if query.is_dir() else iter([str(query)])


def most_similar(embeddings: Embeddings, root: Path, query: str, features: np.ndarray, count: int) -> Iterator[Hit]:
    """Yield the `count` images most similar to a query's features (D,), without the query's own file."""
    for file, cosine in embeddings.ranked(features):
        if count == 0:
            return
        if not (root / file).samefile(query):
            count -= 1
            yield Hit(file, cosine)


def format_result(found: SearchResult) -> list[str]:
    """Return the query and, below it, rank, similarity and path; on a terminal lines are cut to its width."""
    columns = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else None
    lines = [_fitting(found.query, columns)]
    for rank, hit in enumerate(found.hits, 1):
        path = _fitting(hit.file, None if columns is None else max(columns - LEFT_COLUMNS, 16))
        lines.append(f"  {rank:>3}  {hit.similarity:7.4f}  {path}")
    return lines if found.hits else [*lines, "  no other image"]


def write_csv(path: Path, root: Path, results: Sequence[SearchResult], *, escape_formulas: bool = True) -> None:
    """Write a line per hit: query, rank, similarity, file; UTF-8 with a BOM, for Excel. Raises ResultsError."""
    cell = csv_cell if escape_formulas else str
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(["query", "rank", "similarity", "file"])
    for found in results:
        for rank, hit in enumerate(found.hits, 1):
            file = (root / hit.file).as_posix()
            table.writerow([cell(found.query), rank, f"{hit.similarity:.6f}", cell(file)])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue().encode("utf-8-sig", "backslashreplace"))


def write_sheet(path: Path, root: Path, results: Sequence[SearchResult], max_pixels: int) -> None:
    """Draw the queries, each beside the images found for it. Raises ResultsError, ImageError."""
    if len(results) > SHEET_QUERIES:
        print(f"{PROGRAM}: {path} shows the first {SHEET_QUERIES} of {len(results)} queries", file=sys.stderr)
    sheet = _stack([_draw_result(found, root, max_pixels) for found in results[:SHEET_QUERIES]])
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            sheet.save(temporary, "PNG", optimize=True)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.search."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = FlagParser(
        prog=f"python -m {PROGRAM}", description=f"{summary.partition(':')[0]}.", epilog=rest, allow_abbrev=False
    )
    add_net_flags(parser)
    add = parser.add_argument
    add("--query", metavar="Q", type=Path, required=True, help="an image, or a folder of them")
    add("--k", metavar="K", type=int, default=8, help="images to find for each (default 8)")
    add("--embeddings", metavar="E.npz", type=Path, help="the file that tools.embed wrote for the folder")
    add("--output", metavar="S.csv", type=Path, help="also write the results as a table")
    add("--raw_csv", action="store_true", help=RAW_CSV_HELP)
    add("--sheet", metavar="S.png", type=Path, help="also write the results as an image")
    return parser


def _read_embeddings(args: argparse.Namespace, embedder: Embedder) -> Embeddings:
    """Read the folder's embeddings, and verify that weights and folder are the same. Raises UserError, OSError."""
    from deploy.inference.feature_extractor import Embeddings

    path, root = args.embeddings, args.images
    embeddings = Embeddings.read(path)
    own = embedder.metadata.weights_sha256
    if not own or embeddings.weights_sha256 != own:
        raise EmbedError(f"{path}: it was made with other weights than {args.weights}; leave it out, or make it again")
    if embeddings.precision != embedder.metadata.precision:
        made = f"it was made in {embeddings.precision}, and {args.weights} is {embedder.metadata.precision}"
        raise EmbedError(f"{path}: {made}; leave it out, or make it again")
    if embeddings.preprocess != embedder.preprocess_text():
        raise EmbedError(f"{path}: it was made with another preprocessing than {args.weights} has; make it again")
    present = {Path(file).relative_to(root).as_posix() for file in iter_images(root)}
    gone = [file for file in embeddings.files if file not in present]
    if gone:
        raise EmbedError(
            f"{path}: {len(gone)} of its {len(embeddings.files)} images are not below {root}, first {gone[0]}; "
            "name the folder that it was made of, or make it again"
        )
    if unknown := len(present) - len(embeddings.files):
        print(f"{PROGRAM}: {unknown} of {len(present)} images below {root} are not in {path}", file=sys.stderr)
    return embeddings


def _fitting(text: str, columns: int | None) -> str:
    return printable(text) if columns is None else elide(printable(text), columns)


def _draw_result(found: SearchResult, root: Path, max_pixels: int) -> Image.Image:
    """Draw one query, large and framed, and the hits to its right."""
    from PIL import Image

    from visualization.raster import PAPER, image_grid

    name = Path(found.query)
    query = image_grid(
        [_framed(_pixels(name, QUERY_PX, max_pixels))], [f"query\n{name.name}\n{name.parent.name}"], 1, cell_px=QUERY_PX
    )
    columns = min(max(math.ceil(len(found.hits) / 2), 1), MAX_COLUMNS)
    files = [Path(hit.file) for hit in found.hits]
    captions = [
        f"{hit.similarity:.4f}\n{file.name}\n{'' if file.parent == Path() else file.parent}"
        for hit, file in zip(found.hits, files, strict=True)
    ]
    images = [_pixels(root / file, CELL_PX, max_pixels) for file in files]
    hits = image_grid(images, captions, columns, cell_px=CELL_PX)
    block = Image.new("RGB", (query.shape[1] + hits.shape[1], max(query.shape[0], hits.shape[0])), PAPER)
    block.paste(Image.fromarray(query), (0, 0))
    block.paste(Image.fromarray(hits), (query.shape[1], 0))
    return block


def _pixels(path: Path, cell_px: int, max_pixels: int) -> np.ndarray:
    """Read an image for a cell, (H, W, 3) uint8; a large one is reduced at once to twice the cell, to save memory."""
    import numpy as np

    from data_loader.decoding import decode

    image = decode(path, 3, max_pixels)
    image.thumbnail((2 * cell_px, 2 * cell_px))
    return np.asarray(image)


def _framed(pixels: np.ndarray) -> np.ndarray:
    """Fit an image into the query's cell, with a frame around it."""
    import numpy as np
    from PIL import Image, ImageOps

    from visualization.raster import HIT, thumbnail

    side_px = QUERY_PX - 6 - 2 * FRAME_PX  # 6: the margin of the cell
    image = ImageOps.contain(thumbnail(pixels, side_px), (side_px, side_px), Image.Resampling.NEAREST)
    return np.asarray(ImageOps.expand(image, FRAME_PX, HIT))


def _stack(blocks: Sequence[Image.Image]) -> Image.Image:
    """Draw the blocks below each other."""
    from PIL import Image

    from visualization.raster import PAPER

    sheet = Image.new("RGB", (max(block.width for block in blocks), sum(block.height for block in blocks)), PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
