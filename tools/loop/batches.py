"""A batch without labels: taken in, answered, picked from, and what a person has labelled brought into the project."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic, writing
from common.formatting import counted, csv_cell
from data_loader.decoding import MAX_PIXELS
from data_loader.packs import META_ENDING, find_pack
from data_loader.samples import NO_LABEL
from datasets.files import ANNOTATION, read_annotations, write_annotations
from datasets.outcome import Outcome
from datasets.pictures import place_file, take_along
from datasets.records import Record, value
from datasets.unpacking import unpack
from deploy.inference.decision import ACCEPTED
from projects.audit import breaks_promise, draw_audit, mixed
from projects.data import find_data
from projects.errors import ProjectError
from projects.loop import answering_runs, decided, refuted
from projects.models import Data, Project, Run
from projects.round_folder import read_result, write_result
from projects.rounds import Step
from projects.run_state import stamp
from tools.loop.work import IMAGES, LOG, Done, Work, program
from tools.select.chain import read_stages
from tools.select.picks import write_picks

PREDICTIONS, PICKS, POOL, SELECTED = "predictions.json", "picks.json", "pool", "selected"
PICKS_TABLE, COLUMNS = "picks.csv", ("image", "class", "score", "uncertainty")
SEED = 0


def take_in(work: Work, data: Data) -> Done:
    """Unpack the images that the loop has not seen. Raises UserError."""
    project = work.project()
    if project.tool.label.type not in ("", "CLASS"):
        raise ProjectError(f"the loop labels classes, and update project/label says {project.tool.label.type}")
    _category(work, project)
    others = [("label", each) for each in project.dataset.train.label]
    others += [(kind, each) for kind in ("test", "val") if isinstance(each := getattr(project.dataset, kind), Data)]
    for kind, each in others:
        work.listed(kind, each)  # so that its images are known
    folder = work.batch(data)
    with writing(folder):
        found = unpack(work.pattern(data), folder / IMAGES, needs_label=False, known=frozenset(work.known(folder)))
    did = f"{data.tag}: took in {counted(len(found.labels), 'image')}"
    because = f"{found.known} were known before, {len(found.unreadable)} cannot be read"
    return Done(did, because, {"images": len(found.labels)})


def predict(work: Work, data: Data) -> Done:
    """Let the nets answer; what one accepts at its risk and all call alike is accepted. Raises UserError."""
    project, folder = work.project(), work.batch(data)
    done, (answering, voters) = decided(project), answering_runs(project)
    images = sorted(path.name for path in (folder / IMAGES).iterdir())
    accepted, doubtful, because = [], [{"image": image} for image in images], "there is no net yet"
    state: Mapping[str, Any] = {}
    if answering is not None:
        state = done[answering.name][Step.CALIBRATE]
        answers = {run.name: _answers(work, folder, run, done[run.name][Step.CALIBRATE]) for run in voters}
        others = [found for name, found in answers.items() if name != answering.name]
        rows = [answers[answering.name].get(image, {"image": image}) for image in images]
        trusted = bool(state.get("calibrated")) and state.get("val") not in refuted(project)
        accepted = [row for row in rows if trusted and row.get("decision") == ACCEPTED and _is_shared(row, others)]
        names = {row["image"] for row in accepted}
        doubtful = [row for row in rows if row["image"] not in names]
        because = f"{answering.name} accepts at its risk, and {counted(len(voters), 'net')} must agree"
        if not trusted:
            because = f"{answering.name} has no calibration that could be relied on, so everything is doubtful"
    exp = answering.exp if answering else project.product or work.name
    result: dict[str, Any] = {"task": _new_task(folder, exp), "accepted": accepted, "doubtful": doubtful}
    result |= {"net": answering.name if answering else "", "val": state.get("val", "")}
    result["target_risk"] = work.options.target_risk
    write_result(folder / PREDICTIONS, result)
    did = f"{data.tag}: {counted(len(accepted), 'image')} accepted, {len(doubtful)} doubtful"
    return Done(did, because, {"net": result["net"]})


def pick(work: Work, data: Data) -> Done:
    """Lay out the images to label, with those of the audit between them unmarked. Raises UserError, OSError."""
    project, folder = work.project(), work.batch(data)
    predictions = read_result(folder / PREDICTIONS)
    task, pool = predictions["task"], {row["image"]: row for row in predictions["doubtful"]}
    if not pool and not predictions["accepted"]:
        return Done(f"{data.tag}: picked nothing", "no image is there", {"task": ""})
    if not (folder / PICKS).is_file():
        picked = _picked(work, project, data, list(pool), predictions["net"]) if pool else []
        audit = draw_audit([row["image"] for row in predictions["accepted"]], SEED, _seed_of(task))
        write_result(folder / PICKS, {"picked": picked, "audit": audit})
    laid_out = read_result(folder / PICKS)
    picked, audit = laid_out["picked"], laid_out["audit"]
    target = work.folder / "activelearning" / task
    if not (target / ANNOTATION).exists():
        shutil.rmtree(target, ignore_errors=True)  # what a killed process has left half written
        files = [f"{IMAGES}/{image}" for image in mixed(picked, audit, SEED, _seed_of(task))]
        with writing(target):
            write_picks(folder, files, target, _category(work, project), MAX_PIXELS)
    _write_table(target / PICKS_TABLE, [pool[image] for image in picked])
    command = f"python -m tools.antgo label/start --src {target} --tgt {work.folder / 'label' / task}"
    did = f"{data.tag}: laid out {counted(len(picked), 'image')} to label and {len(audit)} for the audit between them"
    return Done(f"{did}; label them: {command}", f"{len(pool)} are doubtful", {"task": task})


def read_labels(work: Work, data: Data) -> Done:
    """Bring a person's labels into the project, and the pseudo-labels apart unless the audit refutes them.

    Raises UserError.
    """
    project, folder = work.project(), work.batch(data)
    predictions = read_result(folder / PREDICTIONS)
    task, accepted = predictions["task"], {row["image"]: row for row in predictions["accepted"]}
    laid_out = read_result(folder / PICKS) if (folder / PICKS).is_file() else {"picked": [], "audit": []}
    file = work.label_file(task)
    found = read_annotations(file).records if file is not None else []
    records = {Path(value(each, "image_file")).name: each for each in found if value(each, "image_label") != NO_LABEL}
    if strange := records.keys() - {*laid_out["picked"], *laid_out["audit"]}:
        raise ProjectError(f"{file}: {min(strange)} was not laid out to label; label the folder again")
    category = _category(work, project)
    audited = [image for image in laid_out["audit"] if image in records]
    wrong = sum(accepted[image]["class"] != _class_of(records[image], category) for image in audited)
    is_refuted = breaks_promise(wrong, len(audited), predictions["target_risk"])
    kept = {} if is_refuted else {image: row for image, row in accepted.items() if image not in laid_out["audit"]}
    labels = {image: _class_of(record, category) for image, record in records.items()}
    pseudo = {image: row["class"] for image, row in kept.items()}
    label = _packed(work, folder, "label", task, labels, category)
    pseudo_label = _packed(work, folder, "pseudo-label", task, pseudo, category)

    def change(project: Project) -> None:
        project.dataset.train.label += [label] if label else []
        project.dataset.train.pseudo_label += [pseudo_label] if pseudo_label else []

    values: dict[str, Any] = {"labelled": len(labels), "pseudo_labels": len(pseudo)}
    did = f"{data.tag}: added {counted(len(labels), 'label')} and, apart, {counted(len(pseudo), 'pseudo-label')}"
    because = f"{wrong} of {len(audited)} audited predictions are wrong"
    if is_refuted:
        values["refuted"] = predictions["val"]
        because += ", more than the promised risk explains: nothing is accepted until val has other data (del val, add "
        because += "val), on which the nets are calibrated anew"
    return Done(did, because, values, change)


def _answers(work: Work, folder: Path, run: Run, state: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what a net says of each image that can be read, by the image."""
    output = folder / f"{run.name}.jsonl"
    name = "inference_uncertain.py" if state.get("calibrated") else "inference.py"
    words = ("--weights", state["net"], "--image_dir", folder / IMAGES, "--output", output, "--quiet", *work.device)
    work.run(folder / LOG, program(name), *words, may_end_with=(0, 1))
    found = {}
    for line in output.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "class" in row:
            image, score = Path(row["file"]).name, round(float(row["score"]), 6)
            values = {"uncertainty": round(float(row.get("uncertainty", 1 - score)), 6)}
            values |= {"decision": row.get("decision", "")}
            found[image] = {"image": image, "class": row["class"], "score": score, **values}
    return found


