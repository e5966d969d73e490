"""The checks of a training's images and labels: findings, each a sentence with the images that it is about."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from configs.schema import Config
from data_loader.preprocess import Preprocess
from data_loader.samples import NO_LABEL, Sample, SampleList
from tools.doctor.near_duplicates import duplicate_groups, near_duplicate_groups
from tools.doctor.scan import ODDITIES, ScannedImages, enlargement

PROBLEM, WARNING, NOTE = "problem", "warning", "note"  # it spoils the training; it may; it is information
LEVELS = (PROBLEM, WARNING, NOTE)
WRONG_LABELS = "wrong labels"  # the kind of finding that tools/doctor/wrong_labels.py makes
IMBALANCED = 10.0  # ratio of the largest class to the smallest from which weights are advised
MISSHAPEN = 2.0  # ratio of an image's aspect to the input's from which `resize` changes much
FOLLOWING = 0.5  # difference of two classes' shares of colour profiles from which it is reported
FEW_IMAGES = 5  # of a class, whose share means nothing
MANY = 0.1  # share of the images from which an oddity is a warning
WARNED_OF = ("one colour", "very long", "much smaller than the input", "nearly black", "alpha that is no mask")
_RESIZED = {
    "squash": "stretched by more than {0:g} times: {2}; resize crop or letterbox keeps their shape",
    "crop": "losing more than {1:.0%} of the area to resize crop: {2}; letterbox keeps all of it",
    "letterbox": "leaving more than {1:.0%} of the input black: {2}; resize crop, or another input shape, fills it",
}


_BALANCE = {  # what helps against it, by the unit
    "image": ": class_weights or balanced_sampling",
    "pixel": ': class_weights "balanced" or balanced_crops',
    "object": "",
}


@dataclass
class Finding:
    """One finding. `groups` holds the rows of the images that it is about, related ones in one group.

    `predicted` has class and probability by row, where the finding is about labels.
    """

    level: str
    kind: str
    text: str
    groups: list[list[int]] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)  # by row, where each has its own
    predicted: dict[int, tuple[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """The lists of a training and the scan of their images; a row is an index into both, training first."""

    config: Config
    train: SampleList
    val: SampleList
    preprocess: Preprocess
    images: ScannedImages
    duplicates: list[list[int]]
    near_duplicates: list[list[int]]
    unit: str = "image"  # what a class is counted in
    counts: tuple[list[int], list[int]] | None = None  # of each class, where the lists themselves do not know them

    @classmethod
    def of(
        cls, config: Config, train: SampleList, val: SampleList, preprocess: Preprocess, found: ScannedImages
    ) -> Study:
        """Build a Study by comparing the images."""
        duplicates = duplicate_groups(found)
        return cls(config, train, val, preprocess, found, duplicates, near_duplicate_groups(found, duplicates))

    @property
    def has_labels(self) -> bool:
        """Whether an image has one label, and no file of its own for a target."""
        return self.unit == "image"

    def class_counts(self) -> tuple[list[int], list[int]]:
        """Return how many of its unit each class has in training and in validation."""
        return self.counts or (self.train.class_counts(), self.val.class_counts())

    @property
    def leaks_matter(self) -> bool:
        """Whether an image in both lists raises the accuracy falsely: not where no labels are learnt."""
        return not self.config.learns_without_labels() or self.train.is_labelled

    def is_train(self, row: int) -> bool:
        """Return whether a row is of the training list."""
        return row < len(self.train.samples)

    def sample(self, row: int) -> Sample:
        """Return a row's sample."""
        return self.list_of(row).samples[self.index(row)]

    def list_of(self, row: int) -> SampleList:
        """Return the list that a row is of."""
        return self.train if self.is_train(row) else self.val

    def index(self, row: int) -> int:
        """Return a row's index in its own list."""
        return row if self.is_train(row) else row - len(self.train.samples)

    def file(self, row: int) -> str:
        """Return a row's path below its root, as a list names it."""
        root = self.list_of(row).root
        return self.sample(row).path.removeprefix("" if root == "." else root.rstrip("/") + "/")

    def where(self, row: int) -> str:
        """Return the file and line of a row; for class folders its split."""
        samples = self.list_of(row)
        return samples.where(self.index(row)) if samples.line_numbers else self.split(row)

    def split(self, row: int) -> str:
        """Return the name of the list that a row is of."""
        return "training" if self.is_train(row) else "validation"

    def class_name(self, row: int) -> str:
        """Return a row's class name; "" where it is unknown."""
        label = self.sample(row).label if self.has_labels else NO_LABEL
        return "" if label == NO_LABEL else self.train.class_names[label]

    def by_list(self, rows: Iterable[int]) -> tuple[list[int], list[int]]:
        """Return the rows of training and those of validation."""
        rows = list(rows)
        return [row for row in rows if self.is_train(row)], [row for row in rows if not self.is_train(row)]

    def labels(self, rows: Iterable[int]) -> set[int]:
        """Return the labels of rows, as far as they are known."""
        if not self.has_labels:
            return set()
        return {self.sample(row).label for row in rows} - {NO_LABEL}


