"""What `inference.py --shard I/N` has beside a run of all images: its own images, and a file that it goes on with."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from common.checksums import file_sha256
from common.version import VERSION
from deploy.inference.cli_inputs import InputsError
from deploy.inference.shards import shard_images

if TYPE_CHECKING:
    from deploy.inference.predictor import Predictor, Source
    from deploy.inference.shard_file import ShardFile

FLAGS = (  # those that what is written depends on; all shards of a run have the same
    "topk",
    "raw_csv",
    "score_threshold",
    "tiles",
    "whole",
    "polygons",
    "runtime",
    "precision",
    "save_images",
    "save_as",
    "labels",
    "heatmap",
    "heatmap_class",
)


def check_shard(args: argparse.Namespace, output: Path | None) -> None:
    """Raise InputsError where the flags name no part of a folder, or no file to write beside."""
    if args.image:
        raise InputsError(f"--shard {args.shard} is a part of a folder: name it with --image_dir, not --image")
    if output is None:
        raise InputsError(f"--shard {args.shard} needs --output FILE: the shard's own file lies beside it")


def opened_shard(
    args: argparse.Namespace, output: Path, root: Path, images: Iterable[Source], weights: Path, predictor: Predictor
) -> AbstractContextManager[ShardFile]:
    """Return the shard's file, to be entered, with the images of the folder that are its own.

    Raises OSError where the folder cannot be read.
    """
    from artifacts.hub_folder import weights_file
    from deploy.inference.result_writer import RowFormat
    from deploy.inference.shard_file import head_of, open_shard

    found = shard_images(images, root, args.shard)
    columns = predictor.csv_columns(args.topk)
    flags = {name: getattr(args, name) for name in FLAGS}
    head = head_of(
        args.shard,
        program=VERSION,
        flags={"image_dir": str(root)} | {name: str(v) if isinstance(v, Path) else v for name, v in flags.items()},
        images=found.total,
        images_sha256=found.sha256,
        weights_sha256=file_sha256(weights_file(weights)),
        metadata=predictor.metadata.to_dict(),
        columns=columns,
        runs_on=predictor.backend.name,
    )
    rows = RowFormat(output.suffix, columns, escape_formulas=not args.raw_csv)
    return open_shard(args.shard.path(output), args.shard, head, found.own, rows, with_objects=bool(args.labels))
