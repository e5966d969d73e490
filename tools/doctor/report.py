"""The doctor's report: doctor.json, doctor.html with the images, and lines for a terminal of 80 columns."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import write_atomic
from common.console import elide, printable, text_columns
from common.formatting import size_text
from common.json_values import plain
from data_loader.preprocess import ImageError
from tools.doctor.checks import LEVELS, WRONG_LABELS, Finding, Study, sizes_of
from visualization import fonts
from visualization.html_page import render_page, thumbnail_data_uri

REPORT, PAGE = "doctor.json", "doctor.html"
COLUMNS = 79  # some terminals wrap a full line
GROUPS_PRINTED, GROUPS_SHOWN, IMAGES_PER_GROUP = 3, 24, 4  # on the terminal, on the page, on both
RANKED_PRINTED, RANKED_SHOWN = 10, 60  # of the labels that are probably wrong
CLASSES_PRINTED = 12
WEIGHTS_PRINTED = 24  # of more classes "balanced" is printed
THUMBNAIL_PX = 168
BAR = 24


def build_report(
    study: Study, config: str, findings: Sequence[Finding], step: dict[str, Any], disk: dict[str, Any]
) -> dict[str, Any]:
    """Return the values of doctor.json."""
    mean, std = study.images.mean_and_std()
    paste: dict[str, Any] = {"mean": [round(value, 4) for value in mean], "std": [round(value, 4) for value in std]}
    weights: list[float] = []
    if not study.config.learns_without_labels() and study.unit != "object":
        weights = paste["class_weights"] = class_weights(study.class_counts()[0])
    counts = zip(study.train.class_names, *study.class_counts(), strict=True)
    return {
        "config": config,
        "net": f"{study.config.model_module_name}.{study.config.model_net_name}",
        "input": {"width": study.preprocess.width, "height": study.preprocess.height, "resize": study.config.resize},
        "training": {"pictures": len(study.train.samples), "origin": study.train.origin, "root": study.train.root},
        "validation": {"pictures": len(study.val.samples), "origin": study.val.origin, "root": study.val.root},
        "classes": [
            {"name": name, "training": train, "validation": val, **({"weight": weights[label]} if weights else {})}
            for label, (name, train, val) in enumerate(counts)
        ],
        "counted_in": f"{study.unit}s",
        "unlabelled": sum(sample.label < 0 for sample in study.train.samples) if study.has_labels else 0,
        "sizes": sizes_of(study),
        "paste": paste,
        "step": step,
        "disk": disk,
        "fix": {},
        "findings": [_finding_values(study, finding) for finding in findings],
    }


def class_weights(counts: Sequence[int]) -> list[float]:
    """Return N / (K * its count) of each class, over the K classes with images, as class_weights "balanced" does."""
    present = [count for count in counts if count]
    return [round(sum(present) / (len(present) * count), 4) if count else 0.0 for count in counts]


def write_report(report: dict[str, Any], study: Study, folder: Path) -> Path:
    """Write doctor.json and doctor.html; return the page's path. Raises OSError."""
    report = plain(report)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    for name, content in ((REPORT, text), (PAGE, render_html(report, study))):
        write_atomic(folder / name, content)
    return folder / PAGE


def render_html(report: dict[str, Any], study: Study) -> str:
    """Return the page of a report of plain values; the template escapes everything in it."""
    return render_page(
        Path(__file__).with_name("report.html.jinja"),
        {"size": size_text, "duration": duration, "number": _number},
        report=report,
        levels=LEVELS,
        shown=[_shown(finding, study) for finding in report["findings"]],
        paste=paste_lines(report["paste"], columns=110),
        largest=max([row["training"] for row in report["classes"]] + [1]),
        font=fonts.embedded_font(json.dumps([report["classes"], report["findings"]], ensure_ascii=False)),
    )


