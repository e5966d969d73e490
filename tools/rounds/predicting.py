"""Images come in, the served net predicts for them, and those to label are laid out for a person."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from artifacts.metadata import ModelMetadata, preprocess_of
from common.atomic_io import writing
from common.formatting import counted
from data_loader.image_files import walk_images
from data_loader.samples import NO_LABEL, Sample, current_folder
from datasets.files import ANNOTATION, read_annotations
from datasets.records import value
from deploy.backends.loading import load_backend
from deploy.inference.decision import ACCEPTED, decide
from deploy.inference.uncertainty_scores import softmax, uncertainty_of
from deploy.uncertainty.calibration import DEFAULT_SCORE
from deploy.uncertainty.outputs import Outputs, collect
from projects.audit import draw_audit, mixed
from projects.errors import ProjectError
from projects.image_store import ImageStore
from projects.round_folder import LABELLED, TO_LABEL, Result
from projects.rounds import Step
from tools.rounds.loop import CONFIG, Loop, held_back, unlabelled
from tools.select.observations import check_fits, load_net, observe
from tools.select.picks import write_picks
from tools.select.strategies import STRATEGIES
from trainers.config_checks import training_config

SHOWN = 20  # images in a result that could not be read
BATCH_SIZE, WORKERS = 32, 4


def take_in(loop: Loop, number: int, because: str) -> Result | None:
    """Keep the images of the incoming folders that are not known; None where no image is without a label.

    Raises ProjectError, ResultsError, OSError.
    """
    folder, options = loop.folder, loop.options
    known = held_back(loop) | set(loop.read_labels(LABELLED))
    for each in range(1, number):
        known |= set(folder.results(each)[Step.TAKE_IN]["images"])
    config = training_config(folder.root / CONFIG, check_files=False)
    for source in options.incoming:
        if not source.is_dir():
            raise ProjectError(f"--incoming {source}: no such folder{current_folder(str(source))}")
        if source.resolve().is_relative_to(folder.root.resolve()):
            raise ProjectError(f"--incoming {source}: it lies in the loop's own folder; name one elsewhere")
    files = [path for source in options.incoming for path in walk_images(source)]
    names, unreadable = ImageStore(folder.images, preprocess_of(config)).add_all(files)
    sources: dict[str, str] = {}
    for path, image in names.items():
        if image not in known:
            sources.setdefault(image, path)
    if not sources and not unlabelled(loop, number - 1):
        return None
    twice = len(files) - len(sources) - len(unreadable)
    did = f"took in {counted(len(sources))} of {len(files):,}: {twice} known before, {len(unreadable)} unreadable"
    return folder.finish(
        number, Step.TAKE_IN, "images came in", did, because, images=sources, unreadable=unreadable[:SHOWN]
    )


def predict(loop: Loop, number: int, because: str) -> Result:
    """Let the served net predict for all images without a label: what it accepts, and the rest, most doubtful first.

    It accepts nothing without a calibration, and nothing where an audit has refuted the calibration. Raises UserError.
    """
    folder = loop.folder
    samples = [Sample(str(folder.images / name), NO_LABEL) for name in unlabelled(loop, number)]
    backend, metadata = load_backend(folder.served, device=loop.options.device)
    outputs = collect(backend, metadata, samples, batch_size=BATCH_SIZE, workers=WORKERS)
    refuted = refuted_in(loop, number)
    why = "" if metadata.calibration else "the served net is not calibrated"
    why = f"the audit of round {refuted} asks for another calibration list" if refuted else why
    found = sorted(_predictions(outputs, metadata), key=lambda one: (-one["uncertainty"], one["image"]))
    accepted = [one for one in found if one.pop("decision") == ACCEPTED and not why]
    names = {one["image"] for one in accepted}
    doubtful = [one for one in found if one["image"] not in names]
    did = f"accepted {counted(len(accepted))} at its target risk, {len(doubtful):,} are doubtful"
    values = {"accepted": accepted, "doubtful": doubtful, "weights_sha256": metadata.weights_sha256}
    return folder.finish(number, Step.PREDICT, "images without labels", did, why or because, **values)


def refuted_in(loop: Loop, number: int) -> int:
    """Return the last round before `number` whose audit has refuted the calibration list of now; 0 if there is none."""
    for each in range(number - 1, 0, -1):
        labels = loop.folder.results(each).get(Step.LABEL, {})
        if labels.get("is_refuted") and labels["recalibrations"] == loop.settings["recalibrations"]:
            return each
    return 0


def pick(loop: Loop, number: int, because: str) -> Result:
    """Lay out the images to label, with those of the audit between them. Raises UserError, OSError."""
    folder, options, seed = loop.folder, loop.options, loop.settings["seed"]
    predictions = folder.results(number)[Step.PREDICT]
    pool = [one["image"] for one in predictions["doubtful"]]
    audit = draw_audit([one["image"] for one in predictions["accepted"]], seed, number)
    target = folder.round(number) / TO_LABEL
    if not (target / ANNOTATION).exists():
        with writing(target):
            if target.exists():
                shutil.rmtree(target)  # what a killed process has left half written
        count = min(options.num or len(pool), len(pool))
        picked = _picked(loop, pool, count, seed + number) if options.strategy and pool else pool[:count]
        config = training_config(folder.root / CONFIG, check_files=False)
        write_picks(folder.images, mixed(picked, audit, seed, number), target, loop.class_names, config.max_pixels)
    laid_out = [value(record, "image_file") for record in read_annotations(target / ANNOTATION).records]
    picked = [image for image in laid_out if image not in audit]
    how = STRATEGIES[options.strategy].text if options.strategy else "the most doubtful first"
    did = f"{counted(len(picked))} to label ({how}), and {len(audit)} for the audit between them"
    return folder.finish(number, Step.PICK, "picks", did, because, picked=picked, audit=audit)


def _picked(loop: Loop, pool: list[str], count: int, seed: int) -> list[str]:
    """Return the images that a strategy of tools.select picks. Raises UserError."""
    folder, name = loop.folder, loop.options.strategy
    net, strategy = load_net(folder.served, None, loop.options.device), STRATEGIES[name]
    check_fits(net, name, strategy)
    samples, labelled = (
        [Sample(str(folder.images / image), NO_LABEL) for image in images]
        for images in (pool, loop.read_labels(LABELLED))
    )
    observed, outputs = observe(net, strategy, samples, labelled, BATCH_SIZE, WORKERS)
    rows = strategy.pick(observed, min(count, len(outputs.files)), np.random.default_rng(seed))
    return [Path(outputs.files[row]).name for row in rows]


def _predictions(outputs: Outputs, metadata: ModelMetadata) -> Iterator[dict[str, Any]]:
    """Yield image, class, score, uncertainty and decision for each row of the outputs."""
    scores = softmax(outputs.logits, metadata.temperature or 1.0)
    own = uncertainty_of(outputs.logits, DEFAULT_SCORE, metadata.temperature or 1.0).tolist()
    decisions = decide(outputs.logits, metadata)
    for file, row, uncertainty, decision in zip(outputs.files, scores, own, decisions, strict=True):
        label = int(row.argmax())
        yield {
            "image": Path(file).name,
            "class": metadata.class_names[label],
            "score": round(float(row[label]), 6),
            "uncertainty": round(decision.uncertainty if decision else uncertainty, 6),
            "decision": decision.decision if decision else "",
        }
