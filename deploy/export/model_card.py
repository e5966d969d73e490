"""A model card, the README.md of a Hub folder: YAML for the Hub, and what a training's report.json says, for people.

Source of the YAML's keys: https://huggingface.co/docs/hub/model-cards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from artifacts.calibration import FP32
from artifacts.metadata import PRODUCER, ModelMetadata
from deploy.export.formats import UNKNOWN_LICENCE

PIPELINES = {  # the Hub's tasks by the net's output
    "logits": "image-classification",
    "mask_logits": "image-segmentation",
    "boxes": "object-detection",
    "features": "image-feature-extraction",
}
METRICS = {"top1": "accuracy"}  # the Hub's name of a measure, where it is another than ours
FIGURES = ("precision", "recall", "f1", "iou", "ap")  # of a class, in the order of the table's columns


def model_card(report: Mapping[str, Any], metadata: ModelMetadata, licence: str) -> str:
    """Return the card; paths of the machine that trained the net are left out, of lists and folders the name stays."""
    sections = {
        f"# {_cell(report['title'] or metadata.net['name'])}": _summary(report, metadata),
        "## Use": _use(metadata),
        "## Measured": _measured(report),
        "## Classes": _classes(report, metadata),
        "## Data": _data(report),
        "## Preprocessing": _table(("what", "value"), metadata.preprocess.to_dict().items()),
        "## Calibration": _calibration(metadata),
        "## Training": _training(report, metadata),
        "## Licence": _licence(metadata, licence),
    }
    body = "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items())
    return f"---\n{_front_matter(report, metadata, licence)}---\n\n{body}\n"


def _front_matter(report: Mapping[str, Any], metadata: ModelMetadata, licence: str) -> str:
    """Return YAML, whose texts are JSON's: YAML reads them alike."""
    pipeline, name = _pipeline(metadata), report["title"] or metadata.net["name"]
    measure = report["primary_measure"]
    value = report["best"].get(measure["key"])
    lines = [
        f"license: {_json(licence)}",
        f"pipeline_tag: {pipeline}",
        f"tags: [pytorch, {PRODUCER}]",
    ]
    if isinstance(value, (int, float)):
        metric = METRICS.get(measure["key"], measure["key"])
        lines += [
            "model-index:",
            f"- name: {_json(name)}",
            "  results:",
            f"  - task: {{type: {pipeline}}}",
            f"    dataset: {{name: {_json(_data_name(report))}, type: image-files, split: validation}}",
            f"    metrics: [{{type: {_json(metric)}, name: {_json(measure['name'])}, value: {value}}}]",
        ]
    return "".join(f"{line}\n" for line in lines)


def _summary(report: Mapping[str, Any], metadata: ModelMetadata) -> str:
    size = f"{metadata.preprocess.width}x{metadata.preprocess.height}"
    task, channels = _pipeline(metadata).replace("-", " "), metadata.preprocess.channels
    return (
        f"A net for {task}, {_cell(report['net'])}, trained by {PRODUCER}: {metadata.num_classes} classes, "
        f"images of {size} pixels in {channels} channels, output {_cell(metadata.output)}."
    )


def _use(metadata: ModelMetadata) -> str:
    return (
        "`model.safetensors` holds the state dict, `config.json` the net, the class names in the order of the labels, "
        f'and in "facts" all that a deployment must know. A training of {PRODUCER} starts from this folder by '
        '`"train_mode": "finetune", "pretrained_file": "FOLDER"`.'
    )


def _measured(report: Mapping[str, Any]) -> str:
    """Return the best epoch's figures, on the validation images."""
    figures = [(key, value) for key, value in report["best"].items() if key not in ("epoch", "step")]
    epoch = report["best"].get("epoch")
    of = f"On the {report['num_val']:,} validation images, at epoch {epoch}, the best by {report['measure']}:"
    return f"{of}\n\n{_table(('measure', 'value'), figures)}"


def _classes(report: Mapping[str, Any], metadata: ModelMetadata) -> str:
    """Return the classes with their labels, and with the figures of each where the report has them."""
    by_name = {row["class"]: row for row in report["per_class"]}
    figures = [name for name in FIGURES if any(row.get(name) is not None for row in by_name.values())]
    columns = ("label", "class", *figures, *(("support",) if by_name else ()))
    rows = (
        (label, name, *(by_name.get(name, {}).get(column) for column in columns[2:]))
        for label, name in enumerate(metadata.class_names)
    )
    return _table(columns, rows) if metadata.class_names else "None: the net gives features."


def _data(report: Mapping[str, Any]) -> str:
    counts = [("training", report["num_train"]), ("validation", report["num_val"])]
    skipped = len(report["skipped_images"])
    return _table(("images", "number"), [*counts, ("left out, as they could not be read", skipped)])


def _calibration(metadata: ModelMetadata) -> str:
    found = metadata.calibration
    if found is None:
        values = {"temperature": metadata.temperature, **metadata.thresholds}
        fitted = [(name, value) for name, value in values.items() if value is not None]
        return _table(("what", "value"), fitted) if fitted else "The scores are not calibrated."
    sentence = (
        f"Of the predictions that `{found.score}` accepts at most {found.target_risk:.2%} are wrong, with probability "
        f"{found.confidence:.0%} over the draw of the {found.pictures:,} images that it was fitted to, for such images."
    )
    fitted_to = "" if found.fitted_to == FP32 else f" It was fitted to the outputs {_cell(found.fitted_to)}."
    accepted = {"accepted": found.accepted, "of them wrong": found.wrong, "temperature": metadata.temperature}
    return f"{sentence}{fitted_to}\n\n{_table(('what', 'value'), [*accepted.items(), *metadata.thresholds.items()])}"


def _training(report: Mapping[str, Any], metadata: ModelMetadata) -> str:
    rows = [(key, report[key]) for key in ("status", "seed", "precision", "device", "git_commit", "train_seconds")]
    rows += [(f"version of {name}", version) for name, version in report["versions"].items()]
    rows += [("sha256 of the weights", metadata.weights_sha256)]
    return _table(("what", "value"), [(name, value) for name, value in rows if value not in (None, "")])


def _licence(metadata: ModelMetadata, licence: str) -> str:
    own = (
        "No licence is stated for these weights." if licence == UNKNOWN_LICENCE else f"These weights: {_cell(licence)}."
    )
    start = metadata.start_weights
    if not start:
        return own
    source = f"{start['package']}, {start['licence']}, {start['source']}"
    return f"{own} The training started from others, whose licence holds too: {_cell(source)}."


def _pipeline(metadata: ModelMetadata) -> str:
    return PIPELINES.get(metadata.output, PIPELINES["features"])


def _data_name(report: Mapping[str, Any]) -> str:
    """Return the validation list's or folder's own name."""
    config = report["config"]
    place = config.get("val_data_file") or config.get("val_data_root_dir") or ""
    return PurePath(place).name or "validation images"


def _table(columns: Sequence[str], rows: Any) -> str:
    return "\n".join(_lines(columns, rows))


def _lines(columns: Sequence[str], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(value: object) -> str:
    """Return a value as a cell of a table shows it: on one line, without what Markdown or HTML would read."""
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else ""
    text = "" if value is None else value if isinstance(value, str) else _json(value)
    for mark, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'"), ("*", "\\*"), ("_", "\\_")):
        text = text.replace(mark, safe)
    return " ".join(text.split())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
