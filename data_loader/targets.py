"""The target of an image, which a net learns to predict: from a list's line to a value, from values to a batch.

A task brings its own `Target`; `ClassLabel` is the one of all that learn classes.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import UserError
from data_loader.problems import Problem
from data_loader.samples import NO_LABEL, ListError, Sample, SampleList, read_class_folders, shorten

if TYPE_CHECKING:
    from data_loader.band_image import Decoded
    from data_loader.preprocess import Preprocess

_INTEGER = re.compile(r"[+-]?[0-9]{1,4000}")  # int() refuses more than 4300 digits

View = Callable[[Any, bool], np.ndarray]  # decoded image, whether to mirror it -> uint8 (H, W, C)


class TargetError(UserError):
    """A target in a list that cannot be used; the message is the sentence about it, without the place."""


class Target(ABC):
    """Reads, loads and batches the targets of one task. A target is what `Sample.target` holds, a value what is loaded.

    Both may be the same (a label, a number), or the target is a path and the value an array.
    """

    noun = "target"  # what messages call it
    files: tuple[str, ...] = ()  # what messages call further files, which a line names behind its image
    needs_scan = False  # whether `scan` has something to look at before a training
    class_names: tuple[str, ...] = ()  # where the targets are classes

    @abstractmethod
    def parse(self, text: str, root: str) -> Any:
        """Return the target that a list's line names behind its separator. Raises TargetError.

        `root` is the folder that a path in it starts from.
        """

    def from_files(self, paths: Sequence[str]) -> Any:
        """Return the target that a line's further `files` are, by their paths; joined with the root, they are there."""
        raise NotImplementedError

    def find_problems(self, targets: Sequence[Any], line_numbers: Sequence[int]) -> Iterable[Problem]:
        """Return the problems of all targets of a list together."""
        return []

    def read_folder(self, root: str) -> SampleList:
        """Return the samples of a folder that has no list. Raises ListError where only a list can name targets."""
        raise ListError([f"{root}: a folder names no {self.noun}; set train_data_file and val_data_file to lists"])

    def read_annotations(self, file: str, root: str, *, allow_outside_root: bool) -> SampleList | None:
        """Return the samples of a file that is no txt list, such as COCO's; None for a list. Raises ListError."""
        return None

    def completed(self, samples: SampleList) -> SampleList:
        """Return the samples of a txt list with what its targets need to have read. Raises ListError."""
        return samples

    record_keys: tuple[str, ...] = ()  # the features of a packed record that `from_record` needs

    def from_record(self, features: Mapping[str, Any], category: Sequence[str], name: str) -> Any:
        """Return the target of a packed record, by its features; `category` are the pack's classes.

        `name` is the record's, as `data_loader.packs.packed_name` makes it. Raises TargetError.
        """
        raise TargetError(f"a pack names no {self.noun}")

    def names_for(self, category: Sequence[str]) -> tuple[str, ...]:
        """Return the class names of the samples of a pack, whose own are `category`."""
        return self.class_names

    def settled(self, first: SampleList) -> Target:
        """Return the target of the further lists, once the first is read."""
        return self

    def describe(self, target: Any) -> str:
        """Return how a message names a target, "label 3"; "" for one that is not known."""
        return f"{self.noun} {target}"

    def image_paths(self, sample: Sample) -> tuple[str, ...]:
        """Return the files of a sample's images: one, or of a pair both."""
        return (sample.path,)

    def load(self, sample: Sample) -> Any:
        """Return the value of one sample, a number or an array. Raises ImageError for a file that cannot be read."""
        return sample.target

    def files_of(self, sample: Sample) -> tuple[str, ...]:
        """Return the files that a sample's images and value are read from, on which a cache of them depends."""
        return self.image_paths(sample)

    cached_channels = 0  # behind those of a sample's fitted images, which keep its value

    def cache_settings(self) -> dict[str, object]:
        """Return what `cached` follows from besides the files."""
        return {}

    def cached(self, preprocess: Preprocess, value: Any) -> np.ndarray:
        """Return the value as the `cached_channels` of its fitted images, uint8 (H, W, cached_channels)."""
        raise NotImplementedError

    def of_cached(self, preprocess: Preprocess, sample: Sample, channels: np.ndarray) -> Any:
        """Return the value, as `load` does, that belongs to the cached images of a sample fitted by `preprocess`."""
        return self.load(sample)

    def without(self, value: Any, gaps: np.ndarray) -> Any:
        """Return the value where some of the image's pixels hold no data, `gaps` (H, W)."""
        return value

    def fit(self, preprocess: Preprocess, value: Any) -> Any:
        """Return the value that belongs to an image fitted by `preprocess`."""
        return value

    def apply_view(self, view: View, images: Sequence[Decoded], mirrored: bool, value: Any) -> tuple[np.ndarray, Any]:
        """Return a training view of a sample's decoded images, uint8 (H, W, C), and the value that belongs to it.

        Both must follow from torch's CPU random numbers. A value that lies in the image moves with it; a label does
        not.
        """
        return view(images[0], mirrored), value

    def partners(self, view: View, epoch: int, count: int) -> list[int]:
        """Return which of `count` samples come into a view besides its own, drawn by the view, for `apply_joined`."""
        drawn = getattr(view, "partners", None)
        return drawn(epoch, count) if drawn else []

    def apply_joined(
        self, view: View, parts: Sequence[tuple[Sequence[Decoded], Any]], mirrored: bool
    ) -> tuple[np.ndarray, Any]:
        """Return a view of several samples' decoded images and values, its own first, as `apply_view` does of one."""
        joined: Any = view
        return joined.joined(parts, mirrored)

    def scan(self, sample: Sample) -> Any:
        """Return what `scanned` needs of one sample. Raises ImageError where it cannot be used."""
        return None

    def scanned(self, samples: SampleList, scans: Sequence[Any]) -> tuple[SampleList, list[str]]:
        """Return the list with what was found in all its samples, and lines to log. Raises ListError."""
        return samples, []

    def collate(self, values: Sequence[Any]) -> np.ndarray:
        """Return the values of a batch as one array (N, ...) of a rank that does not depend on them."""
        return np.stack(values)

    def groups(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return a number for each sample (N,) int64: `balanced_sampling` draws each of them equally often.

        Raises TargetError where the targets are no classes.
        """
        raise TargetError(f"balanced_sampling needs classes, and a {self.noun} is none: leave it out")


class ClassLabel(Target):
    """A class's label, 0..num_classes-1. Without class names class i is called "i"."""

    noun = "label"

    def __init__(self, num_classes: int, class_names: Sequence[str] = ()) -> None:
        self.num_classes, self.given_names = num_classes, tuple(class_names)
        self.class_names = tuple(class_names) or tuple(str(label) for label in range(num_classes))

    def parse(self, text: str, root: str = "") -> int:
        """Return a label, which may still be outside the range. Raises TargetError for what is no integer."""
        if not is_integer(text):
            raise TargetError(not_an_integer(text, self.class_names))
        return int(text)

    record_keys = ("image_label", "label")

    def from_record(self, features: Mapping[str, Any], category: Sequence[str], name: str) -> int:
        """Return `image_label`, else `label`; a class has the label of its name in the list's classes."""
        found = features.get("image_label") or features.get("label") or [NO_LABEL]
        label = int(found[0])
        if label == NO_LABEL:
            raise TargetError("it has no image_label")
        if self.given_names and category and 0 <= label < len(category):
            if category[label] not in self.given_names:
                raise TargetError(f'its class "{category[label]}" is none of {shorten(", ".join(self.given_names))}')
            return self.given_names.index(category[label])
        return label

    def names_for(self, category: Sequence[str]) -> tuple[str, ...]:
        """Return the given class names, else the pack's, else numbers."""
        return self.given_names or tuple(category) or self.class_names

    def find_problems(self, targets: Sequence[int], line_numbers: Sequence[int]) -> Iterator[Problem]:
        """Yield the labels outside the range, and whether all of them seem to count from 1."""
        if len(self.class_names) != self.num_classes:
            names = len(self.class_names)
            yield 0, f"{names} class names were given, but num_classes is {self.num_classes}"
        distinct = set(targets)
        outside = {label for label in distinct if not 0 <= label < self.num_classes}
        allowed = f"0..{self.num_classes - 1} (num_classes is {self.num_classes})"
        for number, label in zip(line_numbers, targets, strict=True):
            if label in outside:
                yield number, f"label {shorten(str(label))} is outside {allowed}"
        if outside == {self.num_classes} and 0 not in distinct:
            most = f"no label is 0 and the largest is {self.num_classes}; labels count from 0, not from 1"
            yield 0, most

    def read_folder(self, root: str) -> SampleList:
        """Return the samples of a folder with a folder for each class. Raises ListError."""
        samples = read_class_folders(root, self.given_names)
        if (found := len(samples.class_names)) != self.num_classes:
            raise ListError([f"{root}: {found} class folders, but num_classes is {self.num_classes}"])
        return samples

    def settled(self, first: SampleList) -> ClassLabel:
        """Return the labels of the same classes, by the names that the first list has."""
        return ClassLabel(self.num_classes, first.class_names)

    def describe(self, target: int) -> str:
        """Return "label 3", or "" for NO_LABEL."""
        return "" if target == NO_LABEL else f"{self.noun} {target}"

    def collate(self, values: Sequence[int]) -> np.ndarray:
        """Return labels (N,) int64."""
        return np.array(values, dtype=np.int64)

    def groups(self, samples: Sequence[Sample]) -> np.ndarray:
        """Return the labels (N,)."""
        return np.array([sample.label for sample in samples], dtype=np.int64)


CLASS_LABEL = ClassLabel(0)  # loads and batches labels of any number of classes


def is_integer(text: str) -> bool:
    """Return whether `int` reads a text as a label is written."""
    return _INTEGER.fullmatch(text) is not None


def not_an_integer(text: str, class_names: Sequence[str]) -> str:
    """Return the sentence about a label that is no integer; a class's name gets its label as a hint."""
    allowed = f"allowed are 0..{len(class_names) - 1}"
    hint = f"; class {text} has label {class_names.index(text)}" if text in class_names else ""
    return f'label "{shorten(text)}" is not an integer; {allowed}{hint}'
