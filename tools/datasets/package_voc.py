"""Write standard annotations as images with VOC XML files: `tools.antgo package/voc --src F.json --tgt DIR`."""

from __future__ import annotations

import argparse

from datasets.annotation_folders import VOC, write_folder
from datasets.files import check_target, read_annotations
from datasets.outcome import Outcome
from tools.datasets.verb import Verb, add_source, add_target, check_source, config_line, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json")
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Write the folder; return the exit code. Raises UserError, OSError."""
    check_target(args.tgt, args.overwrite, "labels")
    found = read_annotations(check_source(args.src))
    outcome = Outcome(args.overwrite)
    done = write_folder(found, args.tgt, VOC, outcome)
    classes = len(found.category)
    return finish(
        f"{args.tgt}: {done:,} images, {classes} classes\n{config_line('train_data_root_dir', args.tgt)}", outcome
    )


VERB = Verb("package/voc", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
