"""What the loop of a project does next: a pure function of its file, and of which label tasks are finished.

Whoever runs the loop does a task, enters its decision into the project, and asks again: what has a decision is done.
The steps are those of a round of `tools.rounds`, in the order of `next_step`.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Any

from projects.models import FINISHED, STOPPED, Data, Project, Run
from projects.rounds import RoundState, Step, next_step

SUPERVISED, SEMI, DISTILLATION = "supervised", "semi", "distillation"  # stages of trainings
LABELLED, UNLABELLED = "labelled data", "unlabelled data"  # events
LABEL_FINISH, TRAINING_FINISH = "a label task's FINISH", "a training's FINISH"
OF_CANDIDATE = (Step.CALIBRATE, Step.COMPARE, Step.REPLACE)
OF_BATCH = (Step.TAKE_IN, Step.PREDICT, Step.PICK, Step.LABEL)
STEPS = frozenset(map(str, Step))
HAS_LABELS = {"labelled": 1, "pseudo_labels": 0}  # of a candidate, which was trained on some

Row = dict[str, Any]
Decided = dict[str, dict[Step, Row]]  # decisions by what they are of, and the step


@dataclass(frozen=True)
class Task:
    """A step to do for what it is `of`, with the event and the reason; without a step it is a decision alone.

    `run` is a candidate, or the run of a training whose submission was interrupted; `data` a batch without labels;
    `stage` that of a training.
    """

    step: Step | None
    of: str
    event: str
    because: str
    run: Run | None = None
    data: Data | None = None
    stage: str = ""


def next_tasks(project: Project, finished: Container[str]) -> list[Task]:
    """Return what can be done now, the first of it first; `finished` has the label tasks that people have finished."""
    done = decided(project)
    return [
        *_trainings(project, done),
        *_notes(project, done),
        *_of_candidates(project, done),
        *_of_batches(project, done, finished),
    ]


def decided(project: Project) -> Decided:
    """Return the newest decision of each step. A calibration that an audit has refuted is asked for anew, elsewhere."""
    found: Decided = {}
    for row in project.decisions:
        if row.get("step") in STEPS:
            found.setdefault(row.get("of", ""), {})[Step(row["step"])] = row
    bad, now = refuted(project), address_of(project.dataset.val)
    for steps in found.values():
        if Step.CALIBRATE in steps and (on := steps[Step.CALIBRATE].get("val")) in bad and on != now:
            del steps[Step.CALIBRATE]
    return found


def refuted(project: Project) -> set[str]:
    """Return the addresses of the data whose calibrations an audit has refuted."""
    return {row["refuted"] for row in project.decisions if row.get("refuted")}


def answering_runs(project: Project) -> tuple[Run | None, list[Run]]:
    """Return the run whose net answers for images without labels, and all runs whose nets must call them alike.

    It is the newest calibrated expert, else the product's best, else the product's newest; None where there is no net.
    """
    done = decided(project)
    product = [run for run in project.exp.get(project.product, []) if has_net(done, run)]
    if isinstance(project.best, Run) and project.best.exp == project.product and has_net(done, project.best):
        product.append(project.best)
    experts = sorted((run for run in experts_of(project) if has_net(done, run)), key=lambda run: run.id)
    calibrated = [run for run in experts if done[run.name][Step.CALIBRATE].get("calibrated")]
    answering = [*product[-1:], *calibrated[-1:]]
    voters = {run.name: run for run in [*product[-1:], *experts]}
    return (answering[-1] if answering else None), list(voters.values())


def has_net(done: Decided, run: Run) -> bool:
    """Return whether a run has an exported net that was verified."""
    return bool(done.get(run.name, {}).get(Step.CALIBRATE, {}).get("net"))


def experts_of(project: Project) -> list[Run]:
    """Return the experts that have a net."""
    runs = {run.name: run for runs in project.exp.values() for run in runs}
    return [run for name in project.expert if (run := runs.get(name)) is not None and is_trained(run)]


def is_trained(run: Run) -> bool:
    """Return whether a run has ended with a net."""
    return run.state == FINISHED and bool(run.checkpoint)


def address_of(data: object) -> str:
    """Return the address of data, "" where there is none."""
    return data.address if isinstance(data, Data) else ""


def addresses(rows: list[Data]) -> list[str]:
    """Return the addresses of the data in use, in their order."""
    return sorted(row.address for row in rows if row.status)


def batch_name(data: Data) -> str:
    """Return what the decisions of a batch without labels are of."""
    return f"unlabel {data.tag}: {data.address}"


def _trainings(project: Project, done: Decided) -> Iterator[Task]:
    """Yield the trainings of the product that are to begin, or whose submission was interrupted."""
    product, labels = project.product, addresses(project.dataset.train.label)
    if product not in project.exp or not labels:
        return
    tasks = []
    tags = [data.tag for data in project.dataset.train.label if data.status]
    because = f"no training of {product} had {', '.join(tags)}"
    of = f"{SUPERVISED} {product}: {', '.join(labels)}"
    covering = [run for run in project.exp[product] if run.stage == SUPERVISED and set(labels) <= {*run.dataset.train}]
    if not covering or any(run.cause == of for run in covering):
        tasks.append(Task(Step.TRAIN, of, f"{LABELLED} added, or another product", because, stage=SUPERVISED))
    batches = [data for data in project.dataset.train.unlabel if Step.PREDICT in done.get(batch_name(data), {})]
    if project.tool.semi.method and (unlabelled := addresses(batches)):
        of = f"{SEMI} {product}: {', '.join(unlabelled)}"
        tasks.append(Task(Step.TRAIN, of, f"{UNLABELLED} added", f"semi is {project.tool.semi.method}", stage=SEMI))
    students = [run for run in project.exp[product] if is_trained(run) and run.stage in (SUPERVISED, SEMI)]
    experts = [run.name for run in experts_of(project)]
    if project.tool.distillation.method and experts and students and students[-1].name not in experts:
        of = f"{DISTILLATION} {students[-1].name}: {', '.join(experts)}"
        because = f"distillation is {project.tool.distillation.method}"
        tasks.append(Task(Step.TRAIN, of, TRAINING_FINISH, because, stage=DISTILLATION))
    runs = {run.cause: run for run in project.exp[product] if run.cause}
    for task in tasks:
        if Step.TRAIN not in done.get(task.of, {}):
            yield Task(task.step, task.of, task.event, task.because, runs.get(task.of), stage=task.stage)


def _notes(project: Project, done: Decided) -> Iterator[Task]:
    """Yield what cannot go on, each once."""
    known = {row.get("of") for row in project.decisions if not row.get("step")}
    notes = []
    if addresses(project.dataset.train.label) and not project.product:
        notes.append(Task(None, "no product", f"{LABELLED} added", "there is no product: add product --exp E"))
    for run in (run for runs in project.exp.values() for run in runs):
        if run.cause and run.state == STOPPED:
            hint = f"its log says why; train --exp {run.exp} --resume --id {run.id} goes on with it"
            notes.append(Task(None, f"stopped {run.name}: {run.finish_time}", "a training's STOP", hint))
        elif run.exp == project.product and is_trained(run) and not address_of(project.dataset.val):
            hint = "there is nothing to calibrate it on: add val --tags T --address A"
            notes.append(Task(None, f"{run.name} without val", TRAINING_FINISH, hint))
        elif Step.CALIBRATE in done.get(run.name, {}) and not address_of(project.dataset.test):
            hint = "there is nothing to judge it on: add test --tags T --address A"
            notes.append(Task(None, f"{run.name} without test", TRAINING_FINISH, hint))
    yield from (task for task in notes if task.of not in known)


def _of_candidates(project: Project, done: Decided) -> Iterator[Task]:
    """Yield the next step of each run of the product that has ended, and the export of each other net in use."""
    if not address_of(project.dataset.val):
        return
    candidates = [run for run in project.exp.get(project.product, []) if is_trained(run)]
    before = dict.fromkeys((*OF_BATCH, Step.TRAIN), HAS_LABELS)
    for run in candidates:
        following = next_step(RoundState(1, before | done.get(run.name, {})))
        if following.step == Step.COMPARE and not address_of(project.dataset.test):
            continue
        if following.step in OF_CANDIDATE:
            yield Task(following.step, run.name, TRAINING_FINISH, following.because, run)
    others = [*experts_of(project), *([project.best] if isinstance(project.best, Run) else [])]
    for run in {run.name: run for run in others if run.name not in {each.name for each in candidates}}.values():
        if Step.CALIBRATE not in done.get(run.name, {}):
            yield Task(Step.CALIBRATE, run.name, TRAINING_FINISH, "it is an expert, or the best", run)


def _of_batches(project: Project, done: Decided, finished: Container[str]) -> Iterator[Task]:
    """Yield the next step of each batch without labels, unless it waits for a net or a person."""
    answering, _ = answering_runs(project)
    begins = not project.dataset.train.label and not project.exp.get(project.product)  # no net is on its way
    for data in project.dataset.train.unlabel:
        steps = done.get(batch_name(data), {})
        task = steps.get(Step.PICK, {}).get("task", "")
        following = next_step(RoundState(1, steps, is_labelled=not task or task in finished))
        if not data.status or following.waits or following.step not in OF_BATCH:
            continue
        if steps.get(Step.TAKE_IN, {}).get("images") == 0:
            continue
        if following.step == Step.PREDICT and answering is None and not begins:
            continue
        event = LABEL_FINISH if following.step == Step.LABEL else f"{UNLABELLED} added"
        yield Task(following.step, batch_name(data), event, following.because, data=data)
