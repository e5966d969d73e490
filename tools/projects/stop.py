"""Stop a job, which saves before it ends: `python -m tools.antgo stop --id I`."""

from __future__ import annotations

import argparse
from pathlib import Path

from projects.engines import stop_job
from projects.errors import ProjectError
from projects.jobs import FILE, read_job
from projects.models import QUEUED, RUNNING
from projects.run_state import FILE as STATE
from projects.run_state import read_state
from projects.submitters import read_registered
from tools.datasets.verb import Verb
from tools.projects.flags import add_run, print_text, run_by_id
from tools.projects.watching import refresh


def run(args: argparse.Namespace) -> int:
    """Send SIGTERM to a job; return 0. Raises UserError."""
    name, found = run_by_id(args)
    folder = Path(found.root)
    if not (folder / FILE).is_file():
        raise ProjectError(f"{name}: {found.name} is no job but trains here: press Ctrl-C where it runs")
    refresh(found, args.home)
    state = read_state(folder)[0] if (folder / STATE).is_file() else QUEUED
    if state not in (QUEUED, RUNNING):
        raise ProjectError(f"{name}: {found.name} does not run: {state}")
    stop_job(read_job(folder), folder, read_registered(args.home).own)
    return print_text(f"{name}: {found.name} was told to stop; ls shows when it has")


VERB = Verb("stop", (__doc__ or "").splitlines()[0], add_run, run, may_overwrite=False)
main = VERB.main

if __name__ == "__main__":
    raise SystemExit(main())
