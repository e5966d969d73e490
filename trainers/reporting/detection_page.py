"""The parts of a training's page that are of boxes: mAP, classes, and worst images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trainers.reporting.report_parts import Card, Plan, Rows
from visualization.html_page import thumbnail_data_uri

MAX_WORST = 12
STRIP_PX = 1100


def loss_plans(report: dict[str, Any], train: Rows, val: Rows) -> list[Plan]:
    """Return one chart of both losses."""
    return [Plan("Loss", [("train", "training", train, "loss"), ("val", "validation", val, "loss")])]


def measure_plans(report: dict[str, Any], val: Rows) -> list[Plan]:
    """Return the chart of mAP at IoU 0.5, and from 0.5 to 0.95."""
    lines = [("val", "IoU 0.5", val, "map50"), ("top5", "IoU 0.5 to 0.95", val, "map50_95")]
    return [Plan("mAP", lines, in_percent=True)]


def cards(report: dict[str, Any]) -> tuple[list[Card], list[Card]]:
    """Return no further figures: the validation's rows are shown by themselves."""
    return [], []


def sections(
    report: dict[str, Any], images: Callable[[str], np.ndarray] | None, strips: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Return what the template shows of classes and worst images; see `report.render_html`."""
    return {
        "matrix_svg": None,
        "matrix_png": None,
        "cells": [],
        "mistakes": [],
        "classes": sorted(report["per_class"], key=lambda row: (row["ap50"] is None, row["ap50"] or 0.0)),
        "first_score": ("ap50", "AP50"),
        "unit": "Objects",
        "worst": [],
        "strips_note": "lowest F1, best epoch; objects (ignored ones as corners), and what was found",
        "strips": [
            {
                "path": row["path"],
                "image": thumbnail_data_uri(strips[row["path"]], STRIP_PX),
                "caption": f"{row['hits']} found, {row['missed']} missed, {row['wrong']} wrong, loss {row['loss']:.2f}",
            }
            for row in report["worst"][:MAX_WORST]
            if row["path"] in strips
        ],
    }
