"""The parts of a training's page that are a classifier's: accuracy, confusion, classes, and worst images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from trainers.evaluation.confusion_cells import MOST_IN_A_MATRIX, Cells, cells_in, totals_of
from trainers.reporting.report_parts import Card, Plan, Rows
from visualization import raster, svg_charts
from visualization.html_page import data_uri, percent, thumbnail_data_uri

HIT, MISS = (31, 111, 235), (219, 109, 40)  # seen on white and on black alike
MAX_MISTAKES = 12
MAX_WORST = 24
THUMBNAIL_PX = 192
MOST_WITHOUT_TOP5 = 5  # classes: of so few, top-5 is always right


def loss_plans(report: dict[str, Any], train: Rows, val: Rows) -> list[Plan]:
    """Return one chart of the losses where they can be compared, else one each.

    A net with several heads learns a weighted sum of all their terms; validated is the best head, alone.
    """
    if report.get("head"):
        return [
            Plan("Training loss", [("train", "weighted sum of all terms", train, "loss")]),
            Plan("Validation loss", [("val", "cross entropy of the best head", val, "loss")]),
        ]
    losses = [("train", "training", train, "loss"), ("val", "validation", val, "loss")]
    return [Plan("Loss", losses if report["measure"] == "top-1" else losses[:1])]  # a kNN's is of another kind


def measure_plans(report: dict[str, Any], val: Rows) -> list[Plan]:
    """Return the chart of the accuracy."""
    lines = [("val", report["measure"], val, "top1"), ("top5", "top-5", val, "top5")]
    return [Plan("Accuracy", lines if len(report["class_names"]) > MOST_WITHOUT_TOP5 else lines[:1], in_percent=True)]


def cards(report: dict[str, Any]) -> tuple[list[Card], list[Card]]:
    """Return the figures that stand at once behind the accuracy, and those before the loss."""
    best, final = report["best"], report["final"]
    of_views, top5 = [], []
    if best.get("top1_views") is not None:
        name, note = f"Top-1 over {report['config']['test_time_views']} views", percent(final.get("top1_views"))
        of_views = [Card(name, percent(best["top1_views"]), f"final {note}")]
    if len(report["class_names"]) > MOST_WITHOUT_TOP5:
        top5 = [Card("Top-5 accuracy", percent(best.get("top5")), f"final {percent(final.get('top5'))}")]
    return of_views, top5


def sections(
    report: dict[str, Any], images: Callable[[str], np.ndarray] | None, heat_maps: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return what the template shows of confusion, classes and worst images; see `report.render_html`."""
    names = report["class_names"]
    confusion = np.asarray(report["confusion"], dtype=np.int64).reshape(-1, len(names)) if names else np.zeros((0, 0))
    cells = report.get("confusion_cells") or cells_in(confusion)  # an older report.json has none
    numbered = len(names) <= raster.MAX_NUMBERED_CLASSES
    is_there = len(confusion) > 0
    return {
        "matrix_svg": svg_charts.confusion_svg(confusion, names) if numbered and is_there else None,
        "matrix_png": None if numbered or not is_there else _matrix_png(confusion),
        "matrix_note": "" if is_there else f"not drawn of more than {MOST_IN_A_MATRIX:,} classes",
        "cells": [] if numbered else cells,
        "mistakes": _mistakes(cells, names),
        "classes": _classes(report["per_class"]),
        "worst": _worst(report["worst"], names, images, heat_maps),
    }


def _matrix_png(confusion: np.ndarray) -> str:
    """One pixel a cell, its strength as opacity, so that it fits a light and a dark page."""
    ink = np.where(np.eye(len(confusion), dtype=bool)[..., None], HIT, MISS)  # (K, K, 3)
    alpha = np.rint(255 * raster.confusion_strength(confusion))[..., None]  # (K, K, 1)
    pixels = np.concatenate([ink, alpha], axis=-1).astype(np.uint8)  # (K, K, 4)
    return data_uri("image/png", raster.png_bytes(pixels))


def _mistakes(cells: Cells, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the most frequent confusions, most frequent first."""
    _, labelled, _ = totals_of(cells, len(names))
    wrong = sorted((cell for cell in cells if cell[0] != cell[1]), key=lambda cell: -cell[2])[:MAX_MISTAKES]
    return [
        {"label": names[label], "answer": names[answer], "count": count, "share": count / labelled[label]}
        for label, answer, count in wrong
    ]


def _classes(per_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number the classes and put the weakest first; those without images come last."""
    rows = [{**row, "label": label} for label, row in enumerate(per_class)]
    return sorted(rows, key=lambda row: (row["support"] == 0, row["f1"] or 0.0))


def _worst(
    worst: list[dict[str, Any]],
    names: Sequence[str],
    images: Callable[[str], np.ndarray] | None,
    heat_maps: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Name the labels of the worst images and add their thumbnails; `image` or `heat` is None where there is none."""
    rows = []
    for row in worst[:MAX_WORST]:
        image = None
        if images is not None:
            try:
                image = thumbnail_data_uri(images(row["path"]), THUMBNAIL_PX)
            except (OSError, ValueError):
                image = None  # the page shows an empty frame
        heat = thumbnail_data_uri(heat_maps[row["path"]], THUMBNAIL_PX) if row["path"] in heat_maps else None
        rows.append({**row, "label": names[row["label"]], "answer": names[row["answer"]], "image": image, "heat": heat})
    return rows
