"""uncertainty.html, one page that needs no other file, and uncertainty.json, of an evaluation."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import check_folder, write_atomic, writing
from data_loader.preprocess import ImageError, decode
from visualization.uncertainty_charts import histogram_chart, reliability_chart, risk_chart

PAGE, VALUES = "uncertainty.html", "uncertainty.json"
TEMPLATE = "report.html.jinja"
THUMBNAIL_PX = 192


def write_page(evaluation: Mapping[str, Any], folder: Path) -> None:
    """Write PAGE and VALUES of what `evaluate` gave into a folder, each whole or not at all. Raises ResultsError."""
    check_folder(folder)
    text = json.dumps(evaluation, ensure_ascii=False, allow_nan=False, indent=1) + "\n"
    page = render(evaluation)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((VALUES, text), (PAGE, page)):
        with writing(folder / name):
            write_atomic(folder / name, content.encode(errors="backslashreplace"))


def render(evaluation: Mapping[str, Any]) -> str:
    """Give the page of an evaluation; everything in it is escaped by the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from visualization.fonts import embedded_font  # late: fonts take a moment

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=_percent, thousandths=lambda value: f"{value * 1000:.3f}")
    scores = evaluation["scores"]
    styles = {name: f"s{number}" for number, name in enumerate(scores)}
    styles[evaluation["default_score"]] += " default"
    curves = {name: score["risk_at_coverage"] for name, score in scores.items()}
    return environment.get_template(TEMPLATE).render(
        e=evaluation,
        styles=styles,
        best={key: _best(scores, key) for key in ("aurc", "e_aurc", "auroc", "fpr95")},
        reliability={
            when: Markup(reliability_chart(evaluation[when]["bins"], f"Reliability {when}")) for when in _WHEN
        },
        risk=Markup(risk_chart(curves, styles, evaluation["decided"]["coverage"])),
        histogram=Markup(histogram_chart(evaluation["histogram"], evaluation["default_score"])),
        mistakes=[{**mistake, "image": _thumbnail(mistake["file"])} for mistake in evaluation["mistakes"]],
        font=embedded_font(json.dumps(evaluation, ensure_ascii=False)),
    )


_WHEN = ("before", "after")


def _best(scores: Mapping[str, Any], key: str) -> float | None:
    found = [score[key] for score in scores.values() if key in score]
    return (max if key == "auroc" else min)(found, default=None)


def _thumbnail(file: str) -> str | None:
    """Give an image as a data URI; None where it cannot be read any more, and the page shows an empty frame."""
    from visualization.raster import thumbnail

    try:
        pixels = np.asarray(decode(file, 3))
    except ImageError:
        return None
    small = max(pixels.shape[:2]) * 2 <= THUMBNAIL_PX  # an image of few pixels: smaller as PNG, and sharp
    buffer = io.BytesIO()
    image = thumbnail(pixels, THUMBNAIL_PX)
    if small:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="JPEG", quality=85)
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None else f"{share * 100:.{digits}f} %"
