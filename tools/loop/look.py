"""One look at a project: what can be done is done, and each decision is entered with its reason."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Mapping

from common.console import printable_lines
from common.errors import UserError
from projects.loop import Task, next_tasks
from projects.models import Project
from projects.rounds import Step
from tools.loop import batches, nets
from tools.loop.trainings import train
from tools.loop.work import Done, Work
from tools.projects.watching import watch


def look(work: Work) -> bool:
    """Do what can be done for a project; return whether all went well. Raises ProjectError, Stopped."""
    problems: list[str] = []
    watch(work.book, work.name, problems.append)
    for problem in problems:
        _print(problem, is_mistake=True)
    tried: set[tuple[str, Step | None]] = set()
    while tasks := [task for task in next_tasks(work.project(), work.finished()) if _key(task) not in tried]:
        task = tasks[0]
        tried.add(_key(task))
        try:
            done = _do(work, task)
        except (UserError, OSError) as error:
            problems.append(str(error))
            _refuse(work, task, error)
        else:
            _enter(work, task, done)
    return not problems


def _do(work: Work, task: Task) -> Done:
    if task.step is None:
        return Done("nothing", task.because)
    if task.step is Step.TRAIN:
        return train(work, task)
    if task.data is not None:
        return OF_BATCH[task.step](work, task.data)
    assert task.run is not None
    return OF_CANDIDATE[task.step](work, task.run)


def _enter(work: Work, task: Task, done: Done) -> None:
    """Enter a decision, and what it changes, in one write."""
    row = {"event": task.event, "did": done.did, "because": done.because, "of": task.of, "step": str(task.step or "")}
    with work.book.changing(work.name) as project:
        done.change(project)
        _append(project, row | done.values)
    _print(f"{work.name}: {task.event}: {done.did}, because {done.because}")


def _refuse(work: Work, task: Task, error: Exception) -> None:
    """Print why a task cannot be done, and enter it where the newest decision of the task does not say the same."""
    _print(f"{work.name}: {task.of}: {error}", is_mistake=True)
    row = {"event": task.event, "did": "nothing", "because": str(error), "of": task.of, "refused": str(task.step or "")}
    with work.book.changing(work.name) as project:
        before = [each for each in project.decisions if each.get("of") == task.of]
        if not before or before[-1].get("because") != row["because"]:
            _append(project, row)


def _append(project: Project, row: Mapping[str, object]) -> None:
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    project.decisions.append({"time": time, **row})


def _key(task: Task) -> tuple[str, Step | None]:
    return task.of, task.step


def _print(text: str, *, is_mistake: bool = False) -> None:
    print(printable_lines(text), file=sys.stderr if is_mistake else sys.stdout, flush=True)


OF_BATCH: dict[Step, Callable[..., Done]] = {
    Step.TAKE_IN: batches.take_in,
    Step.PREDICT: batches.predict,
    Step.PICK: batches.pick,
    Step.LABEL: batches.read_labels,
}
OF_CANDIDATE: dict[Step, Callable[..., Done]] = {
    Step.CALIBRATE: nets.calibrate,
    Step.COMPARE: nets.compare,
    Step.REPLACE: nets.replace,
}
