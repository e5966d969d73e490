"""The orders of browser/images that need a net's features: by similarity, and by labels that are probably wrong."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from artifacts.metadata import preprocess_of
from common.atomic_io import ResultsError, write_atomic
from common.errors import UserError
from common.paths import ROOT
from configs.schema import Config
from data_loader.samples import NO_LABEL, Sample, SampleList
from datasets.errors import DatasetError
from datasets.files import Annotations
from datasets.records import value
from review.answers import Judgement
from review.review import Review
from review.similarity import Similarity
from trainers.config_checks import training_config

if TYPE_CHECKING:
    from deploy.inference.feature_extractor import Embedder, Embeddings

RECIPE = ROOT / "configs" / "finetune_config.json"  # whose start weights are in an installed package
TOLD_EVERY = 1000  # images


def add_order(review: Review, order: str, weights: Path | None, workers: int) -> None:
    """Add the order of that name, where it needs a net's features. Raises DatasetError, and what the net raises."""
    try:
        if order == "similarity":
            review.add_similarity(_similarity(review.annotations, weights, workers))
        elif order == "wrong_label":
            review.add_judgements(_kept_judgements(review.annotations, workers))
    except UserError as error:
        raise DatasetError(f"--order {order}: {error}") from error


def _similarity(found: Annotations, weights: Path | None, workers: int) -> Similarity:
    """Return the similarity by the features of a net, else of the start weights; they are kept beside the file."""
    from deploy.inference.feature_extractor import load_embedder

    embedder = load_embedder(weights) if weights else _start_embedder()
    path = found.path.with_name(f"{found.path.stem}_features.npz")
    names = [value(record, "image_file") for record in found.records]
    files = [name for name in dict.fromkeys(names) if name]
    features = _kept(path, found, files, embedder)
    if features is None:
        features = _computed(embedder, found.folder, files, workers)
        try:
            features.save(path)
        except ResultsError as error:
            print(f"note: the features are not kept for the next start: {error}", file=sys.stderr)
    row_of = {file: row for row, file in enumerate(features.files)}
    records = [index for index, name in enumerate(names) if name in row_of]
    if without := len(names) - len(records):
        print(f"note: {without:,} images without features come last", file=sys.stderr)
    rows = [row_of[names[index]] for index in records]
    is_same = rows == [*range(len(row_of))]  # else an image has several records
    return Similarity(features.features if is_same else features.features[rows], records)


def _kept(path: Path, found: Annotations, files: Sequence[str], embedder: Embedder) -> Embeddings | None:
    """Return features of an earlier start: of the same net and files, which have not changed since."""
    from deploy.inference.feature_extractor import EmbeddingError, Embeddings

    with suppress(OSError, EmbeddingError):
        kept = Embeddings.read(path)
        wanted = (embedder.metadata.weights_sha256, embedder.metadata.precision, embedder.preprocess_text())
        is_same = (kept.weights_sha256, kept.precision, kept.preprocess) == wanted
        if is_same and _is_newest(path, found) and set(kept.files) <= set(files):
            return kept
    return None


def _is_newest(path: Path, found: Annotations) -> bool:
    """Return whether a file was written after the annotations and their images. Raises OSError."""
    made = path.stat().st_mtime_ns
    paths = [found.path, *(found.folder / value(record, "image_file") for record in found.records)]
    return not any(each.is_file() and each.stat().st_mtime_ns > made for each in paths)


def _computed(embedder: Embedder, folder: Path, files: Sequence[str], workers: int) -> Embeddings:
    from deploy.inference.feature_extractor import Embeddings

    rows, kept = [], []
    embedded = embedder.embed_files((str(folder / file) for file in files), workers=workers)
    for number, (file, image) in enumerate(zip(files, embedded, strict=True), 1):
        if image.features is not None:
            rows.append(image.features)
            kept.append(file)
        if number % TOLD_EVERY == 0:
            print(f"computed the features of {number:,} of {len(files):,} images", file=sys.stderr)
    if not rows:
        raise DatasetError(f"none of the {len(files):,} images could be read")
    metadata = embedder.metadata
    made = (metadata.weights_sha256, metadata.precision, embedder.preprocess_text())
    return Embeddings(np.stack(rows), tuple(kept), *made)


def _start_embedder() -> Embedder:
    from artifacts.checkpoint import weights_sha256
    from deploy.inference.feature_extractor import Embedder, HeadInput
    from tools.start_features import start_backend

    config = training_config(RECIPE, check_files=False)
    backend, metadata = start_backend(config, SampleList((), ("0", "1"), "", ""))
    metadata = replace(metadata, weights_sha256=weights_sha256(backend.net.state_dict()))
    return Embedder(HeadInput(backend), metadata)


def _kept_judgements(found: Annotations, workers: int) -> dict[int, Judgement]:
    """Return the judgements of an earlier start, while nothing has changed, else new ones, which are kept."""
    path = found.path.with_name(f".{found.path.stem}_judgements.json")  # hidden: a folder stands for its other *.json
    with suppress(OSError, ValueError, TypeError):
        if _is_newest(path, found):
            kept = json.loads(path.read_text(encoding="utf-8"))
            return {index: Judgement(*values) for index, *values in kept if 0 <= index < len(found.records)}
    judgements = _judgements(found, workers)
    rows = [[index, *astuple(judgement)] for index, judgement in judgements.items()]
    try:
        write_atomic(path, json.dumps(rows, ensure_ascii=False) + "\n")
    except OSError as error:
        print(f"note: the judgements are not kept for the next start: {error}", file=sys.stderr)
    return judgements


def _judgements(found: Annotations, workers: int) -> dict[int, Judgement]:
    """Return what the doctor's ranking says of the labels, which is made with the start weights.

    Of a net that was trained on these labels it would find fewer that are wrong.
    """
    from tools.doctor.checks import Study
    from tools.doctor.scan import scan
    from tools.doctor.wrong_labels import rank_labels

    records = [
        index
        for index, record in enumerate(found.records)
        if value(record, "image_file") and value(record, "image_label") != NO_LABEL
    ]
    samples = tuple(
        Sample((found.folder / value(record, "image_file")).as_posix(), value(record, "image_label"))
        for record in map(found.records.__getitem__, records)
    )
    config = _label_config(len(found.category))
    listed = SampleList(samples, found.category, found.folder.as_posix(), str(found.path))
    preprocess = preprocess_of(config)
    scanned = scan([sample.path for sample in samples], len(samples), preprocess, workers)
    study = Study.of(config, listed, replace(listed, samples=()), preprocess, scanned)
    ranking = rank_labels(study, workers)
    if ranking.not_judged:
        print(f"note: too few images to judge the labels of {', '.join(ranking.not_judged)}", file=sys.stderr)
    rows = zip(ranking.rows.tolist(), ranking.predicted, ranking.probabilities.tolist(), ranking.is_wrong, strict=True)
    return {
        records[row]: Judgement(found.category[predicted], own, other, bool(is_wrong))
        for row, predicted, (own, other), is_wrong in rows
    }


def _label_config(num_classes: int) -> Config:
    return training_config(RECIPE, [f"num_classes={max(2, num_classes)}"], check_files=False)
