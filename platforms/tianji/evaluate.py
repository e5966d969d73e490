"""The platform's offline validation: a model's accuracy on `test`, through the Predictor that also serves."""

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
from platforms.base import log, recorded, warn
from platforms.tianji.dataset import read_test
from platforms.tianji.files import (
    MODULES,
    PlatformError,
    Runs,
    failed_test_metric,
    find_model,
    new_evaluation_path,
    tested_metric,
    write_json,
    written_accuracy,
)
from platforms.tianji.train import DATASETS

if TYPE_CHECKING:
    from deploy.inference.predictor import Predictor

MAX_BAD_SHARE = 0.05  # of test, as in the recipes
BATCH, WORKERS = 32, 4


def run_test(args: argparse.Namespace) -> None:
    """Evaluate, and write the evaluation and the metric file. Raises ValueErrors with the sentence to show."""
    folder = Path(os.path.abspath(args.model_path))  # noqa: PTH100  # links stay as they were named
    runs = Runs(args.runs_dir)
    with runs.of_this_run(), recorded(runs.metric, lambda error: failed_test_metric(folder, error)):
        parse_device(args.device)
        weights = find_model(folder, args.used_model)
        from deploy.backends.loading import load_backend
        from deploy.inference.predictor import Predictor

        with ended_by_signals():
            started = time.perf_counter()
            backend, metadata = load_backend(weights, device=args.device)
            model = model_of(metadata, weights)
            samples = read_test(args.dataset_path or DATASETS[model], metadata.class_names).samples
            top1 = accuracy(Predictor(backend, metadata), samples)
            seconds = time.perf_counter() - started
            path = new_evaluation_path(folder)
            values = tested_metric(model, folder, path.name, top1, seconds)
            write_json(path, values)
            write_json(runs.metric, values)
    log(f"acc {written_accuracy(model, top1)} on {len(samples)} images, in {path} and {runs.metric}")


def model_of(metadata: ModelMetadata, weights: Path) -> str:
    """Give the platform's name of a net. Raises PlatformError for one that the platform does not know."""
    for model, module in MODULES.items():
        if metadata.net["module"] == module:
            return model
    net = f"{metadata.net['module']}.{metadata.net['name']}"
    raise PlatformError(f"{weights}: it holds a {net}; the platform's models are {' and '.join(MODULES)}")


def accuracy(predictor: Predictor, samples: Sequence[Sample]) -> float:
    """Give the share of images, from 0 to 1, whose answer is their label; those without an answer are left out.

    Raises PlatformError where they are too many.
    """
    right = 0
    problems = []
    predictions = predictor.predict_files((sample.path for sample in samples), BATCH, topk=1, workers=WORKERS)
    for sample, prediction in zip(samples, predictions, strict=True):
        if prediction.error:
            problems.append(f"{prediction.file}: {prediction.error}")
        right += prediction.label == sample.label and not prediction.error
    answered = len(samples) - len(problems)
    if len(problems) > MAX_BAD_SHARE * len(samples) or not answered:
        shown = "\n".join(problems[:20])
        raise PlatformError(f"{len(problems)} of {len(samples)} images of test have no answer:\n{shown}")
    if problems:
        first = problems[0]
        warn(f"{len(problems)} of {len(samples)} images of test have no answer and are left out; the first: {first}")
    return right / answered
