"""The platform's offline validation: a model's accuracy on `test`, by the same Predictor as the service."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.metadata import ModelMetadata
from common.signals import ended_by_signals
from data_loader.samples import Sample
from deploy.backends.devices import parse_device
from platforms.base import PlatformError, log, metric_file, warn, write_json
from platforms.tianji.dataset import read_test
from platforms.tianji.files import (
    MODULES,
    Runs,
    failed_test_metric,
    find_model,
    new_evaluation_path,
    scale_accuracy,
    tested_metric,
)
from platforms.tianji.train import DATASETS

if TYPE_CHECKING:
    from deploy.inference.predictor import Predictor

MAX_BAD_SHARE = 0.05  # of test, as in the recipes
BATCH, WORKERS = 32, 4


def run_test(args: argparse.Namespace) -> int:
    """Evaluate, write the evaluation and the metric file; return 0. Raises UserError."""
    folder = Path(os.path.abspath(args.model_path))  # noqa: PTH100  # links stay as they were named
    runs = Runs(args.runs_dir)
    with runs.exclusive(), metric_file(runs.metric, lambda error: failed_test_metric(folder, error)):
        parse_device(args.device)
        weights = find_model(folder, args.used_model)
        from deploy.backends.loading import load_backend
        from deploy.inference.predictor import Predictor

        with ended_by_signals():
            started = time.perf_counter()
            backend, metadata = load_backend(weights, device=args.device)
            model = model_of(metadata, weights)
            samples = read_test(args.dataset_path or DATASETS[model], metadata.class_names).samples
            accuracy = measure_accuracy(Predictor(backend, metadata), samples)
            seconds = time.perf_counter() - started
            path = new_evaluation_path(folder)
            values = tested_metric(model, folder, path.name, accuracy, seconds)
            write_json(path, values)
            write_json(runs.metric, values)
    log(f"acc {scale_accuracy(model, accuracy)} on {len(samples)} images, in {path} and {runs.metric}")
    return 0


def model_of(metadata: ModelMetadata, weights: Path) -> str:
    """Return the platform's name of a net. Raises PlatformError for a net that the platform does not know."""
    for model, module in MODULES.items():
        if metadata.net["module"] == module:
            return model
    net = f"{metadata.net['module']}.{metadata.net['name']}"
    raise PlatformError(f"{weights}: it holds a {net}; the platform's models are {' and '.join(MODULES)}")


def measure_accuracy(predictor: Predictor, samples: Sequence[Sample]) -> float:
    """Return the share of images, from 0 to 1, whose predicted class is their label, over those with a prediction.

    Raises PlatformError where too many have none.
    """
    from deploy.inference.class_prediction import ClassPrediction

    correct = 0
    problems = []
    predictions = predictor.predict_files((sample.path for sample in samples), BATCH, topk=1, workers=WORKERS)
    for sample, prediction in zip(samples, predictions, strict=True):
        if prediction.error:
            problems.append(f"{prediction.file}: {prediction.error}")
        elif isinstance(prediction, ClassPrediction):
            correct += prediction.label == sample.label
    predicted = len(samples) - len(problems)
    failed = f"{len(problems)} of {len(samples)} images of test have no prediction"
    if len(problems) > MAX_BAD_SHARE * len(samples) or not predicted:
        raise PlatformError("\n".join([f"{failed}:", *problems[:20]]))
    if problems:
        warn(f"{failed} and are left out; the first: {problems[0]}")
    return correct / predicted
