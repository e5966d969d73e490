"""Turn videos into frames with standard annotations: `python -m tools.antgo extract/videos --src DIR --tgt DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_loader.samples import current_folder
from datasets.errors import DatasetError
from datasets.files import ANNOTATION, check_target, write_annotations
from datasets.images import check_folders, check_side
from datasets.outcome import Outcome
from datasets.videos import FrameChoice, extract_videos, find_videos, load_av
from tools.datasets.verb import Verb, add_source, add_target, check_elsewhere, finish

DEFAULT_RATE = 15.0


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "folder with videos at any depth, or one video")
    add_target(parser)
    parser.add_argument(
        "--frame-rate", type=float, metavar="R", help="frames a second of the video's time (default 15)"
    )
    parser.add_argument("--every", type=int, metavar="K", help="each K-th frame instead, as antgo's --frame-rate")
    parser.add_argument("--num", type=int, default=0, metavar="N", help="at most so many frames of a video (0: all)")
    parser.add_argument("--max-size", type=int, default=0, metavar="PX", help="shrink to this longer side (0: no)")
    parser.add_argument("--format", choices=("png", "jpg"), default="png", help="of the frames (default png)")


def run(args: argparse.Namespace) -> int:
    """Extract the frames; return the exit code. Raises UserError, OSError."""
    choice = _choice(args)
    source = Path(args.src)
    if not source.exists():
        raise DatasetError(f"--src {source}: it is not there{current_folder(str(source))}")
    if source.is_dir():
        check_folders(source, args.tgt)
    else:
        check_elsewhere(source, args.tgt)
    check_target(args.tgt, args.overwrite)
    folder, paths = find_videos(source)
    load_av()
    outcome = Outcome(args.overwrite)
    records = list(extract_videos(folder, paths, args.tgt, choice, outcome))
    if not records:
        finish(f"{source}: no frame", outcome)
        raise DatasetError(f"--src {source}: none of {len(paths)} videos has a frame that can be decoded")
    write_annotations(args.tgt, records, [])
    return finish(f"{args.tgt / ANNOTATION}: {len(records):,} frames of {len(paths):,} videos", outcome)


def _choice(args: argparse.Namespace) -> FrameChoice:
    if args.frame_rate is not None and args.every is not None:
        raise DatasetError("--frame-rate takes frames by time and --every by number: name one of them")
    rate = DEFAULT_RATE if args.frame_rate is None else args.frame_rate
    if not 0 < rate < 1e6:
        raise DatasetError(f"--frame-rate must be above 0, got {rate:g}")
    if args.every is not None and args.every < 1:
        raise DatasetError(f"--every must be above 0, got {args.every}")
    check_side(args.max_size)
    return FrameChoice(rate, args.every or 0, max(0, args.num), args.max_size, args.format == "jpg")


VERB = Verb("extract/videos", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
