"""A folder of the images that were set aside, to be labelled: copies by rank, a contact sheet, and a list."""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import numpy as np

from artifacts.metadata import ModelMetadata
from common.atomic_io import ResultsError, atomic_path, check_folder, write_atomic, writing
from data_loader.preprocess import ImageError
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.decision import SET_ASIDE
from deploy.inference.image_writers import reading_image

SHEET, LIST, CLASSES = "contact_sheet.png", "to_label.txt", "classes.txt"
SHOWN, COLUMNS = 100, 10  # images of the contact sheet
OPEN_LABEL = "?"  # the trainer refuses a list as long as one is left
MAX_NAME = 200  # bytes; file systems allow 255, and the rank stands before it


class ReviewFolder:
    """Collects the predictions that were set aside; `finish` fills the folder, the most uncertain first.

    DIR/0001_name.jpg and so on; contact_sheet.png of the first 100; to_label.txt, the trainer's list with a "?" for
    each label; classes.txt, the class names in the order of their labels.
    """

    def __init__(self, folder: Path, metadata: ModelMetadata) -> None:
        self._folder, self._metadata = folder, metadata
        self._predictions: list[ClassPrediction] = []
        self.copied: dict[str, ClassPrediction] = {}  # by the copy's name, after `finish`

    def __len__(self) -> int:
        return len(self._predictions)

    def add(self, prediction: ClassPrediction) -> None:
        """Keep a prediction, if it was set aside."""
        if prediction.decision == SET_ASIDE:
            self._predictions.append(prediction)

    def finish(self) -> list[tuple[str, ImageError]]:
        """Fill the folder; return the images that cannot be read any more, and why. Raises ResultsError."""
        ranked = sorted(self._predictions, key=lambda one: -one.uncertainty)  # of equals the earlier first
        digits = max(4, len(str(len(ranked))))
        names = [f"{rank:0{digits}d}_{_listable(Path(one.file).name)}" for rank, one in enumerate(ranked, 1)]
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        gone = []
        for prediction, name in zip(ranked, names, strict=True):
            try:
                self._copy(prediction.file, self._folder / name)
                self.copied[name] = prediction
            except ImageError as error:
                gone.append((prediction.file, error))
        self._write(LIST, "".join(f"{name}----{OPEN_LABEL}\n" for name in self.copied))
        self._write(CLASSES, "".join(f"{name}\n" for name in self._metadata.class_names))
        if self.copied:
            self._draw(dict(itertools.islice(self.copied.items(), SHOWN)))
        return gone

    def _copy(self, file: str, target: Path) -> None:
        with writing(target), reading_image(Path(file)), atomic_path(target, durable=False) as temporary:
            shutil.copyfile(file, temporary)

    def _write(self, name: str, text: str) -> None:
        with writing(self._folder / name):
            write_atomic(self._folder / name, text.encode(errors="surrogateescape"))

    def _draw(self, copied: dict[str, ClassPrediction]) -> None:
        from visualization.raster import image_grid, png_bytes  # late: fonts take a moment

        captions = [
            f"{name}\n{one.class_name} {one.score:.3f}\n{' | '.join(one.conformal_set) or 'no class'}"
            for name, one in copied.items()
        ]
        pixels = [_pixels(self._folder / name, self._metadata) for name in copied]
        sheet = png_bytes(image_grid(pixels, captions, COLUMNS))
        with writing(self._folder / SHEET):
            write_atomic(self._folder / SHEET, sheet)


def check_new_folder(folder: Path) -> None:
    """Raise ResultsError unless the folder is empty or can be made: ranks of two runs must not mix."""
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ResultsError(f"{folder}: it is not empty; name a new folder with --set_aside")


def _pixels(copy: Path, metadata: ModelMetadata) -> np.ndarray:
    try:
        return np.asarray(metadata.preprocess.show(copy))
    except ImageError as error:  # it was readable when it was classified
        raise ResultsError(f"{copy}: {error}") from error


def _listable(name: str) -> str:
    """Return a name for a line of UTF-8 and for standard annotations, cut at its beginning where too long."""
    raw = re.sub(r"[\x00-\x1f\x7f\\\ud800-\udfff]", "_", name).encode()
    return raw[-MAX_NAME:].decode(errors="ignore")
