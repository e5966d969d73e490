"""The report a training leaves behind: report.json for programs, report.html, one self-contained page, for people."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import write_atomic
from common.json_values import plain
from visualization import fonts, raster, svg_charts

HIT, MISS = (31, 111, 235), (219, 109, 40)  # seen on white and on black alike
MAX_MISTAKES = 12
MAX_WORST = 24
THUMBNAIL_PX = 192

Rows = list[dict[str, Any]]
Plan = tuple[str, list[tuple[str, str, Rows, str]], bool]  # of a chart: title, (style, name, rows, key), in percent


@dataclass
class TrainingReport:
    """What a report says. Shares are from 0 to 1, times in seconds; what is not known yet keeps its default.

    `best` and `final`: {"epoch", "step", "top1", "top5", "loss"}. `per_class`, `confusion` and `worst` are the best
    epoch's, as in `ValidationResult`. `curves`: {"train": [{"step", "epoch", "loss", "learning_rate"}],
    "val": [{"step", "epoch", "loss", "top1", "top5"}]}, further keys allowed. `skipped_images`: [{"path", "where",
    "reason"}]. `status`: "finished", "stopped early", "interrupted", ... `measure`: what top1 is of. `head`: which
    of the net's heads answers, where it has several. `differing_gradients`: the parameters whose gradients were not the
    same bits when a GPU trained one batch several times; None where that was not looked at. `conclusions`: further
    shares by name. `earlier`: of the stage before, {"title", "measure", "top1", "conclusions", "report"}.
    """

    title: str
    net: str
    status: str
    class_names: list[str]
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    worst: list[Any] = field(default_factory=list)
    curves: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"train": [], "val": []})
    num_train: int = 0
    num_val: int = 0
    images_per_second: float | None = None
    train_seconds: float | None = None
    validation_seconds: float | None = None
    device: str = ""
    precision: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    git_commit: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    skipped_images: list[dict[str, str]] = field(default_factory=list)
    measure: str = "top-1"
    head: str = ""
    differing_gradients: list[str] | None = None
    conclusions: dict[str, float] = field(default_factory=dict)
    earlier: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; NaN and infinity become None."""
        return plain(asdict(self))