def check(study: Study) -> list[Finding]:
    """Return all findings about images and labels, the most severe first."""
    findings = [
        *_unreadable(study),
        *_duplicates(study),
        *_near_duplicates(study),
        *_classes(study),
        *_oddities(study),
        *_colour_spaces(study),
        *_left_out(study),
        *_shapes(study),
    ]
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def sizes_of(study: Study) -> dict[str, Any]:
    """Summarise widths, heights, their ratios and the enlargement to the input, over all readable images."""
    sizes = study.images.sizes[study.images.readable()]
    if not len(sizes):
        return {}
    enlarged = enlargement(sizes, study.preprocess)
    return {
        "width": _spread(sizes[:, 0]),
        "height": _spread(sizes[:, 1]),
        "aspect_ratio": _spread(sizes[:, 0] / sizes[:, 1]),
        "enlarged_share": float(np.mean(enlarged > 1)),
        "misshapen_share": float(np.mean(_misshape(sizes, study.preprocess) > MISSHAPEN)),
    }


def count_text(number: int, noun: str = "image") -> str:
    """Return a count with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def shorten(names: list[str], most: int = 5) -> str:
    """Return names as text, of many the first ones."""
    shown = ", ".join(names[:most])
    return f"{len(names)} classes ({shown}, ...)" if len(names) > most else shown


def _unreadable(study: Study) -> Iterator[Finding]:
    errors = study.images.errors
    for name, rows in zip(("training", "validation"), study.by_list(sorted(errors)), strict=True):
        if not rows:
            continue
        total = len(study.list_of(rows[0]).samples)
        text = f"{len(rows):,} of {count_text(total, name + ' image')} cannot be read"
        level = WARNING
        missing = [row for row in rows if errors[row] in ("no such file", "it is a folder")]
        if missing and study.list_of(rows[0]).line_numbers:
            level, text = PROBLEM, f"{text}; the training refuses a list whose files are missing"
        elif study.config.bad_images == "error":
            level, text = PROBLEM, f'{text}; bad_images is "error": the training stops there'
        elif len(rows) / total > study.config.max_bad_share:
            level, text = PROBLEM, f"{text}; max_bad_share allows {study.config.max_bad_share:.2%}"
        yield Finding(level, "unreadable", text, [[row] for row in rows], {row: errors[row] for row in rows})


def _duplicates(study: Study) -> Iterator[Finding]:
    """Yield findings about images that are listed more than once, pixel for pixel."""
    contradictory = [group for group in study.duplicates if len(study.labels(group)) > 1]
    parts = [study.by_list(group) for group in study.duplicates]
    leaks = [train + val for train, val in parts if train and val]
    if contradictory:
        text = f"{count_text(len(contradictory))} with two labels or more: one of them is wrong"
        yield Finding(PROBLEM, "contradictory labels", text, contradictory)
    if leaks:
        count = sum(len(val) for train, val in parts if train and val)
        text = f"{count:,} of {count_text(len(study.val.samples), 'validation image')} also in training: "
        if study.leaks_matter:
            yield Finding(PROBLEM, "leakage", f"{text}the accuracy will be too high", leaks)
        else:
            yield Finding(NOTE, "leakage", f"{text}harmless where no labels are learnt", leaks)
    for number, (name, effect) in enumerate([("training", "they weigh more"), ("validation", "they count twice")]):
        groups = [part[number] for part in parts if len(part[number]) > 1 and len(study.labels(part[number])) < 2]
        if groups:
            extra = sum(len(group) - 1 for group in groups)
            text = f"{count_text(extra, name + ' image')} more than once, pixel for pixel: {effect}"
            yield Finding(WARNING, f"duplicates in {name}", text, groups)


def _near_duplicates(study: Study) -> Iterator[Finding]:
    """Yield findings about images that look the same; only a person can decide whether they are."""
    across = [group for group in study.near_duplicates if all(study.by_list(group))]
    if across:
        count = sum(len(study.by_list(group)[1]) for group in across)
        total = count_text(len(study.val.samples), "validation image")
        text = f"near-duplicates of training images: {count:,} of {total}; check whether they are the same"
        yield Finding(WARNING if study.leaks_matter else NOTE, "look-alikes across the lists", text, across)
    contradictory = [group for group in study.near_duplicates if len(study.labels(group)) > 1]
    if contradictory:
        text = f"near-duplicates with two labels or more: {count_text(len(contradictory), 'group')}"
        yield Finding(WARNING, "look-alikes with two labels", text, contradictory)
    for number, name in enumerate(("training", "validation")):
        parts = [study.by_list(group)[number] for group in study.near_duplicates]
        groups = [part for part in parts if len(part) > 1 and not _are_copies(study, part)]
        if groups:
            text = f"near-duplicates in {name}: {count_text(len(groups), 'group')}"
            yield Finding(NOTE, f"look-alikes in {name}", text, groups)


def _are_copies(study: Study, rows: list[int]) -> bool:
    return len(np.unique(study.images.digests[rows], axis=0)) == 1


def _classes(study: Study) -> Iterator[Finding]:
    names = study.train.class_names
    folded = Counter(unicodedata.normalize("NFKC", name).casefold().strip() for name in names)
    for name in (name for name, count in folded.items() if count > 1):
        same = ", ".join(f'"{n}"' for n in names if unicodedata.normalize("NFKC", n).casefold().strip() == name)
        yield Finding(WARNING, "class names", f"the class names {same} differ only in case or width")
    if names == tuple(str(label) for label in range(len(names))) and study.train.line_numbers:
        text = "the classes are named by their numbers; class_names_file, or classes.txt beside the list, names them"
        yield Finding(NOTE, "class names", text)
    if not study.config.learns_without_labels():
        yield from _counts(study)
    empty = [name for name, count in zip(names, study.class_counts()[1], strict=True) if not count]
    if empty:
        text = f"no validation {study.unit} of {shorten(empty)}: unmeasured"
        yield Finding(WARNING, "classes without validation", text)


def _counts(study: Study) -> Iterator[Finding]:
    counts = study.class_counts()[0]
    missing = [name for name, count in zip(study.train.class_names, counts, strict=True) if not count]
    if missing:
        text = f"no training {study.unit} of {shorten(missing)}: it cannot be learnt"
        yield Finding(PROBLEM, "missing classes", text)
    present = [count for count in counts if count]
    ratio = max(present) / min(present) if present else 1.0
    config = study.config
    if ratio >= IMBALANCED and not (config.class_weights or config.balanced_sampling or config.balanced_crops):
        text = f"the largest class has {ratio:.0f} times the {study.unit}s of the smallest"
        yield Finding(WARNING, "imbalance", text + _BALANCE[study.unit])


def _oddities(study: Study) -> Iterator[Finding]:
    total = len(study.images.odd)
    for oddity, consequence in ODDITIES.items():
        rows = study.images.has(oddity).tolist()
        if rows:
            level = WARNING if oddity in WARNED_OF and len(rows) >= MANY * total else NOTE
            yield Finding(level, oddity, f"{count_text(len(rows))}: {oddity} ({consequence})", [[row] for row in rows])


def _colour_spaces(study: Study) -> Iterator[Finding]:
    """Yield a warning where a class can be told by its colour profiles: it comes from another source."""
    if not study.has_labels:
        return
    counts = np.array(study.train.class_counts())
    rows = [row for row in study.images.has("another colour space than sRGB").tolist() if study.is_train(row)]
    labels = [label for row in rows if (label := study.sample(row).label) != NO_LABEL]
    large = np.flatnonzero(counts >= FEW_IMAGES)
    if not len(large):
        return
    shares = np.bincount(labels, minlength=len(counts))[large] / counts[large]
    if shares.max() - shares.min() >= FOLLOWING:
        most, least = (study.train.class_names[large[at]] for at in (shares.argmax(), shares.argmin()))
        text = f"{shares.max():.0%} of {most} and {shares.min():.0%} of {least} have another colour space than sRGB: "
        ignored = 'the net may learn that; set icc_profiles to "convert"'
        text += ignored if study.preprocess.icc_profiles == "ignore" else "they come from different sources"
        yield Finding(WARNING, "colour spaces follow the classes", text, [[row] for row in rows])


def _left_out(study: Study) -> Iterator[Finding]:
    for name, samples in (("training", study.train), ("validation", study.val)):
        if samples.left_out.counts:
            yield Finding(NOTE, f"left out of {name}", f"files that are no images, in {name}: {samples.left_out}")


def _shapes(study: Study) -> Iterator[Finding]:
    readable = np.flatnonzero(study.images.readable())
    rows = readable[_misshape(study.images.sizes[readable], study.preprocess) > MISSHAPEN].tolist()
    if rows:
        level = WARNING if len(rows) >= 2 * MANY * len(study.images.odd) else NOTE
        limits = MISSHAPEN, 1 - 1 / MISSHAPEN, count_text(len(rows))
        yield Finding(level, "shape", _RESIZED[study.preprocess.resize].format(*limits), [[row] for row in rows])


def _misshape(sizes: np.ndarray, preprocess: Preprocess) -> np.ndarray:
    """Return how many times longer than the input each image (M, 2) is in one direction, (M,), 1 and above."""
    ratio = sizes[:, 0] / np.maximum(sizes[:, 1], 1) / (preprocess.width / preprocess.height)
    return np.asarray(np.maximum(ratio, 1 / np.maximum(ratio, 1e-9)))


def _spread(values: np.ndarray) -> dict[str, float]:
    numbers = zip(("smallest", "median", "largest"), np.percentile(values, [0, 50, 100]).tolist(), strict=True)
    return {name: round(number, 3) for name, number in numbers}
