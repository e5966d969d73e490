"""Ranks labelled images by how much their label contradicts what a model says that was fitted without them.

The model is a logistic regression on the features that the config's net has before its training. What counts as likely
wrong is the rule of confident learning: Northcutt et al. 2021, "Confident Learning: Estimating Uncertainty in Dataset
Labels", sec. 3.1 (https://arxiv.org/abs/1911.00068). Order and rule are those of the library cleanlab, number for
number, which would bring pandas for these two formulas.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.atomic_io import write_atomic
from common.errors import UserError
from common.formatting import csv_cell
from data_loader.samples import NO_LABEL
from tools.doctor.checks import NOTE, WARNING, WRONG_LABELS, Finding, Study, count_text, shorten

FILE = "wrong_labels.csv"
COLUMNS = ("rank", "file", "where", "label", "predicted", "p_label", "p_predicted", "likely_wrong")
FOLDS = 5  # and so the fewest images of a class that is judged
SEED = 0
INVERSE_PENALTY = 0.003  # less than a head's: it is not to learn the wrong labels by heart (docs/doctor.md)


class LabelError(UserError):
    """Labels that cannot be judged; the message is one sentence for the user."""


@dataclass(frozen=True)
class Ranking:
    """M judged images, the most suspicious first.

    `rows` (M,) of the Study; `predicted` (M,) labels; `probabilities` (M, 2) of label and prediction; `is_wrong` (M,):
    likely wrong. `agreeing` is the share of labels that are the predicted ones. `not_judged` names classes.
    """

    rows: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray
    is_wrong: np.ndarray
    agreeing: float
    not_judged: list[str]

    def summary(self) -> dict[str, Any]:
        """Return the values of doctor.json; the findings hold the images."""
        return {
            "judged": len(self.rows),
            "likely_wrong": int(self.is_wrong.sum()),
            "agreeing": round(self.agreeing, 4),
            "not_judged": self.not_judged,
            "file": FILE,
        }


def judge_labels(study: Study, workers: int) -> tuple[Ranking | None, list[Finding]]:
    """Rank the labels of both lists; return the ranking, None where there is none, and the findings."""
    try:
        ranking = rank_labels(study, workers)
    except UserError as error:
        return None, [Finding(WARNING, WRONG_LABELS, f"no wrong labels could be looked for: {error}")]
    return ranking, list(_findings(study, ranking))


def rank_labels(study: Study, workers: int) -> Ranking:
    """Rank the images that can be read, of classes with FOLDS different images or more.

    Raises LabelError, and what the net and its weights raise.
    """
    groups = _groups(study)
    judged, not_judged = _judged(study, groups)
    names = study.train.class_names
    if len(np.unique(judged[:, 1])) < 2:
        raise LabelError(f"it needs two classes with {FOLDS} different images each, that can be read and have a label")
    rows, features = _features(study, judged[:, 0].tolist(), workers)
    labels = np.array([study.sample(row).label for row in rows])
    predictions = out_of_fold(features, labels, groups[rows], len(names))
    scores, is_wrong = judge(labels, predictions)
    order = np.argsort(scores, kind="stable")
    predicted = predictions.argmax(axis=1)
    places = np.arange(len(rows))
    both = np.stack([predictions[places, labels], predictions[places, predicted]], axis=1)
    agreeing = float((predicted == labels).mean())
    return Ranking(rows[order], predicted[order], both[order], is_wrong[order], agreeing, not_judged)


def out_of_fold(features: np.ndarray, labels: np.ndarray, groups: np.ndarray, num_classes: int) -> np.ndarray:
    """Return probabilities (N, K) by regressions of which each was fitted without the images that it predicts.

    Images of a group (N,) are in the same fold: near-duplicates would vouch for each other.
    """
    from trainers.head_fitting import fit_linear

    features, folds = features.astype(np.float64), folds_of(labels, groups)
    probabilities = np.empty((len(labels), num_classes))
    for fold in range(FOLDS):
        held_out = folds == fold
        weight, bias = fit_linear(features[~held_out], labels[~held_out], num_classes, INVERSE_PENALTY)
        logits = features[held_out] @ weight.T + bias
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities[held_out] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def folds_of(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return a fold (N,), 0 to FOLDS - 1: the groups of a class are dealt in turn, in random order."""
    _, firsts, inverse = np.unique(groups, return_index=True, return_inverse=True)
    order = np.random.default_rng(SEED).permutation(len(firsts))
    dealt = order[np.argsort(labels[firsts][order], kind="stable")]
    folds = np.empty(len(firsts), np.int64)
    folds[dealt] = np.arange(len(dealt)) % FOLDS
    return folds[inverse.reshape(-1)]