def terminal_text(report: dict[str, Any]) -> str:
    """Return a report as text for a terminal."""
    blocks = [
        [_headline(report)],
        list(_data_lines(report)),
        list(_class_lines(report["classes"], report["counted_in"])),
        list(_step_lines(report["step"], report["disk"])),
        ["to paste into the config", *paste_lines(report["paste"], COLUMNS)],
        [line for finding in report["findings"] for line in _finding_lines(finding)],
        list(_fix_lines(report["fix"])) if report["fix"] else [],
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def paste_lines(paste: dict[str, Any], columns: int) -> list[str]:
    """Return lines of a config; for many classes the weights are "balanced", from which training computes the same."""
    lines = []
    for key, value in paste.items():
        if key == "class_weights" and len(value) > WEIGHTS_PRINTED:
            value = "balanced"
        text = f'"{key}": {json.dumps(value)},'
        lines += textwrap.wrap(text, columns, initial_indent="  ", subsequent_indent="    ")
    return lines


def duration(seconds: float) -> str:
    """Return a time in ms, s, min or h."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _finding_values(study: Study, finding: Finding) -> dict[str, Any]:
    """Return a finding with its images' paths, classes and places."""

    def image(row: int) -> dict[str, Any]:
        predicted = dict(zip(("predicted", "score"), finding.predicted.get(row, ()), strict=False))
        return {
            "path": study.sample(row).path,
            "file": study.file(row),
            "where": study.where(row),
            "split": study.split(row),
            "class": study.class_name(row),
            "row": row,
            "reason": finding.reasons.get(row, ""),
            **predicted,
        }

    groups = [[image(row) for row in group] for group in finding.groups]
    return {"level": finding.level, "kind": finding.kind, "text": finding.text, "groups": groups}


def _headline(report: dict[str, Any]) -> str:
    counts = {level: sum(finding["level"] == level for finding in report["findings"]) for level in LEVELS}
    text = ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in counts.items() if count)
    return f"{elide(printable(report['config']), COLUMNS - 40)}: {text or 'nothing found'}"


def _data_lines(report: dict[str, Any]) -> Iterator[str]:
    for split in ("training", "validation"):
        count = f"{report[split]['pictures']:,}"
        yield _row(split, f"{count:>9}  {elide(printable(report[split]['origin']), COLUMNS - 27)}")
    sizes, size = report["sizes"], report["input"]
    yield _row("input", f"{size['width']} x {size['height']}, {size['resize']}")
    for key in ("width", "height", "aspect_ratio") if sizes else ():
        values = sizes[key]
        digits = ".2f" if key == "aspect_ratio" else ".0f"
        low, middle, high = (format(values[name], digits) for name in ("smallest", "median", "largest"))
        yield _row(key.replace("_", " "), f"{low} to {high}, median {middle}")
    if sizes:
        yield _row("smaller", f"{sizes['enlarged_share']:.1%} of the images are enlarged to the input")


def _class_lines(classes: list[dict[str, Any]], counted_in: str) -> Iterator[str]:
    """Yield the table of the classes; of many the largest and the smallest."""
    ordered = sorted(classes, key=lambda row: -row["training"])
    half = CLASSES_PRINTED // 2
    rows = ordered if len(ordered) <= CLASSES_PRINTED else [*ordered[:half], None, *ordered[-half:]]
    largest = max(1, ordered[0]["training"])
    names = min(max(text_columns(printable(row["name"])) for row in rows if row), 26)
    names = max(names, len("class"))
    width = max(10, len(f"{largest:,}") + 2)
    unit = "" if counted_in == "images" else f"  ({counted_in})"
    yield f"{'class':<{names}}{'training':>{width}}{'validation':>{width + 2}}{unit}"
    for row in rows:
        if row is None:
            yield f"... {len(ordered) - 2 * half:,} more"
            continue
        name = elide(printable(row["name"]), names)
        bar = "#" * math.ceil(BAR * row["training"] / largest)
        pad = " " * (names - text_columns(name))
        yield f"{name}{pad}{row['training']:>{width},}{row['validation']:>{width + 2},}  {bar}".rstrip()


