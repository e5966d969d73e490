"""The labels of a round: read, compared with the audit's predictions, added to the list, and judged by the doctor."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from artifacts.metadata import build_metadata
from artifacts.sample_sources import listed_samples
from common.atomic_io import write_atomic, writing
from common.formatting import counted, csv_cell
from data_loader.samples import NO_LABEL
from datasets.files import read_annotations, write_annotations
from datasets.records import value
from projects.audit import breaks_promise
from projects.errors import ProjectError
from projects.image_store import ImageStore
from projects.round_folder import LABELLED, TO_LABEL, Result, read_result, write_list, write_result
from projects.rounds import Step
from tools.doctor.checks import PROBLEM, WARNING
from tools.doctor.report import PAGE, REPORT
from tools.doctor.wrong_labels import FILE
from tools.rounds.loop import CONFIG, LABELS, Loop, training_values
from trainers.config_checks import training_config

PSEUDO_LABELS, COLUMNS = "pseudo_labels.csv", ("image", "class", "score", "uncertainty", "weights_sha256")
ASK = "nothing is accepted until --calibration names another list of images drawn at random"
DOCTOR, DOCTOR_CONFIG = "doctor", "doctor_config.json"


def read_labels(loop: Loop, number: int, because: str) -> Result:
    """Add a person's labels to the labelled list; keep the pseudo-labels unless the audit refutes them.

    Raises UserError, Stopped, OSError.
    """
    folder, results = loop.folder, loop.folder.results(number)
    picks, predictions = results[Step.PICK], results[Step.PREDICT]
    put = [*picks["picked"], *picks["audit"]]
    if loop.label_file(number) is None:
        _write_known_labels(loop, number, put)
    labels = _labels_of_person(loop, number, set(put))
    accepted = {one["image"]: one for one in predictions["accepted"]}
    audited = [image for image in picks["audit"] if image in labels]
    wrong = sum(accepted[image]["class"] != labels[image] for image in audited)
    is_refuted = breaks_promise(wrong, len(audited), loop.settings["target_risk"])
    kept = [] if is_refuted else [one for image, one in accepted.items() if image not in picks["audit"]]
    _write_pseudo_labels(folder.round(number) / PSEUDO_LABELS, kept, predictions["weights_sha256"])
    before = loop.read_labels(LABELLED)  # whose labels stay: someone may have corrected them
    new = {image: name for image, name in labels.items() if image not in before}
    write_list(folder.lists / LABELLED, before | new, loop.class_names)
    checked = _ask_doctor(loop, number) if labels else {"findings": []}
    audit = f"{wrong} of {len(audited)} audited predictions wrong"
    did = f"{counted(len(labels), 'new label')}; {audit}, {counted(len(kept), 'pseudo-label')} kept"
    if is_refuted:
        because = f"more are wrong than the target risk of {loop.settings['target_risk']:g} explains; {ASK}"
    values = {
        "labelled": len(labels),
        "without_label": [image for image in put if image not in labels],
        "audited": len(audited),
        "wrong": wrong,
        "is_refuted": is_refuted,
        "recalibrations": loop.settings["recalibrations"],
        "pseudo_labels": len(kept),
        **checked,
    }
    return folder.finish(number, Step.LABEL, "labels", did, because, **values)


def read_pseudo_labels(loop: Loop, number: int) -> dict[str, str]:
    """Return the class of each image of the round's pseudo-labels, {} where there are none. Raises ProjectError."""
    file = loop.folder.round(number) / PSEUDO_LABELS
    if not file.exists():
        return {}
    named = {csv_cell(name): name for name in loop.class_names}
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            return {row["image"]: named[row["class"]] for row in csv.DictReader(opened)}
    except (KeyError, ValueError, csv.Error) as error:
        raise ProjectError(f"{file}: it cannot be read ({error!r}); bring back what the loop wrote") from error


def _labels_of_person(loop: Loop, number: int, put: set[str]) -> dict[str, str]:
    """Return the class of each image that has a label. Raises ProjectError, ListError."""
    file = loop.label_file(number)
    assert file is not None
    found = read_annotations(file)
    labels = {}
    for record in found.records:
        image, label = value(record, "image_file"), value(record, "image_label")
        if label == NO_LABEL:
            continue
        name = value(record, "image_label_name") or found.category[label]
        if image not in put or name not in loop.class_names:
            what = f'class "{name}" is not one of the loop' if image in put else "it is no image of this round"
            raise ProjectError(f"{file}: {image}: {what}; label the folder again, or move this file away")
        labels[image] = name
    return labels


def _write_known_labels(loop: Loop, number: int, put: list[str]) -> None:
    """Write the labels that --labels_from has for the images put before a person, as a person's. Raises UserError."""
    source, folder = loop.options.labels_from, loop.folder
    assert source is not None
    config = training_config(folder.root / CONFIG, check_files=False)
    metadata = build_metadata(config, loop.class_names)
    samples = listed_samples(source, None, metadata, loop.options.list_root, flag="--evaluate").samples
    store = ImageStore(folder.images, metadata.preprocess)
    known = {store.find(sample.path): sample.label for sample in samples if sample.label != NO_LABEL}
    records = [
        {"image_file": image, "image_label": known[image], "image_label_name": loop.class_names[known[image]]}
        for image in put
        if image in known
    ]
    if not records:
        raise ProjectError(f"--labels_from {source}: it has a label for none of the {len(put)} images of this round")
    with writing(folder.round(number)):
        write_annotations(folder.round(number) / TO_LABEL, records, loop.class_names, name=f"{LABELS}.json")


def _write_pseudo_labels(path: Path, kept: list[Mapping[str, Any]], weights_sha256: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for one in kept:
        writer.writerow([*(csv_cell(one[column]) for column in COLUMNS[:-1]), weights_sha256])
    with writing(path):
        write_atomic(path, ("\ufeff" + text.getvalue()).encode())


def _ask_doctor(loop: Loop, number: int) -> dict[str, Any]:
    """Let the doctor look for contradictory and wrong labels; return what it found. Raises ProjectError, Stopped."""
    folder = loop.folder.round(number)
    write_result(folder / DOCTOR_CONFIG, training_values(loop, number, loop.folder.lists / LABELLED))
    flags = ("--wrong_labels", "--skip_step", "--output", folder / DOCTOR)
    loop.run(number, "-m", "tools.doctor", "--config", folder / DOCTOR_CONFIG, *flags, may_end_with=(0, 1))
    report = read_result(folder / DOCTOR / REPORT)
    findings = [found["text"] for found in report["findings"] if found["level"] in (PROBLEM, WARNING)]
    if findings:
        findings.append(f"the images are in {folder / DOCTOR / PAGE}, the ranked labels in {FILE} beside it")
    return {"findings": findings, "likely_wrong": report["wrong_labels"].get("likely_wrong", 0)}
