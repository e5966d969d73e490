"""The report of several seeds: seeds.json, seeds.html with the images, and lines for a terminal of 80 columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import write_atomic
from common.json_values import plain
from data_loader.preprocess import ImageError, Preprocess
from trainers.evaluation.validation import Measure
from visualization import fonts
from visualization.html_page import render_page, thumbnail_data_uri

JSON, PAGE = "seeds.json", "seeds.html"
SHOWN = 48  # images of a kind
THUMBNAIL_PX = 168


def write_json(report: dict[str, Any], folder: Path) -> None:
    """Write seeds.json. Raises OSError."""
    text = json.dumps(plain(report), ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(folder / JSON, text + "\n")


def write_page(report: dict[str, Any], preprocess: Preprocess, folder: Path) -> Path:
    """Write seeds.html and return its path. Raises OSError."""
    report = plain(report)
    images = report.get("images", {})
    names = report["class_names"]
    page = render_page(
        Path(__file__).with_name("report.html.jinja"),
        {"value": Measure(**report["measure"]).text, "deviation": lambda value: deviation(value, report["measure"])},
        report=report,
        sections=[
            (title, len(images[key]), [_shown(row, names, preprocess) for row in images[key][:SHOWN]])
            for key, title in (
                ("changing", "change their prediction between seeds"),
                ("never_right", "are right with no seed: hard, or labelled wrongly"),
            )
            if images
        ],
        font=fonts.embedded_font(json.dumps([names, report["config"]], ensure_ascii=False)),
    )
    write_atomic(folder / PAGE, page)
    return folder / PAGE


def terminal_text(report: dict[str, Any]) -> str:
    """Return a report as text for a terminal."""
    measure, summary = Measure(**report["measure"]), report["summary"]
    lines = [f"{'seed':>6}{measure.name:>12}{'loss':>10}{'epoch':>8}"]
    for row in report["seeds"]:
        lines.append(f"{row['seed']:>6}{measure.text(row['value']):>12}{row['loss']:>10.4f}{row['epoch']:>8}")
    text = (
        f"mean {measure.text(summary['mean'])}, from {measure.text(summary['min'])} to {measure.text(summary['max'])}"
    )
    if summary["std"] is not None:
        text += f", standard deviation {deviation(summary['std'], report['measure'])}"
    lines += ["", text]
    if images := report.get("images"):
        lines += [
            f"{images['measured']:,} validation images: {images['always_right']:,} are right with every seed, "
            f"{len(images['never_right']):,} with none;",
            f"{len(images['changing']):,} change their prediction between seeds",
        ]
    return "\n".join(lines)


def deviation(value: float | None, measure: dict[str, Any]) -> str:
    """Return a standard deviation: of a share in percentage points."""
    if value is None:
        return "–"
    return f"{value * 100:.2f} points" if measure["is_share"] else f"{value:.4f}"


def _shown(row: dict[str, Any], names: list[str], preprocess: Preprocess) -> dict[str, Any]:
    """Return an image with its thumbnail, "" where it cannot be read, and what was predicted, the commonest first."""
    predictions = row["predictions"]
    counts = sorted({label: predictions.count(label) for label in predictions}.items(), key=lambda item: -item[1])
    try:
        image = thumbnail_data_uri(np.asarray(preprocess.show(row["path"])), THUMBNAIL_PX)
    except ImageError:
        image = ""
    predicted = [(names[label], count, label == row["label"]) for label, count in counts]
    return {**row, "class": names[row["label"]], "predicted": predicted, "image": image}