def _step_lines(step: dict[str, Any], disk: dict[str, Any]) -> Iterator[str]:
    if "seconds_a_step" in step:
        each = f"{duration(step['seconds_a_step'])}, the mean of {step['steps_measured']} after the first"
        yield _row("a step", f"{each}; batch {step['batch_size']}, {step['precision']}")
        several = f", {step['processes']} processes" if step["processes"] > 1 else ""
        epoch = f"{duration(step['seconds_an_epoch'])} of training in {step['steps_an_epoch']:,} steps{several}"
        yield _row("an epoch", epoch)
        free = f" of {size_text(step['memory_free'])} free" if step["memory_free"] else ""
        yield _row(
            "memory", f"{size_text(step['memory_peak'])}{free} ({step['memory_of']} memory, loaders not counted)"
        )
        yield _row("on", elide(step["device"], COLUMNS - 15))
    needed = f", the checkpoints need {size_text(disk['needed'])}" if "needed" in disk else ""
    yield _row("disk", f"{size_text(disk['free'])} free{needed}")


def _finding_lines(finding: dict[str, Any]) -> Iterator[str]:
    """Yield a finding and its first images."""
    mark = finding["level"].upper() if finding["level"] == LEVELS[0] else finding["level"]
    yield from textwrap.wrap(
        printable(f"{mark:<9}{finding['text']}"), COLUMNS, subsequent_indent=" " * 9, break_on_hyphens=False
    )
    if finding["level"] == LEVELS[2]:
        return
    most = RANKED_PRINTED if finding["kind"] == WRONG_LABELS else GROUPS_PRINTED
    for group in finding["groups"][:most]:
        yield from _group_lines(group, "~" if "look-alikes" in finding["kind"] else "=")
    if len(finding["groups"]) > most:
        yield f"{'':<11}... {len(finding['groups']) - most:,} more"


def _group_lines(group: list[dict[str, Any]], sign_of_another: str) -> Iterator[str]:
    for number, image in enumerate(group[:IMAGES_PER_GROUP]):
        names = [image["split"], image["class"]] if len(group) > 1 else [image["class"]]
        tail = "" if image["reason"] else f" [{', '.join(name for name in names if name)}]"
        tail = elide(printable(tail), 36)
        sign = sign_of_another if number else " "
        yield f"{'':<9}{sign} {elide(printable(image['file']), COLUMNS - 11 - text_columns(tail))}{tail}"
        if image["reason"]:
            yield from textwrap.wrap(image["reason"], COLUMNS, initial_indent=" " * 13, subsequent_indent=" " * 13)
    if len(group) > IMAGES_PER_GROUP:
        yield f"{'':<9}{sign_of_another} {len(group) - IMAGES_PER_GROUP:,} more"


def _fix_lines(fix: dict[str, Any]) -> Iterator[str]:
    yield f"cleaned lists: {fix['training']:,} training and {fix['validation']:,} validation images"
    for reason, count in fix["dropped"].items():
        yield f"  {count:>7,} left out: {reason}"
    for name in fix["classes_gone"]:
        yield f"  PROBLEM class {printable(name)} has lost all its training images"
    for key, value in fix["config"].items():
        yield f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)},"


def _row(name: str, text: str) -> str:
    return f"{name:<13} {text}"


def _shown(finding: dict[str, Any], study: Study) -> list[list[dict[str, Any]]]:
    """Return the first groups of a finding with thumbnails: of a group across the lists, some of each."""
    groups = []
    for group in finding["groups"][: RANKED_SHOWN if finding["kind"] == WRONG_LABELS else GROUPS_SHOWN]:
        train, val = ([p for p in group if p["split"] == split] for split in ("training", "validation"))
        chosen = [*train[: max(IMAGES_PER_GROUP // 2, IMAGES_PER_GROUP - len(val))], *val][:IMAGES_PER_GROUP]
        images = [{**image, "image": _thumbnail(image, study)} for image in chosen]
        groups.append(images)
    return groups


def _thumbnail(row: dict[str, Any], study: Study) -> str:
    """Return a row's image as a data URI; "" where it cannot be read."""
    try:
        image = np.asarray(study.preprocess.show(study.sample(row["row"]).path))
    except ImageError:
        return ""
    return thumbnail_data_uri(image, THUMBNAIL_PX)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
