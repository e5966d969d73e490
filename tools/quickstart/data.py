"""From a folder of class folders to lists without the images that would spoil a training, and the doctor's page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from artifacts.metadata import preprocess_of
from configs.schema import Config
from data_loader.decode_guard import GUARD
from data_loader.image_files import folder_prefix
from data_loader.samples import Sample, SampleList
from deploy.uncertainty.calibration import CalibrationTarget, least_images
from tools.datasets.make_lists import Entry, Images, split_images, write_lists
from tools.doctor.checks import PROBLEM, WARNING, Study, check
from tools.doctor.fix import find_dropped_rows
from tools.doctor.report import build_report, write_report
from tools.doctor.scan import scan
from tools.doctor.step_check import judge_disk
from tools.quickstart.state import QuickstartError

LEAST = 5  # images of a class: four to train on and one to validate
TARGET = CalibrationTarget(target_risk=0.05)
TRAIN_AND_VALIDATE = [Fraction(4, 5), Fraction(1, 5)]
HELD_OUT = Fraction(3, 20)  # of the images to validate, and as many to calibrate
MOST_TO_CALIBRATE = Fraction(1, 4)
MAX_WORKERS = 32
SHOWN = 5  # classes in a message


@dataclass(frozen=True)
class CheckedLists:
    """The lists that were written, and what the check found: counts by list, reasons of what was left out, findings."""

    counts: dict[str, int]
    left_out: dict[str, int]
    findings: list[str]
    page: Path


def check_counts(folder: str | Path, names: Sequence[str], labels: Sequence[int], kind: str = "images") -> None:
    """Raise QuickstartError unless there are two classes and each has LEAST images; `labels` has one of each image."""
    if len(names) < 2:
        hint = 'put what belongs to no class into a folder of its own, such as "other"'
        raise QuickstartError(f'{folder}: "{names[0]}" is its only class folder, and two are needed; {hint}')
    counts = Counter(labels)
    few = [f"{name} ({counts[label]})" for label, name in enumerate(names) if counts[label] < LEAST]
    if few:
        shown = ", ".join(few[:SHOWN]) + (f" and {len(few) - SHOWN} more" if len(few) > SHOWN else "")
        which = "a class has" if len(few) == 1 else f"{len(few)} classes have"
        hint = "add images, or move the folder elsewhere"
        raise QuickstartError(f"{folder}: {which} fewer than {LEAST} {kind}: {shown}; {hint}")


def split(images: Images) -> dict[str, list[Entry]]:
    """Return the entries to train, validate and, where there are enough, calibrate on, each class by the shares.

    A calibration list needs `least_images`, however few there are in all; where they were more than MOST_TO_CALIBRATE
    there is none.
    """
    count = len(images.entries)
    # Each class's share is rounded down at worst.
    needed = Fraction(least_images(TARGET) + len(images.class_names), count)
    shares = TRAIN_AND_VALIDATE
    if needed <= MOST_TO_CALIBRATE:
        calibration = max(HELD_OUT, needed)
        shares = [1 - HELD_OUT - calibration, HELD_OUT, calibration]
    splits = split_images(images.entries, shares, seed=0, stratify=True)
    return {"calibration" if name == "test" else name: entries for name, entries in splits.items()}


def write_checked_lists(
    folder: str, images: Images, splits: Mapping[str, Sequence[Entry]], config: Config, out: Path
) -> CheckedLists:
    """Read every image once, write the lists without those that would spoil a training, and the doctor's page.

    Left out are images that cannot be read, that have two labels, and copies. Raises QuickstartError where too few are
    left, ScanError, OSError.
    """
    GUARD.timeout_s = config.decode_timeout_s
    study = _study(folder, images, splits, config)
    dropped = find_dropped_rows(study)
    kept, row = {}, 0
    for name, entries in splits.items():
        kept[name] = [entry for number, entry in enumerate(entries, row) if number not in dropped]
        row += len(entries)
    check_counts(
        folder, images.class_names, [label for entries in kept.values() for _, label in entries], "good images"
    )
    findings = check(study)
    disk, of_disk = judge_disk(config, {})
    report = build_report(study, folder, [*findings, *of_disk], {}, disk)
    page = write_report(report, study, out)
    write_lists(out / "lists", kept, images.class_names, config.file_label_separator)
    serious = [finding.text for finding in findings if finding.level in (PROBLEM, WARNING)]
    counts = {name: len(entries) for name, entries in kept.items()}
    return CheckedLists(counts, dict(Counter(dropped.values())), serious, page)


def _study(folder: str, images: Images, splits: Mapping[str, Sequence[Entry]], config: Config) -> Study:
    """Scan all images; what is held out, to calibrate too, counts as validation."""
    prefix = folder_prefix(Path(folder).as_posix())

    def samples(*names: str) -> SampleList:
        entries = [entry for name in names for entry in splits.get(name, ())]
        found = tuple(Sample(prefix + path, label) for path, label in entries)
        return SampleList(found, images.class_names, folder, folder)

    train, held_out = samples("train"), samples("val", "calibration")
    # What cannot be read is left out of the lists: no training will stop there.
    config = config.model_copy(update={"bad_images": "skip", "max_bad_share": 1.0})
    paths = [sample.path for sample in (*train.samples, *held_out.samples)]
    preprocess = preprocess_of(config)
    workers = min(MAX_WORKERS, os.cpu_count() or 1)
    return Study.of(config, train, held_out, preprocess, scan(paths, len(train.samples), preprocess, workers))
