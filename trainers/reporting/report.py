"""The report a training leaves behind: report.json for programs, report.html, one self-contained page, for people."""

from __future__ import annotations

import html
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import write_atomic
from common.json_values import plain
from trainers.evaluation.classification_metrics import TOP1
from trainers.reporting import classification_page, detection_page, segmentation_page
from trainers.reporting.report_parts import Card, Plan, Rows, duration, number, value_text
from visualization import fonts
from visualization.html_page import percent, render_page

PAGES: dict[str, Any] = {  # by task
    "segmentation": segmentation_page,
    "change_detection": segmentation_page,
    "detection": detection_page,
}
PLAIN_SECTIONS: dict[str, Any] = {  # unless a page has others; `first_score` is the key and name of a class's first one
    **{"matrix_note": "", "unit": "Images", "first_score": (), "strips": [], "strips_note": ""}
}
MOST_CLASS_ROWS = 2000  # of the table: 100,000 made a page of 29 MB
START_WEIGHTS, PSEUDO_LABELS = "start weights", "pseudo-labels"  # rows that are no figures of the best epoch
NO_MEASURES = {"epoch", "step", "loss", "train_loss"}  # the other keys of a point of the validation's curve


@dataclass
class TrainingReport:
    """The report's content. Shares are from 0 to 1, times in seconds; what is not known yet keeps its default.

    `best` and `final` are points of `curves`: {"train": [{"step", "epoch", "loss", "learning_rate"}], "val": [{"step",
    "epoch", "loss", ...}]} with the scalars of the task's `Validation`, of a classifier "top1" and "top5".
    `primary_measure` is the `Measure` that decides, and `measure` its name. `per_class`, `confusion` (of more
    than 1,000 classes only the `confusion_cells` that are not 0: label, prediction, images), `worst` and
    `head` (which of several predicts) are the best epoch's, as in `ClassificationValidation`; another task has `rows`
    of name and value, and a detector the `precision_recall` of `DetectionValidation`. `skipped_images`: [{"path",
    "where", "reason"}]. `status`: "finished", "stopped early", "interrupted", ... `differing_gradients`: the parameters
    whose gradients were not the same bits when one batch was trained several times; None where the config does not ask.
    `conclusions`: further shares by name. `pseudo_labels`: what `counts_of` says of the images without
    labels. `earlier`: of the stage before, {"title", "measure", its measure's key,
    "text", "conclusions", "report"}.
    """

    title: str
    net: str
    status: str
    class_names: list[str]
    best: dict[str, Any] = field(default_factory=dict)
    final: dict[str, Any] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] = field(default_factory=list)
    confusion_cells: list[list[int]] = field(default_factory=list)
    worst: list[Any] = field(default_factory=list)
    precision_recall: list[list[float]] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)
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
    task: str = "classification"
    measure: str = "top-1"
    primary_measure: dict[str, Any] = field(default_factory=lambda: asdict(TOP1))
    head: str = ""
    differing_gradients: list[str] | None = None
    conclusions: dict[str, float] = field(default_factory=dict)
    pseudo_labels: dict[str, Any] = field(default_factory=dict)
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

    `report` is `TrainingReport.to_dict()`. `images` returns the uint8 (H, W, C) image of a path of `worst`; one it
    cannot read (OSError, ValueError) is left out of the page. `heat_maps` holds, by path, the same under the heat map
    of its prediction, as many as there are. A page that cannot be drawn is a warning, with the traceback on stderr,
    and says so itself: the training is complete, and report.json has its figures.
    """
    report = plain(report)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=1)
    write_atomic(folder / "report.json", text + "\n")
    write_atomic(folder / "report.html", _drawn(report, images, heat_maps))
    return folder / "report.html"


def render_html(
    report: dict[str, Any],
    images: Callable[[str], np.ndarray] | None = None,
    heat_maps: Mapping[str, np.ndarray] | None = None,
) -> str:
    """Return the page of a report of plain values; everything in it is escaped by the template."""
    from markupsafe import Markup

    sections = PLAIN_SECTIONS | _page_of(report).sections(report, images, heat_maps or {})
    return render_page(
        Path(__file__).with_name("report.html.jinja"),
        {"number": number, "value": value_text},
        report=report,
        cards=_cards(report),
        most_classes=MOST_CLASS_ROWS,
        charts=[(title, legend, Markup(chart)) for title, legend, chart in _charts(report) if chart],
        **sections | {"matrix_svg": sections["matrix_svg"] and Markup(sections["matrix_svg"])},
        font=fonts.embedded_font(json.dumps(report, ensure_ascii=False)),
    )


def _drawn(
    report: dict[str, Any], images: Callable[[str], np.ndarray] | None, heat_maps: Mapping[str, np.ndarray] | None
) -> str:
    """Return the page, or where a fault of this program keeps it from being drawn, one that says so."""
    try:
        return render_html(report, images, heat_maps)
    except Exception as error:
        text = f"report.html could not be drawn ({type(error).__name__}: {error}); report.json has all the figures"
        print(f"{traceback.format_exc()}warning: {text}", file=sys.stderr)
        return f'<!doctype html>\n<meta charset="utf-8">\n<title>report</title>\n<p>{html.escape(text)}</p>\n'


def _page_of(report: dict[str, Any]) -> Any:
    """Return the module with the parts of the page that are of the report's task."""
    return PAGES.get(report["task"], classification_page)


