"""Run a job in its folder, and go on from its last checkpoint where there is one: what `job.sh` starts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from common.cli import FlagParser, run_program
from common.file_lock import try_lock
from projects.errors import ProjectError
from projects.jobs import CODE, CONFIG, LATEST, LOCK, LOG, START, read_job
from projects.run_state import reported
from tools.child_programs import run_child


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job of a folder; return the training's exit code, 128 + n after a signal."""
    parser = FlagParser(prog="python -m tools.projects.runner", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the job's folder")
    args: argparse.Namespace = parser.parse_args(argv)
    return run_program("job", lambda: run_job(args.folder.absolute()))


def run_job(folder: Path) -> int:
    """Train, keep the folder's state, and return the exit code. Raises ProjectError, ResultsError, Stopped."""
    job = read_job(folder)
    words = [f"{job.exp}/main.py", *job.words, "--root", str(folder)]
    files = {"--config": folder / CONFIG, "--checkpoint": folder / START, "--resume-from": folder / job.exp / LATEST}
    for flag, path in files.items():
        words += [flag, str(path)] if path.is_file() else []
    lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        try_lock(lock)
    except BlockingIOError:
        raise ProjectError(f"{folder}: a training of this job is still running") from None
    with reported(folder) as ended:
        os.chdir(folder / CODE / job.place)
        # The training holds the lock, too: where this process alone was killed, a second one would write its files.
        code = run_child(words, folder / LOG, keep=(lock,))
        ended(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
