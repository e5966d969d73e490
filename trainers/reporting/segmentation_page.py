"""The parts of a training's page that are of masks: IoU, the confusion of pixels, classes, and worst images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trainers.reporting.report_parts import Card, Plan, Rows
from visualization import raster, svg_charts
from visualization.html_page import percent, thumbnail_data_uri

MAX_WORST = 12
STRIP_PX = 1100
CURVES = {  # of the scalars beside the measure
    "change_f1": "F1 of change",
    "mean_iou": "mean IoU",
    "mean_f1": "mean F1",
    "pixel_accuracy": "pixel accuracy",
}


def loss_plans(report: dict[str, Any], train: Rows, val: Rows) -> list[Plan]:
    """Return one chart of both losses."""
    return [Plan("Loss", [("train", "training", train, "loss"), ("val", "validation", val, "loss")])]


def measure_plans(report: dict[str, Any], val: Rows) -> list[Plan]:
    """Return the chart of the measure and one more score."""
    measure = report["primary_measure"]
    lines = [("val", measure["name"], val, measure["key"])]
    beside = "change_f1" if measure["key"] == "change_iou" else "pixel_accuracy"
    return [Plan("Masks", [*lines, ("top5", CURVES[beside], val, beside)], in_percent=True)]


def cards(report: dict[str, Any]) -> tuple[list[Card], list[Card]]:
    """Return no further figures: the validation's rows are shown by themselves."""
    return [], []


def sections(
    report: dict[str, Any], images: Callable[[str], np.ndarray] | None, strips: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return what the template shows of confusion, classes and worst images; see `report.render_html`."""
    names, counts = report["class_names"], np.asarray(report["confusion"], dtype=np.int64)
    is_shown = len(counts) > 0 and len(names) <= raster.MAX_NUMBERED_CLASSES
    rows = [{**row, "label": label} for label, row in enumerate(report["per_class"])]
    worst = report["worst"][:MAX_WORST]
    return {
        "matrix_svg": svg_charts.confusion_svg(percent_of_row(counts), names) if is_shown else None,
        "matrix_png": None,
        "matrix_note": "percent of the pixels of a class",
        "cells": [],
        "mistakes": [],
        "classes": sorted(rows, key=lambda row: (row["iou"] is None, row["iou"] or 0.0)),
        "first_score": ("iou", "IoU"),
        "unit": "Pixels",
        "worst": [],
        "strips_note": "lowest mean IoU, best epoch; image, truth, prediction, and errors in red",
        "strips": [
            {
                "path": row["path"],
                "image": thumbnail_data_uri(strips[row["path"]], STRIP_PX),
                "caption": f"mean IoU {percent(row['iou'], 1)}, loss {row['loss']:.2f}",
            }
            for row in worst
            if row["path"] in strips
        ],
    }


def percent_of_row(confusion: np.ndarray) -> np.ndarray:
    """Return counts (K, K) as whole percents of their row, 0 for a row without any."""
    totals = confusion.sum(axis=1, keepdims=True)
    return np.rint(100 * confusion / np.maximum(totals, 1)).astype(np.int64)