def _new_task(folder: Path, exp: str) -> str:
    """Return a name for a label task that no other batch has."""
    others = [path for path in folder.parent.glob(f"*/{PREDICTIONS}") if path.parent != folder]
    taken = {read_result(path)["task"] for path in others}
    names = itertools.chain([f"{exp}.{stamp()}"], (f"{exp}.{stamp()}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in taken)


def _is_shared(row: Mapping[str, Any], others: Iterable[Mapping[str, Mapping[str, Any]]]) -> bool:
    return all(answers.get(row["image"], {}).get("class") == row["class"] for answers in others)


def _picked(work: Work, project: Project, data: Data, pool: list[str], net: str) -> list[str]:
    """Return the images that the project's sampling picks; at random where no net has learned anything yet."""
    folder, config = work.batch(data), dict(project.tool.activelearning.config)
    _, total = read_stages(config)
    if not net:
        return random.Random(SEED).sample(sorted(pool), min(total, len(pool)))
    runs = {run.name: run for runs in project.exp.values() for run in runs}
    run, selected = runs[net], folder / SELECTED
    for path in (folder / POOL, selected):
        shutil.rmtree(path, ignore_errors=True)
    for image in pool:
        place_file(folder / IMAGES / image, folder / POOL / IMAGES / image)
    write_result(folder / "sampling.json", config)
    words = ["--exp", run.exp, "--process", "activelearning", "--gpu-id", work.options.gpu_id or "0"]
    words += ["--checkpoint", run.checkpoint, "--unlabelled", str(folder / POOL), "--output", str(selected)]
    words += ["--sampling-fn", str(folder / "sampling.json")]
    if (centres := _centres(work, project)) is not None:
        words += ["--labelled", str(centres)]
    work.run(folder / LOG, work.main_of(run), *words, may_end_with=(0, 1))
    return [Path(line).name for line in (selected / "picks.txt").read_text(encoding="utf-8").splitlines()]


def _centres(work: Work, project: Project) -> Path | None:
    """Return a list of all labelled images, which a k-centre counts as centres; None where there are none."""
    rows = [data for data in project.dataset.train.label if data.status]
    files = [work.listed("label", data) for data in rows]
    lines = [f"{file.parent / line}\n" for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    if not lines:
        return None
    folder = work.folder / "dataset" / "label"
    with writing(folder):
        write_atomic(folder / "labelled.txt", "".join(lines))
        write_atomic(folder / "classes.txt", (files[0].parent / "classes.txt").read_text(encoding="utf-8"))
    return folder / "labelled.txt"


def _packed(
    work: Work, folder: Path, kind: str, task: str, labels: Mapping[str, str], category: Sequence[str]
) -> Data | None:
    """Pack images with their classes into the project's data of a kind; None where there are none. Raises UserError."""
    if not labels:
        return None
    target = work.folder / "dataset" / kind / task
    if not (target / f"{task}{META_ENDING}").is_file():
        shutil.rmtree(target, ignore_errors=True)
        records: list[Record] = [
            {"image_file": f"{IMAGES}/{image}", "image_label": category.index(name), "image_label_name": name}
            for image, name in sorted(labels.items())
        ]
        with writing(target):
            target.mkdir(parents=True)
            write_annotations(target, take_along(records, folder, target, Outcome()), category)
        words = ("package/tfrecord", "--src", target / ANNOTATION, "--tgt", target, "--prefix", task)
        work.run(folder / LOG, "-m", "tools.antgo", *words)
    return find_data(task, str(target / f"{task}-*"), None)


def _category(work: Work, project: Project) -> list[str]:
    """Return the project's classes: those of its labelled data, else those that people label. Raises ProjectError."""
    labels, named = [data for data in project.dataset.train.label if data.status], project.tool.label.category
    found = list(find_pack(work.pattern(labels[0])).category) if labels else named
    if not found:
        raise ProjectError("nothing names the classes to label: update project/label --config F")
    if named and set(named) != set(found):
        raise ProjectError(f"update project/label names other classes than {labels[0].address}: {', '.join(found)}")
    return found


def _class_of(record: Record, category: Sequence[str]) -> str:
    """Return the class of a record. Raises ProjectError for one that the project does not have."""
    label = value(record, "image_label")
    name = value(record, "image_label_name") or (category[label] if 0 <= label < len(category) else str(label))
    if name not in category:
        raise ProjectError(f'"{name}" is no class of the project; its classes are {", ".join(category)}')
    return str(name)


def _write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([csv_cell(row.get(column, "")) for column in COLUMNS] for row in rows)
    with writing(path):
        write_atomic(path, ("\ufeff" + text.getvalue()).encode())


def _seed_of(task: str) -> int:
    """Return the number of a task, from its digits, so that each has its own audit."""
    return int("".join(filter(str.isdigit, task)) or 0)
