"""Runs side by side: their reports, the keys in which their configs differ, and their curves over each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.formatting import short_json
from projects.models import Run
from visualization.svg_charts import Line, curves_svg

MOST = 6  # runs, as many as there are colours
PLACES = {"save_path", "log_path", "save_name"}  # keys that differ in any two runs
NO_MEASURES = {"epoch", "step", "loss", "train_loss"}
SIZE = (520, 270)


@dataclass(frozen=True)
class Chart:
    """A drawing with its title; `svg` is safe as HTML."""

    title: str
    svg: str


@dataclass(frozen=True)
class ReportedRun:
    """A run with the config and the validations of its report; both empty where it has none yet."""

    run: Run
    config: Mapping[str, Any] = field(default_factory=dict)
    points: Sequence[Mapping[str, Any]] = ()  # by epoch: "epoch", "loss", "train_loss" and the measures
    shares: frozenset[str] = frozenset()  # measures that are shown in percent


def read_report(run: Run) -> ReportedRun:
    """Return a run with what its report holds; one that is not there or is damaged counts as none."""
    path = Path(run.root) / run.exp / "output" / "metric" / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8")) if run.root else {}
        measure = report.get("primary_measure", {})
        points = [point for point in report.get("curves", {}).get("val", []) if isinstance(point["epoch"], int)]
        config = dict(report.get("config", {}))
        shares = frozenset({"top1", "top5", *([measure["key"]] if measure.get("is_share") else [])})
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return ReportedRun(run)
    return ReportedRun(run, config, points, shares)


def differences(reports: Sequence[ReportedRun]) -> list[tuple[str, list[str]]]:
    """Return each key whose values differ among the configs, with its value in each run, "–" where there is none."""
    keys = dict.fromkeys(key for report in reports for key in report.config if key not in PLACES)
    rows = [(key, [short_json(each.config[key]) if key in each.config else "–" for each in reports]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def charts(reports: Sequence[ReportedRun]) -> list[Chart]:
    """Return a chart over the epochs for each measure, then for both losses, a line a run."""
    measures = dict.fromkeys(
        key for each in reports for point in each.points for key in point if key not in NO_MEASURES
    )
    titles = {
        **{key: f"validation {key}" for key in measures},
        "loss": "validation loss",
        "train_loss": "training loss",
    }
    found = []
    for key, title in titles.items():
        lines = []
        for number, each in enumerate(reports):
            points = [(point["epoch"], point[key]) for point in each.points if isinstance(point.get(key), int | float)]
            xs, ys = [x for x, _ in points], [y for _, y in points]
            lines.append(Line(each.run.name, style_of(number), xs, ys))
        in_percent = any(key in each.shares for each in reports)
        if svg := curves_svg(lines, title, size=SIZE, percent=in_percent, unit="epoch"):
            found.append(Chart(title, svg))
    return found


def style_of(number: int) -> str:
    """Return the class of the colour of a run, 0 to MOST - 1."""
    return f"curve{number}"
