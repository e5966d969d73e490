"""Fetch a file or folder from any address that fsspec reads: `tools.antgo download/copy --src s3://b/p --tgt DIR`."""

from __future__ import annotations

import argparse

from common.atomic_io import check_folder
from common.formatting import size_text
from datasets.errors import DatasetError
from datasets.outcome import Outcome
from datasets.remote import fetch, open_address, remote_files
from tools.datasets.verb import Verb, add_source, add_target, finish


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags."""
    add_source(parser, "address, such as s3://bucket/folder or sftp://host/file (its fsspec driver must be installed)")
    add_target(parser)


def run(args: argparse.Namespace) -> int:
    """Fetch the files; return the exit code. Raises UserError, OSError."""
    check_folder(args.tgt)
    system, path = open_address(args.src)
    files = remote_files(system, path)
    if not files:
        raise DatasetError(f'--src "{args.src}": the folder is empty')
    outcome = Outcome(args.overwrite)
    sizes = list(fetch(system, files, args.tgt, outcome, overwrite=args.overwrite))
    return finish(f"{args.tgt}: {len(sizes):,} of {len(files):,} files fetched, {size_text(sum(sizes))}", outcome)


VERB = Verb("download/copy", (__doc__ or "").splitlines()[0], add_flags, run)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
