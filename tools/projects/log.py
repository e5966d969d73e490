"""Print a job's log, and follow it until the job ends: `python -m tools.antgo log --id I`."""

from __future__ import annotations

import argparse
from pathlib import Path

from projects.engines import follow_log
from projects.jobs import FILE, LOG, read_job
from projects.models import FINISHED, STOPPED
from projects.submitters import read_registered
from tools.datasets.verb import Verb
from tools.projects.flags import add_run, print_text, run_by_id


def run(args: argparse.Namespace) -> int:
    """Print and follow a log; return 0. Raises UserError."""
    name, found = run_by_id(args)
    folder = Path(found.root)
    if not (folder / FILE).is_file():
        return print_text(f"{name}: {found.name} was trained here, where it printed; its report is in {folder}")
    if found.state in (FINISHED, STOPPED) and (folder / LOG).is_file():
        return print_text((folder / LOG).read_text(encoding="utf-8", errors="replace").rstrip())
    return follow_log(read_job(folder), read_registered(args.home).own)


VERB = Verb("log", (__doc__ or "").splitlines()[0], add_run, run, may_overwrite=False)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
