"""Write standard annotations as COCO's JSON with its images: `tools.antgo package/coco --src F.json --tgt DIR`."""

from __future__ import annotations

import argparse
from dataclasses import replace

from data_loader.box_folders import COCO_FILES
from datasets.coco import write_coco
from datasets.files import check_target, read_annotations
from datasets.outcome import Outcome
from datasets.pictures import take_along
from tools.datasets.verb import Verb, add_source, add_target, check_source, config_line, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "annotation.json")
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Write the folder; return the exit code. Raises UserError, OSError."""
    name = COCO_FILES[0]
    check_target(args.tgt, args.overwrite, name)
    found = read_annotations(check_source(args.src))
    outcome = Outcome(args.overwrite)
    args.tgt.mkdir(parents=True, exist_ok=True)
    kept = replace(found, records=take_along(found.records, found.folder, args.tgt, outcome))
    images, objects = write_coco(args.tgt / name, kept, outcome)
    return finish(
        f"{args.tgt / name}: {images:,} images, {objects:,} objects\n{config_line('train_data_root_dir', args.tgt)}",
        outcome,
    )


VERB = Verb("package/coco", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
