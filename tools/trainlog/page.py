"""The page of a trainlog.json: checked values, charts, tables and pictures in one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from common.atomic_io import write_atomic, writing
from common.errors import UserError
from visualization import fonts
from visualization.html_page import render_page, thumbnail_data_uri
from visualization.svg_charts import Line, curves_svg

PICTURES = ("image", "A", "B", "label", "pred")
SIDE_PX = 480
LOSS = "loss"


class TrainLogError(UserError):
    """A file that is no trainlog.json; the message is one sentence for the user."""


def read_log(file: Path) -> dict[str, Any]:
    """Return a trainlog.json, of which everything that the page shows is there. Raises TrainLogError."""
    try:
        log = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TrainLogError(f"{file}: it cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TrainLogError(f"{file}: it is no JSON: {error}") from error
    try:
        epochs = [
            {"epoch": int(row["epoch"]), **{split: _rows(row[split]) for split in ("train", "valid")}}
            for row in log["epochs"]
        ]
        texts = {key: str(log.get(key, "")) for key in ("training_id", "create_time", "end_time")}
        titles = {str(key): str(title) for key, title in log["description"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f'key "{error.args[0]}" is missing' if isinstance(error, KeyError) else "its values are of other kinds"
        raise TrainLogError(f"{file}: it is no trainlog.json, as trainings write it into output/: {what}") from error
    best = log.get("best")
    return {**texts, "description": titles, "epochs": epochs, "best": best if isinstance(best, dict) else {}}


def write_page(log: Mapping[str, Any], file: Path, output: Path, *, refresh_s: float = 0) -> None:
    """Write the page, complete or not at all. Raises ResultsError."""
    epochs, titles = log["epochs"], log["description"]
    best = _best_epoch(log)
    page = render_page(
        Path(__file__).with_name("page.html.jinja"),
        {"value": _text},
        log=log,
        refresh_s=refresh_s,
        charts=[(key, title, chart) for key, title in titles.items() if (chart := _chart(epochs, key, best))],
        best_epoch=best,
        tables=[
            (title, next(row["valid"] for row in epochs if row["epoch"] == number))
            for title, number in (("best", best), ("last", epochs[-1]["epoch"]))
            if number is not None
        ]
        if epochs
        else [],
        pictures=_pictures(file.parent / "picture"),
        font=fonts.embedded_font(json.dumps(log, ensure_ascii=False, default=str)),
    )
    with writing(output):
        write_atomic(output, page)


def _rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the values of each class, "all" first."""
    return {str(row["class"]): {str(key): float(value) for key, value in row["values"].items()} for row in rows}


def _best_epoch(log: Mapping[str, Any]) -> int | None:
    """Return the epoch whose figures of all classes on valid are `best`; None where there is none."""
    wanted = log["best"]
    for row in log["epochs"]:
        values = row["valid"].get("all", {})
        if wanted and all(values.get(key) == value for key, value in wanted.items()):
            number: int = row["epoch"]
            return number
    return None


def _chart(epochs: Sequence[Mapping[str, Any]], key: str, best: int | None) -> Any:
    """Return the curves of a figure over the epochs, as markup; "" where it has none."""
    from markupsafe import Markup

    lines = []
    for split, style in (("train", "train"), ("valid", "val")):
        points = [(row["epoch"], row[split]["all"][key]) for row in epochs if key in row[split].get("all", {})]
        lines.append(Line(split, style, [float(x) for x, _ in points], [y for _, y in points]))
    svg = curves_svg(lines, key, percent=key != LOSS, best_x=best, unit="epoch")
    return Markup(svg)  # made of numbers and names of ours


def _pictures(folder: Path) -> list[tuple[str, str]]:
    """Return the latest pictures by their names; one that cannot be read is left out."""
    found = []
    for name in PICTURES:
        try:
            with Image.open(folder / f"{name}.png", formats=("PNG",)) as image:
                pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, Image.DecompressionBombError):
            continue
        found.append((name, thumbnail_data_uri(pixels, SIDE_PX)))
    return found


def _text(value: float | None, key: str) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if key == LOSS else f"{value * 100:.2f} %"
