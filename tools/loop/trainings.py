"""Trainings that the loop submits as jobs: their flags, and what a submission that was killed has left."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from configs.schema import Config
from data_loader.packs import find_pack
from data_loader.remote_packs import is_address
from datasets.unpacking import join_packs, pack_key
from projects.data import pattern_of
from projects.engines import has_vanished
from projects.errors import ProjectError
from projects.jobs import FILE, Method, read_job
from projects.loop import DISTILLATION, SEMI, Task, experts_of
from projects.models import QUEUED, STOPPED, Data, Project, Run
from projects.run_state import FILE as STATE
from projects.runs import find_run
from tools.datasets.verb import VerbParser
from tools.loop.work import Done, Work
from tools.projects.submit import go_on, method_of, submit
from tools.projects.train import add_flags

ELSEWHERE = ("ssh", "skypilot")  # methods whose machines do not see the files here
QUEUES = ("slurm", "kubernetes")  # methods that know a job by its name
JOINED = "joined"
OURS = {  # antgo's keys in a config of ours
    "temperature": "mpl_temperature",
    "lambda_u": "mpl_unlabelled_weight",
    "uda_steps": "mpl_warmup_steps",
    "threshold": "mpl_threshold",
    "ema": "ema_decay",
    "grad_clip": "clip_grad_norm",
    "kd_loss_weight": "distill_weight",
    "kd_warm_up": "distill_warmup_epochs",
}
FOUND = ("align", "channels", "shapes")  # of distillation: found from the nets
METHODS = {"reviewkd": "review", "logits": "logits"}  # of distillation


def train(work: Work, task: Task) -> Done:
    """Submit a training of the product, or see to one whose submission was killed. Raises UserError."""
    project = work.project()
    method = method_of(work.book, work.name) or "local"
    if task.run is not None:
        found = _interrupted(work, task, task.run)
        if found is not None:
            return found
        project = work.project()
    words = ["--exp", project.product, "--stage", task.stage]
    args = _parsed(work, [*words, "--", *data_flags(work, project, task.stage, method)])
    if not Path(project.product, "main.py").is_file():
        raise ProjectError(f"{project.product}/main.py: the experiment is not here (current folder {Path.cwd()})")
    try:
        submit(args, work.name, method, task.of)
    except UserError as error:
        if (run := _of_cause(work.project(), task.of)) is None:
            raise
        return _not_submitted(run, error)
    run = _of_cause(work.project(), task.of)
    assert run is not None
    return Done(f"submitted {run.name} by {method}", task.because, {"run": run.name})


def data_flags(work: Work, project: Project, stage: str, method: Method) -> list[str]:
    """Return the flags of the experiment's program that name the project's data and settings. Raises UserError."""
    train, val = project.dataset.train, project.dataset.val
    labels = [data for data in train.label if data.status]
    category = find_pack(
        work.pattern(val if isinstance(val, Data) else labels[0])
    ).category  # of what is fetched anyway
    values: dict[str, Any] = {
        "train_data_root_dir": "",
        "train_data_file": _pattern(work, labels, "label", method),
        "class_names_file": "",
    }
    values |= {"num_classes": len(category)} if category else {}
    if isinstance(val, Data):
        values |= {"val_data_root_dir": "", "val_data_file": _pattern(work, [val], "val", method)}
    if stage == SEMI:
        batches = [data for data in train.unlabel if data.status]
        values |= {"semi": project.tool.semi.method, "unlabelled_data_root_dir": ""}
        values |= {"unlabelled_data_file": _pattern(work, batches, "unlabel", method)}
        values |= our_settings(project.tool.semi.config)
    if stage == DISTILLATION:
        if method in ELSEWHERE:
            raise ProjectError(f"distillation by {method}: the experts' checkpoints are not there; use another method")
        if (name := project.tool.distillation.method) not in METHODS:
            raise ProjectError(f'distillation: no method "{name}"; known: {", ".join(METHODS)}')
        teachers = [str(Path(run.checkpoint).absolute()) for run in experts_of(project)]
        values |= {"distill_from": teachers, "distill_method": METHODS[name]}
        values |= our_settings(project.tool.distillation.config)
    flags = []
    for key, value in values.items():
        flags += ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]
    return flags


def our_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a method as keys of a config of ours; antgo's keys are known, too. Raises ProjectError."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key == "samples_per_gpu":
            if not (
                isinstance(value, list) and len(value) == 2 and all(type(each) is int and each > 0 for each in value)
            ):
                raise ProjectError(f"settings of the method: samples_per_gpu must be two numbers from 1, got {value!r}")
            found |= {"batch_size": value[0], "unlabelled_per_labelled": max(1, value[1] // value[0])}
        elif OURS.get(key, key) in Config.model_fields:
            found[OURS.get(key, key)] = value
        elif key not in FOUND:
            raise ProjectError(f'settings of the method: "{key}" is no key of a config, nor one of antgo that is known')
    return found


def _pattern(work: Work, rows: list[Data], kind: str, method: Method) -> str:
    """Return the one pack of some data, joined where there are several. Raises ProjectError, DatasetError."""
    pattern = pattern_of(rows[0].address)
    if len(rows) == 1:
        return pattern if method in ELSEWHERE or is_address(pattern) else str(Path(pattern).absolute())
    if method in ELSEWHERE:
        hint = "pack them together, and put that pack where the jobs find it"
        raise ProjectError(f"{len(rows)} packs of {kind}, and jobs by {method} cannot join them: {hint}")
    patterns = [work.pattern(data) for data in rows]
    key = pack_key(*map(find_pack, patterns))
    return join_packs(patterns, work.folder / "dataset" / kind / f"{JOINED}-{key}", JOINED)


def _interrupted(work: Work, task: Task, run: Run) -> Done | None:
    """See to a run that was entered, but of which no decision says that it was submitted.

    It was submitted where its folder has a state, and is again where it was placed: the second one of a training
    waits, or ends, while the first runs. What was not even placed is taken out: None, to begin anew.
    """
    folder = Path(run.root)
    if run.state not in (QUEUED, STOPPED) or (folder / STATE).is_file():
        return Done(f"submitted {run.name}", task.because, {"run": run.name})
    if not (folder / FILE).is_file():
        with work.book.changing(work.name) as project:
            project.exp[run.exp] = [each for each in project.exp[run.exp] if each.id != run.id]
        return None
    try:
        job = read_job(folder)
        if job.method in QUEUES and not has_vanished(job, folder):
            return Done(f"submitted {run.name}", task.because, {"run": run.name})
        go_on(_parsed(work, ["--exp", run.exp, "--resume", "--id", run.id]), work.name)
    except UserError as error:
        with work.book.changing(work.name) as project:
            find_run(project, run.id).state = STOPPED
        return _not_submitted(run, error)
    return Done(f"submitted {run.name} again", f"{task.because}; the server was killed before", {"run": run.name})


def _not_submitted(run: Run, error: UserError) -> Done:
    hint = f"train --exp {run.exp} --resume --id {run.id} tries it again"
    return Done(f"entered {run.name}, which was not submitted", f"{error}; {hint}", {"run": run.name})


def _of_cause(project: Project, cause: str) -> Run | None:
    runs = (run for runs in project.exp.values() for run in runs)
    return next((run for run in runs if run.cause == cause), None)


def _parsed(work: Work, words: list[str]) -> argparse.Namespace:
    """Return the flags of `train`."""
    parser = VerbParser(prog="train")
    add_flags(parser)
    gpu = ["--gpu-id", work.options.gpu_id] if work.options.gpu_id and "--resume" not in words else []
    places = ["--project", work.name, "--home", str(work.book.home), "--root", str(work.options.root)]
    args: argparse.Namespace = parser.parse_args([*places, *gpu, *words])
    return args
