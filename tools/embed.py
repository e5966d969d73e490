"""Write the features of a folder's images: `python -m tools.embed --weights W --images DIR --output E.npz`.

W is a net whose output is features, such as a pretrained SimSiam (a checkpoint or any file exported from it), or any
classifier's checkpoint, whose features before the last layer are used. The file holds `features`, float32 (N, D), each
row of length 1; `files`, the paths below DIR; `weights_sha256`; `precision`; and `preprocess`, JSON text.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.atomic_io import check_folder
from common.cli import FlagParser, run_program
from common.console import printable
from common.errors import UserError
from common.formatting import is_utf8
from configs.loading import process_config
from data_loader.image_files import walk_images
from deploy.backends.base import RUNTIMES

if TYPE_CHECKING:
    from deploy.inference.feature_extractor import Embedder, Embeddings

PROGRAM = "tools.embed"


class EmbedError(UserError):
    """A mistake of the user's; the message is one sentence for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Embed a folder; return 0, 1 where some images could not be read, or 2 for a mistake of the user's."""
    args = make_parser().parse_args(argv)
    return run_program(PROGRAM, lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Embed a folder, write the file and print a summary; return the exit code. Raises UserError, OSError."""
    check_target(args.output, ".npz")
    next(iter_folder(args.images))
    embedder = load_embedder(args)
    started = time.perf_counter()
    embeddings, failed = embed_folder(PROGRAM, embedder, args.images, args.batch_size, args.workers)
    embeddings.save(args.output)
    count, size = embeddings.features.shape
    rate = (count + failed) / (time.perf_counter() - started)
    where = f"{embedder.backend.name} {embedder.backend.device}"
    print(f"{args.output}: {count} images, {size} features each; {failed} failed, {rate:.1f} images/s on {where}")
    return 1 if failed else 0


def embed_folder(program: str, embedder: Embedder, root: Path, batch_size: int, workers: int) -> tuple[Embeddings, int]:
    """Embed the images below a folder; return the embeddings and the number of failed images, each reported on stderr.

    Only features are held in memory. Raises EmbedError where all fail, and BackendError.
    """
    import numpy as np
    from tqdm import tqdm

    from deploy.inference.feature_extractor import Embeddings

    held, files, failed = bytearray(), [], 0  # bytes grow in place; joining arrays would need twice the memory
    embedded = embedder.embed_files(iter_folder(root), batch_size, workers)
    for image in tqdm(embedded, unit=" images", disable=None, leave=False):
        relative = Path(image.file).relative_to(root).as_posix()
        error = image.error or ("" if is_utf8(relative) else "its name is not UTF-8; rename it")
        if error or image.features is None:
            failed += 1
            tqdm.write(f"{program}: {printable(image.file)}: {printable(error)}", file=sys.stderr)
            continue
        held += image.features.tobytes()
        files.append(relative)
    if not files:
        raise EmbedError(f"{root}: none of its {failed} images could be embedded")
    features = np.frombuffer(held, np.float32).reshape(len(files), -1)  # (N, D)
    metadata = embedder.metadata
    return Embeddings(
        features, tuple(files), metadata.weights_sha256, metadata.precision, embedder.preprocess_text()
    ), failed


def iter_folder(root: Path) -> Iterator[str]:
    """Return an iterator over the images below a folder. Raises UserError where there is no folder or no image."""
    if not root.is_dir():
        raise EmbedError(f"{root}: no such folder (relative paths start from {Path.cwd()})")
    images = walk_images(root)
    return itertools.chain([next(images)], images)


def load_embedder(args: argparse.Namespace) -> Embedder:
    """Load the net that the flags of `add_net_flags` name. Raises UserError."""
    for flag in ("batch_size", "workers"):
        if getattr(args, flag) < 1:
            raise EmbedError(f"--{flag} must be at least 1, got {getattr(args, flag)}")
    config = process_config(args.config, check_files=False) if args.config else None
    from deploy.inference import feature_extractor  # late: the checks above need no torch

    return feature_extractor.load_embedder(args.weights, device=args.device, config=config, runtime=args.runtime)


def check_target(path: Path, suffix: str) -> None:
    """Raise UserError where a file with that suffix cannot be written, as far as that is known beforehand."""
    if path.suffix.lower() != suffix:
        raise EmbedError(f'{path}: the file must end in {suffix}, got "{path.suffix}"')
    if path.is_dir():
        raise EmbedError(f"{path}: it is a folder; give a file")
    check_folder(path.parent)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of tools.embed."""
    summary, _, rest = (__doc__ or "").partition("\n\n")
    parser = FlagParser(
        prog=f"python -m {PROGRAM}",
        description=f"{summary.partition(':')[0]}.",
        epilog=rest.strip(),
        allow_abbrev=False,
    )
    add_net_flags(parser)
    parser.add_argument("--output", metavar="E.npz", type=Path, required=True, help="the file to write the features to")
    return parser


def add_net_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the net, the folder, and how the net is run."""
    add = parser.add_argument
    add("--weights", metavar="W", type=Path, required=True, help="a checkpoint, or a file exported from one")
    add("--images", metavar="DIR", type=Path, required=True, help="a folder of images, with all below it")
    add("--config", metavar="F", type=Path, help="config of bare weights, which do not name their net")
    add("--batch_size", metavar="N", type=int, default=32, help="images at once (default 32)")
    add("--workers", metavar="N", type=int, default=4, help="threads that decode (default 4)")
    add("--device", metavar="D", default="auto", help="auto (default), cpu, cuda or cuda:N")
    add("--runtime", choices=RUNTIMES, default="auto", help="what runs an ONNX file (default auto)")


if __name__ == "__main__":
    raise SystemExit(main())
