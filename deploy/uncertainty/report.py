"""uncertainty.html, one page that needs no other file, and uncertainty.json, of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import check_folder, write_atomic, writing
from data_loader.decoding import decode
from data_loader.preprocess import ImageError, Preprocess
from visualization.uncertainty_charts import histogram_chart, reliability_chart, risk_chart

PAGE, VALUES = "uncertainty.html", "uncertainty.json"
TEMPLATE = Path(__file__).with_name("report.html.jinja")
THUMBNAIL_PX = 192


def write_page(evaluation: Mapping[str, Any], folder: Path, preprocess: Preprocess | None = None) -> None:
    """Write PAGE and VALUES of what `evaluate` returned into a folder, each complete or not. Raises ResultsError."""
    check_folder(folder)
    text = json.dumps(evaluation, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    page = render(evaluation, preprocess)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((VALUES, text), (PAGE, page)):
        with writing(folder / name):
            write_atomic(folder / name, content.encode(errors="backslashreplace"))


def render(evaluation: Mapping[str, Any], preprocess: Preprocess | None = None) -> str:
    """Return the page of an evaluation."""
    from markupsafe import Markup

    from visualization.fonts import embedded_font  # late: fonts take a moment
    from visualization.html_page import render_page

    scores = evaluation["scores"]
    styles = {name: f"s{number}" for number, name in enumerate(scores)}
    styles[evaluation["default_score"]] += " default"
    curves = {name: score["risk_at_coverage"] for name, score in scores.items()}
    return render_page(
        TEMPLATE,
        {"thousandths": lambda value: f"{value * 1000:.3f}"},
        e=evaluation,
        styles=styles,
        best={key: _best(scores, key) for key in ("aurc", "e_aurc", "auroc", "fpr95")},
        reliability={
            when: Markup(reliability_chart(evaluation[when]["bins"], f"Reliability {when}"))
            for when in ("before", "after")
        },
        risk=Markup(risk_chart(curves, styles, evaluation["decided"]["coverage"])),
        histogram=Markup(histogram_chart(evaluation["histogram"], evaluation["default_score"])),
        mistakes=[{**mistake, "image": _thumbnail(mistake["file"], preprocess)} for mistake in evaluation["mistakes"]],
        font=embedded_font(json.dumps(evaluation, ensure_ascii=False)),
    )


def _best(scores: Mapping[str, Any], key: str) -> float | None:
    found = [score[key] for score in scores.values() if key in score]
    return (max if key == "auroc" else min)(found, default=None)


def _thumbnail(file: str, preprocess: Preprocess | None) -> str | None:
    """Return an image as a data URI; None where it cannot be read any more, and the page shows an empty frame."""
    from visualization.html_page import thumbnail_data_uri

    try:
        return thumbnail_data_uri(np.asarray(preprocess.show(file) if preprocess else decode(file, 3)), THUMBNAIL_PX)
    except ImageError:
        return None
