"""Runs of a project: entered when they begin, and settled by what their folder holds."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path

from projects.book import check_known
from projects.models import FINISHED, LOST, QUEUED, RUNNING, STOPPED, Data, Project, Run, RunData
from projects.run_state import read_state, stamp


def begin_run(project: Project, exp: str, stage: str, root: Path, code: tuple[str, str], cause: str = "") -> Run:
    """Enter a run of an experiment that begins now; `code` is branch and commit. Its folder is `root/EXP.ID`."""
    created = stamp()
    taken = {run.id for runs in project.exp.values() for run in runs}  # `log --id` names no experiment
    names = itertools.chain([created], (f"{created}-{number}" for number in itertools.count(2)))
    identity = next(name for name in names if name not in taken)
    label, test = project.dataset.train.label, project.dataset.test
    train = [data.address for data in label if data.status]
    run = Run(
        exp=exp,
        id=identity,
        branch=code[0],
        commit=code[1],
        dataset=RunData(train=train, test=test.address if isinstance(test, Data) else ""),
        create_time=created,
        state=RUNNING,
        stage=stage,
        root=str(root / f"{exp}.{identity}"),
        cause=cause,
    )
    project.exp[exp].append(run)
    return run


def find_run(project: Project, run_id: str) -> Run:
    """Return the run of an id. Raises ProjectError."""
    runs = {run.id: run for runs in project.exp.values() for run in runs}
    return runs[check_known(run_id, list(runs), "run", project.name)]


def settle(run: Run) -> None:
    """Enter how a run has ended into it, where its folder says that it has: state, time, score and checkpoint."""
    if run.state != RUNNING or not run.root:
        return
    state, seen = read_state(Path(run.root))
    if state not in (FINISHED, STOPPED):
        return
    run.state, run.finish_time = state, stamp(seen)
    metric = Path(run.root) / run.exp / "output" / "metric"
    try:
        found = json.loads((metric / "best.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # stopped before the first validation
        return
    run.metric = found if isinstance(found, dict) else {}
    if (metric / "best.pth").is_file():
        run.checkpoint = str(metric / "best.pth")


def present_state(run: Run) -> str:
    """Return a run's state now; of a running one as its folder has it, lost included.

    A job whose submission was killed before it had a folder is lost, too.
    """
    if run.state == QUEUED and not (Path(run.root) / "job.json").is_file():
        return LOST
    return read_state(Path(run.root))[0] if run.state == RUNNING and run.root else run.state


def code_state(folder: Path) -> tuple[str, str]:
    """Return branch and commit of a folder's checkout, with "+" where files are changed; "" outside of one."""
    return (
        _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        _git(folder, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"),
    )


def _git(folder: Path, *words: str) -> str:
    try:
        command = ["git", "-C", str(folder), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
