"""The parts of a training's page that are of boxes: mAP, classes, and worst images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainers.reporting.report_parts import Card, Plan, Rows
from visualization.html_page import percent, thumbnail_data_uri
from visualization.precision_recall import MOST_CURVES, PrecisionRecall, precision_recall_svg

MAX_WORST = 12
STRIP_PX = 1100


@dataclass(frozen=True)
class PrecisionRecallPlan:
    """The chart of the classes' precision over recall."""

    curves: Sequence[PrecisionRecall]
    title = "Precision and recall"

    def draw(self, epochs: list[tuple[float, float]], best_x: float | None, size: tuple[int, int]) -> str:
        """Return the chart as SVG."""
        return precision_recall_svg(self.curves, size)

    def legend(self) -> list[tuple[str, str]]:
        """Return (style, name) of each curve."""
        return [(curve.style, curve.name) for curve in self.curves]


def loss_plans(report: dict[str, Any], train: Rows, val: Rows) -> list[Plan]:
    """Return one chart of both losses."""
    return [Plan("Loss", [("train", "training", train, "loss"), ("val", "validation", val, "loss")])]


def measure_plans(report: dict[str, Any], val: Rows) -> list[Plan | PrecisionRecallPlan]:
    """Return the charts of mAP at IoU 0.5, and from 0.5 to 0.95, and of the best epoch's precision over recall."""
    lines = [("val", "IoU 0.5", val, "map50"), ("top5", "IoU 0.5 to 0.95", val, "map50_95")]
    curves = precision_recall_curves(report["per_class"], report["precision_recall"])
    return [Plan("mAP", lines, in_percent=True), *([PrecisionRecallPlan(curves)] if curves else [])]


def precision_recall_curves(
    per_class: Sequence[Mapping[str, Any]], precision: Sequence[Sequence[float]]
) -> list[PrecisionRecall]:
    """Return the curve of each class, of many those of the lowest AP, and before them their mean; none without any.

    Both are those of a `DetectionValidation`.
    """
    known = sorted(
        ((row, curve) for row, curve in zip(per_class, precision, strict=False) if curve),
        key=lambda pair: pair[0]["ap50"],
    )
    curves = [
        PrecisionRecall(
            f"{row['class']} {percent(row['ap50'], 1)}",
            f"curve{place}",
            curve,
            None if row["precision"] is None else (row["recall"], row["precision"]),
        )
        for place, (row, curve) in enumerate(known[:MOST_CURVES])
    ]
    if len(known) < 2:
        return curves
    mean = np.mean([curve for _, curve in known], axis=0)
    return [PrecisionRecall(f"all classes {percent(float(mean.mean()), 1)}", "mean", mean.tolist()), *curves]


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