def judge(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of each label (N,), the lowest the most suspicious, and whether it is likely wrong (N,).

    The score is the label's own probability. A label is likely wrong where another class is predicted, and where of the
    classes that reach their mean the most probable is another one: a class's mean is that of its probabilities over the
    images with its label.
    """
    places = np.arange(len(labels))
    means = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels):
        means[label] = probabilities[labels == label, label].mean()
    reaching = np.where(probabilities >= means, probabilities, -1.0)
    best = reaching.argmax(axis=1)
    is_other = (reaching[places, best] >= 0) & (best != labels)
    return probabilities[places, labels], is_other & (probabilities.argmax(axis=1) != labels)


def write_list(ranking: Ranking, study: Study, folder: Path) -> Path:
    """Write the CSV file of all judged images, in UTF-8 with BOM, which Excel needs for Chinese. Raises OSError."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    names = study.train.class_names
    for rank, row in enumerate(ranking.rows.tolist()):
        own, other = (f"{probability:.4f}" for probability in ranking.probabilities[rank])
        label, predicted = study.class_name(row), names[ranking.predicted[rank]]
        cells = (rank + 1, study.sample(row).path, study.where(row), label, predicted, own, other)
        writer.writerow([*map(csv_cell, cells), int(ranking.is_wrong[rank])])
    write_atomic(folder / FILE, ("\ufeff" + text.getvalue()).encode("utf-8", "backslashreplace"))
    return folder / FILE


def _findings(study: Study, ranking: Ranking) -> Iterator[Finding]:
    count, judged = int(ranking.is_wrong.sum()), len(ranking.rows)
    names = study.train.class_names
    agreeing = f"{ranking.agreeing:.1%} of them are as the other images predict"
    if count:
        rows = ranking.rows[ranking.is_wrong].tolist()
        both = ranking.probabilities[ranking.is_wrong].tolist()
        predicted = [names[label] for label in ranking.predicted[ranking.is_wrong]]
        reasons = {
            row: f"predicted {name} ({other:.0%}), not {study.class_name(row)} ({own:.1%})"
            for row, name, (own, other) in zip(rows, predicted, both, strict=True)
        }
        others = {row: (name, other) for row, name, (_, other) in zip(rows, predicted, both, strict=True)}
        text = f"{count:,} of {count_text(judged, 'label')} probably wrong: look at the images ({agreeing})"
        yield Finding(WARNING, WRONG_LABELS, text, [[row] for row in rows], reasons, others)
    else:
        yield Finding(NOTE, WRONG_LABELS, f"none of {count_text(judged, 'label')} probably wrong ({agreeing})")
    if ranking.not_judged:
        text = f"labels of {shorten(ranking.not_judged)} were not judged: fewer than {FOLDS} different images"
        yield Finding(NOTE, WRONG_LABELS, text)


def _groups(study: Study) -> np.ndarray:
    """Return for each row the first one of its duplicates and near-duplicates, else itself, (N,)."""
    groups = np.arange(len(study.images.odd))
    for group in (*study.duplicates, *study.near_duplicates):
        groups[group] = min(group)
    return groups


def _judged(study: Study, groups: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return row and label (M, 2) of the images to judge, and the names of the classes that have too few."""
    rows = np.flatnonzero(study.images.readable()).tolist()
    pairs = np.array([(row, label) for row in rows if (label := study.sample(row).label) != NO_LABEL], np.int64)
    pairs = pairs.reshape(-1, 2)
    different = Counter(label for _, label in {(groups[row], label) for row, label in pairs.tolist()})
    few = sorted(label for label, count in different.items() if count < FOLDS)
    return pairs[~np.isin(pairs[:, 1], few)], [study.train.class_names[label] for label in few]


def _features(study: Study, rows: Sequence[int], workers: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (M,) whose images could be read again, and their features (M, D) before the net's head."""
    from deploy.uncertainty.outputs import collect
    from tools.start_features import start_backend

    backend, metadata = start_backend(study.config, study.train)
    samples = [study.sample(row) for row in rows]
    outputs = collect(backend, metadata, samples, workers=max(1, workers), with_features=True)
    assert outputs.features is not None
    place = {file: number for number, file in enumerate(outputs.files)}
    found = [(row, place[sample.path]) for row, sample in zip(rows, samples, strict=True) if sample.path in place]
    return np.array([row for row, _ in found]), outputs.features[[number for _, number in found]]