def write_report(
    report: dict[str, Any],
    folder: str | Path,
    *,
    images: Callable[[str], np.ndarray] | None = None,
    heat_maps: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write report.json and report.html into `folder`, each complete or not at all; return the page's path.

    `report` is `TrainingReport.to_dict()`. `images` gives the uint8 (H, W, C) image of a path of `worst`; one it
    cannot give (OSError, ValueError) is left out of the page. `heat_maps` holds, by path, the same under the heat map
    of its answer, as many as there are.
    """
    report = plain(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(folder / "report.json", text + "\n")
    write_atomic(folder / "report.html", render_html(report, images, heat_maps))
    return folder / "report.html"


def render_html(
    report: dict[str, Any],
    images: Callable[[str], np.ndarray] | None = None,
    heat_maps: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Return the page of a report of plain values; everything in it is escaped by the template."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, number=_number, duration=_duration, value=_value)
    names = report["class_names"]
    confusion = np.asarray(report["confusion"], dtype=np.int64).reshape(-1, len(names))
    numbered = len(names) <= raster.MAX_NUMBERED_CLASSES
    return environment.get_template("report.html.jinja").render(
        report=report,
        charts=[(title, legend, Markup(chart)) for title, legend, chart in _charts(report) if chart],
        matrix_svg=Markup(svg_charts.confusion_svg(confusion, names)) if numbered and len(confusion) else None,
        matrix_png=_matrix_png(confusion) if not numbered and len(confusion) else None,
        cells=[[int(i), int(j), int(confusion[i, j])] for i, j in np.argwhere(confusion)] if not numbered else [],
        mistakes=_mistakes(confusion, names),
        classes=_classes(report["per_class"]),
        worst=_worst(report["worst"], names, images, heat_maps or {}),
        font=fonts.embedded_font(json.dumps(report, ensure_ascii=False)),
    )


def _charts(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]], str]]:
    """Return (title, legend of (style, name), svg) for each chart; svg is "" where there is nothing to draw."""
    train, val = report["curves"].get("train", []), report["curves"].get("val", [])
    epochs = [(row["step"], row["epoch"]) for row in val if row.get("epoch") is not None]
    best_x = report["best"].get("step")
    accuracy = [("val", report["measure"], val, "top1"), ("top5", "top-5", val, "top5")]
    plans: list[Plan] = [
        *_loss_plans(report, train, val),
        ("Accuracy", accuracy if len(report["class_names"]) > 5 else accuracy[:1], True),  # of 5, top-5 is always right
        ("Learning rate", [("rate", "learning rate", train, "learning_rate")], False),
    ]
    charts = []
    for title, columns, percent in plans:
        lines = [_line(name, style, rows, key) for style, name, rows, key in columns]
        size = (1080, 210) if title == "Learning rate" and len(plans) == 3 else (520, 270)  # alone: as wide as two
        chart = svg_charts.curves_svg(lines, title, size=size, percent=percent, epochs=epochs, best_x=best_x)
        charts.append((title, [(line.style, line.name) for line in lines if len(line.xs)], chart))
    return charts


def _loss_plans(report: dict[str, Any], train: Rows, val: Rows) -> list[Plan]:
    """Plan one chart of the losses where they can be compared, else one each.

    A net with several heads learns a weighted sum of all their terms; validated is the head that answers best, alone.
    """
    if report.get("head"):
        return [
            ("Training loss", [("train", "weighted sum of all terms", train, "loss")], False),
            ("Validation loss", [("val", "cross entropy of the best head", val, "loss")], False),
        ]
    losses = [("train", "training", train, "loss"), ("val", "validation", val, "loss")]
    return [("Loss", losses if report["measure"] == "top-1" else losses[:1], False)]  # a kNN's is of another kind


def _line(name: str, style: str, rows: list[dict[str, Any]], key: str) -> svg_charts.Line:
    points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return svg_charts.Line(name, style, [x for x, _ in points], [y for _, y in points], noisy=key == "loss")


def _matrix_png(confusion: np.ndarray) -> str:
    """One pixel a cell, its strength as opacity, so that it fits a light and a dark page."""
    ink = np.where(np.eye(len(confusion), dtype=bool)[..., None], HIT, MISS)  # (K, K, 3)
    alpha = np.rint(255 * raster.confusion_strength(confusion))[..., None]  # (K, K, 1)
    pixels = np.concatenate([ink, alpha], axis=-1).astype(np.uint8)  # (K, K, 4)
    return _data_uri("image/png", raster.png_bytes(pixels))


def _mistakes(confusion: np.ndarray, names: list[str]) -> list[dict[str, Any]]:
    """Return the most frequent confusions, most frequent first."""
    wrong = confusion * (1 - np.eye(*confusion.shape, dtype=np.int64)) if len(confusion) else confusion
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_MISTAKES]
    places = [(i // len(names), i % len(names)) for i in order.tolist()]
    return [
        {"label": names[i], "answer": names[j], "count": int(wrong[i, j]), "share": wrong[i, j] / confusion[i].sum()}
        for i, j in places
        if wrong[i, j]
    ]


def _classes(per_class: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Number the classes and put the weakest first; those without images come last."""
    rows = [{**row, "label": label} for label, row in enumerate(per_class)]
    return sorted(rows, key=lambda row: (row["support"] == 0, row["f1"] or 0.0))


def _worst(
    worst: list[dict[str, Any]],
    names: list[str],
    images: Callable[[str], np.ndarray] | None,
    heat_maps: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """Name the labels of the worst images and add their thumbnails; `image` or `heat` is None where there is none."""
    rows = []
    for row in worst[:MAX_WORST]:
        image = None
        if images is not None:
            try:
                image = _thumbnail(images(row["path"]))
            except (OSError, ValueError):
                image = None  # the page shows an empty frame
        heat = _thumbnail(heat_maps[row["path"]]) if row["path"] in heat_maps else None
        rows.append({**row, "label": names[row["label"]], "answer": names[row["answer"]], "image": image, "heat": heat})
    return rows


def _thumbnail(image: np.ndarray) -> str:
    """Encode as JPEG; an image of few pixels as PNG, which is smaller there and sharp."""
    small = raster.thumbnail(image, THUMBNAIL_PX)
    buffer = io.BytesIO()
    if max(image.shape[:2]) * 2 <= THUMBNAIL_PX:
        small.save(buffer, format="PNG", optimize=True)
        return _data_uri("image/png", buffer.getvalue())
    small.save(buffer, format="JPEG", quality=85)
    return _data_uri("image/jpeg", buffer.getvalue())


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _percent(share: float | None, digits: int = 2) -> str:
    return "–" if share is None else f"{share * 100:.{digits}f} %"


def _number(value: float | None, digits: int = 4) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
