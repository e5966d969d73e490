"""The runs of projects as they are now: those elsewhere are asked, and their results brought back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from common.atomic_io import writing
from common.errors import UserError
from projects import remote_run
from projects.book import Book
from projects.engines import ask_status, has_vanished
from projects.jobs import FILE, Job, read_job
from projects.models import FINISHED, LOST, QUEUED, RUNNING, STOPPED, Project, Run
from projects.run_state import FILE as STATE
from projects.run_state import place_state, read_state, write_state
from projects.runs import settle
from projects.shell import Shell
from projects.submitters import read_registered


def watch(book: Book, name: str, warn: Callable[[str], None]) -> list[Run]:
    """Ask after the runs of a project, enter what became of them, and return them as they are entered.

    `warn` is told of each machine that was not reached, whose runs keep the state that was known. Raises ProjectError.
    """
    for run in _runs(book.read(name)):
        try:
            refresh(run, book.home)
        except UserError as error:
            warn(f"{name}: {run.name}: {error}")
    with book.changing(name) as project:
        found = _runs(project)
        for run in found:
            advance(run)
    return found


def refresh(run: Run, home: Path) -> None:
    """Ask the machine of a run that has not ended; bring its results back once it has. Raises UserError.

    `home` has what is registered: a script of the user's own may say how its jobs are.
    """
    folder = Path(run.root)
    if run.state not in (QUEUED, RUNNING) or not (folder / FILE).is_file():
        return
    job = read_job(folder)
    says_nothing = read_state(folder)[0] == LOST
    if job.address is None:
        own = read_registered(home).own if job.method == "script" else None
        if own is not None and own.status:
            ask_status(job, folder, own)
        elif says_nothing:
            _stop_if_vanished(job, folder)
        return
    shell = Shell(job.address)
    state = remote_run.read_remote_state(shell, job)
    if state is None:
        _stop_if_vanished(job, folder)
        return
    if state["state"] != RUNNING:  # before the state is known here: what fails now is tried again
        remote_run.bring_back(shell, job, folder)
    with writing(folder / STATE):
        place_state(folder, state)


def _stop_if_vanished(job: Job, folder: Path) -> None:
    """Enter that a job has stopped of which neither its folder nor what carries it says anything. Raises UserError."""
    if has_vanished(job, folder):
        with writing(folder / STATE):
            write_state(folder, STOPPED)


def advance(run: Run) -> None:
    """Enter what a run's folder says of it: it has begun, goes on after it was stopped, or has ended."""
    folder = Path(run.root)
    if run.root and (folder / FILE).is_file() and (folder / STATE).is_file():
        has_begun = run.state == QUEUED
        goes_on = run.state == STOPPED and read_state(folder)[0] in (RUNNING, FINISHED)  # SLURM queued it again
        if has_begun or goes_on:
            run.state, run.finish_time = RUNNING, ""
    settle(run)


def _runs(project: Project) -> list[Run]:
    return [run for runs in project.exp.values() for run in runs]
