"""The verbs that differ by the format of a folder's annotations alone, VOC XML or YOLO txt."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets.annotation_folders import folder_records, read_folder, write_folder
from datasets.files import check_target, read_annotations
from datasets.images import check_folders
from datasets.outcome import Outcome
from datasets.tags import category_of_tags, parse_tags
from tools.datasets.verb import (
    Verb,
    add_pictures,
    add_source,
    add_tags,
    add_target,
    check_source,
    config_line,
    finish,
    finish_records,
)


def extract_verb(words: str, help_text: str, kind: str) -> Verb:
    """Return the verb that reads folders with annotations of a kind."""

    def run(args: argparse.Namespace) -> int:
        """Convert the folder; return the exit code. Raises UserError, OSError."""
        source = Path(args.src)
        check_folders(source, args.tgt)
        check_target(args.tgt, args.overwrite)
        found = read_folder(source, kind, parse_tags(args.tags, may_share=True) if args.tags else {})
        outcome = Outcome(args.overwrite)
        records = folder_records(source, found, outcome)
        return finish_records(args, records, category_of_tags(found.labels) if found.labels else [], source, outcome)

    return Verb(words, help_text, _add_extract_flags, run)


def package_verb(words: str, help_text: str, kind: str) -> Verb:
    """Return the verb that writes folders with annotations of a kind."""

    def run(args: argparse.Namespace) -> int:
        """Write the folder; return the exit code. Raises UserError, OSError."""
        check_target(args.tgt, args.overwrite, "labels")
        found = read_annotations(check_source(args.src))
        outcome = Outcome(args.overwrite)
        done = write_folder(found, args.tgt, kind, outcome)
        classes = len(found.category)
        return finish(
            f"{args.tgt}: {done:,} images, {classes} classes\n{config_line('train_data_root_dir', args.tgt)}", outcome
        )

    return Verb(words, help_text, _add_package_flags, run)


def _add_extract_flags(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "folder with images/ and labels/, or with both in one")
    add_target(parser)
    add_tags(parser, "the classes to keep, with their new indices; several may share one")
    add_pictures(parser)


def _add_package_flags(parser: argparse.ArgumentParser) -> None:
    add_source(parser, "annotation.json")
    add_target(parser)
