"""A net asked once about every image of a review, before the review begins."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets.files import Annotations
from datasets.records import NO_LABEL, Record, value
from review.errors import ReviewError

BATCH = 32
TOLD_EVERY = 1000  # images
WANTED = {  # by the output that a net's metadata name
    "logits": "a class for each image; name a classifier",
    "boxes": "boxes for each image; name a detector",
}


def ask_net(found: Annotations, weights: Path, workers: int, *, output: str = "logits", all_anew: bool = True) -> int:
    """Put the answers of a classifier, or detector, into the records' `predictions`; return how many images got none.

    `output` is what the net must give, a key of WANTED. Without `all_anew` records that have predictions keep them.
    Raises ReviewError for another net, BackendError, ArtifactError.
    """
    from deploy.backends.loading import load_backend
    from deploy.inference.predictor import Predictor

    backend, metadata = load_backend(weights, device="auto")
    if metadata.output != output or metadata.preprocess.images != 1:
        raise ReviewError(f"--weights {weights}: its net does not give {WANTED[output]}")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    asked = [index for index, record in enumerate(found.records) if all_anew or not value(record, "predictions")]
    indices = [index for index in asked if value(found.records[index], "image_file")]
    paths = (str(found.folder / value(found.records[index], "image_file")) for index in indices)
    label_of = {name: label for label, name in enumerate(found.category)}
    without = len(asked) - len(indices)
    answers = Predictor(backend, metadata).predict_files(paths, BATCH, topk=1, workers=workers)
    for number, (index, answer) in enumerate(zip(indices, answers, strict=True), 1):
        values = {} if answer.error else answer.values()
        without += bool(answer.error)
        if values:
            made = _objects(values, label_of) if output == "boxes" else _class(values, label_of)
            found.records[index]["predictions"] = {**made, "weights_sha256": sha256}
        if number % TOLD_EVERY == 0:
            print(f"asked the net about {number:,} of {len(indices):,} images", file=sys.stderr)
    return without


def _class(values: Mapping[str, Any], label_of: Mapping[str, int]) -> Record:
    return {
        "image_label": label_of.get(values["class"], NO_LABEL),
        "image_label_name": values["class"],
        "score": values["score"],
        **{key: values[key] for key in ("uncertainty", "decision") if key in values},
    }


def _objects(values: Mapping[str, Any], label_of: Mapping[str, int]) -> Record:
    """Return a detector's objects; the score is that of the least sure one."""
    objects = values["objects"]
    return {
        "bboxes": [each["box"] for each in objects],
        "labels": [label_of.get(each["class"], NO_LABEL) for each in objects],
        "label_names": [each["class"] for each in objects],
        **({"score": min(each["score"] for each in objects)} if objects else {}),
    }