def _cards(report: dict[str, Any]) -> list[Card]:
    """Return the figures at the head of the page."""
    best, final, measure = report["best"], report["final"], report["primary_measure"]
    key, text = measure["key"], percent if measure["is_share"] else number
    page = _page_of(report)
    is_classifier = page is classification_page and report["class_names"]
    title = _capitalized(report["measure"]) + (" accuracy" if is_classifier else "")
    of_views, top5 = page.cards(report) if report["class_names"] else ([], [])
    earlier, of_earlier = report["earlier"], []
    if earlier:
        of_earlier = [Card("Stage before", earlier["text"], f"{earlier['measure']} of {earlier['title']}")]
        of_earlier += [Card("Stage before", percent(share), name) for name, share in earlier["conclusions"].items()]
    return [
        Card(title, text(best.get(key)), f"final {text(final.get(key))}", "first"),
        *of_views,
        *(
            Card(_capitalized(name), percent(share), "on the features of the last epoch")
            for name, share in report["conclusions"].items()
        ),
        *of_earlier,
        *top5,
        *(
            Card(_capitalized(name), value, "" if name in (START_WEIGHTS, PSEUDO_LABELS) else "best epoch")
            for name, value in report["rows"]
        ),
        Card("Validation loss", number(best.get("loss")), f"final {number(final.get('loss'))}"),
        Card(
            "Best epoch", number(best.get("epoch")), f"of {number(final.get('epoch'))}, step {number(best.get('step'))}"
        ),
        Card(
            "Training time", duration(report["train_seconds"]), f"validation {duration(report['validation_seconds'])}"
        ),
        Card("Images a second", number(report["images_per_second"], 0), "in training"),
    ]


def _charts(report: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]], str]]:
    """Return (title, legend of (style, name), svg) for each chart; svg is "" where there is nothing to draw."""
    train, val = report["curves"].get("train", []), report["curves"].get("val", [])
    epochs = [(row["step"], row["epoch"]) for row in val if row.get("epoch") is not None]
    if report["class_names"]:
        page = _page_of(report)
        plans = [*page.loss_plans(report, train, val), *page.measure_plans(report, val)]
    else:
        losses = [("train", "training", train, "loss"), ("val", "validation", val, "loss")]
        plans = [Plan("Loss", losses), *_measure_plans(report, val)]
    plans.append(Plan("Learning rate", [("rate", "learning rate", train, "learning_rate")]))
    last = (1080, 210) if len(plans) % 2 else (520, 270)  # alone in its row: as wide as two
    sizes = [*[(520, 270)] * (len(plans) - 1), last]
    best_x = report["best"].get("step")
    return [
        (plan.title, plan.legend(), plan.draw(epochs, best_x, size)) for plan, size in zip(plans, sizes, strict=True)
    ]


def _measure_plans(report: dict[str, Any], val: Rows) -> list[Plan]:
    """Return a chart for each scalar of the validations, the primary measure first."""
    primary = report["primary_measure"]
    others = sorted({key for row in val for key in row} - NO_MEASURES - {primary["key"]})
    return [
        Plan(_capitalized(report["measure"]), [("val", report["measure"], val, primary["key"])], primary["is_share"]),
        *(Plan(_capitalized(key), [("val", key, val, key)]) for key in others),
    ]


def _capitalized(name: str) -> str:
    """Return a name with a capital letter, unless its first word has its own, like mAP and kNN."""
    first = name.partition(" ")[0]
    return name[:1].upper() + name[1:] if first.islower() else name
