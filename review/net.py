"""A net asked once about every image of a review, before the review begins."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from datasets.files import Annotations
from datasets.records import NO_LABEL, value
from review.errors import ReviewError

BATCH = 32
TOLD_EVERY = 1000  # images


def ask_net(found: Annotations, weights: Path, workers: int) -> int:
    """Put a classifier's answers into the records' `predictions`; return how many images got none.

    Raises ReviewError for a net that does not give classes of single images, BackendError, ArtifactError.
    """
    from deploy.backends.loading import load_backend
    from deploy.inference.predictor import Predictor

    backend, metadata = load_backend(weights, device="auto")
    if metadata.output != "logits" or metadata.preprocess.images != 1:
        raise ReviewError(f"--weights {weights}: its net does not give a class for each image; name a classifier")
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    indices = [index for index, record in enumerate(found.records) if value(record, "image_file")]
    paths = (str(found.folder / value(found.records[index], "image_file")) for index in indices)
    label_of = {name: label for label, name in enumerate(found.category)}
    without = len(found.records) - len(indices)
    answers = Predictor(backend, metadata).predict_files(paths, BATCH, topk=1, workers=workers)
    for number, (index, answer) in enumerate(zip(indices, answers, strict=True), 1):
        values = {} if answer.error else answer.values()
        without += bool(answer.error)
        if values:
            found.records[index]["predictions"] = {
                "image_label": label_of.get(values["class"], NO_LABEL),
                "image_label_name": values["class"],
                "score": values["score"],
                **{key: values[key] for key in ("uncertainty", "decision") if key in values},
                "weights_sha256": sha256,
            }
        if number % TOLD_EVERY == 0:
            print(f"asked the net about {number:,} of {len(indices):,} images", file=sys.stderr)
    return without
