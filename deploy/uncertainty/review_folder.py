"""A folder of the images that were set aside, to be labelled: copies by rank, a contact sheet, and a list."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from artifacts.metadata import ModelMetadata
from common.atomic_io import ResultsError, atomic_path, check_folder, write_atomic, writing
from data_loader.preprocess import ImageError, decode
from deploy.inference.class_prediction import ClassPrediction
from deploy.inference.decision import SET_ASIDE

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

    def __len__(self) -> int:
        return len(self._predictions)

    def add(self, prediction: ClassPrediction) -> None:
        """Keep a prediction, if it was set aside."""
        if prediction.decision == SET_ASIDE:
            self._predictions.append(prediction)

    def finish(self) -> None:
        """Fill the folder. Raises ResultsError."""
        ranked = sorted(self._predictions, key=lambda one: -one.uncertainty)  # of equals the earlier first
        digits = max(4, len(str(len(ranked))))
        names = [f"{rank:0{digits}d}_{_listable(Path(one.file).name)}" for rank, one in enumerate(ranked, 1)]
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        for prediction, name in zip(ranked, names, strict=True):
            with writing(self._folder / name), atomic_path(self._folder / name, durable=False) as temporary:
                shutil.copyfile(prediction.file, temporary)
        self._write(LIST, "".join(f"{name}----{OPEN_LABEL}\n" for name in names))
        self._write(CLASSES, "".join(f"{name}\n" for name in self._metadata.class_names))
        if ranked:
            self._draw(ranked[:SHOWN], names)

    def _write(self, name: str, text: str) -> None:
        with writing(self._folder / name):
            write_atomic(self._folder / name, text.encode(errors="surrogateescape"))

    def _draw(self, predictions: list[ClassPrediction], names: list[str]) -> None:
        from visualization.raster import image_grid, png_bytes  # late: fonts take a moment

        captions = [
            f"{name}\n{one.class_name} {one.score:.3f}\n{' | '.join(one.conformal_set) or 'no class'}"
            for one, name in zip(predictions, names, strict=False)
        ]
        sheet = png_bytes(image_grid(list(_pixels(predictions, self._metadata)), captions, COLUMNS))
        with writing(self._folder / SHEET):
            write_atomic(self._folder / SHEET, sheet)


def check_new_folder(folder: Path) -> None:
    """Raise ResultsError unless the folder is empty or can be made: ranks of two runs must not mix."""
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ResultsError(f"{folder}: it is not empty; name a new folder with --set_aside")


def _pixels(predictions: list[ClassPrediction], metadata: ModelMetadata) -> Iterator[np.ndarray]:
    for prediction in predictions:
        try:
            yield np.asarray(decode(prediction.file, 3, metadata.preprocess.max_pixels))
        except ImageError as error:  # it was readable when it was classified
            raise ResultsError(f"{prediction.file}: {error}") from error


def _listable(name: str) -> str:
    """Return a name that a line of UTF-8 holds, cut at its beginning where it would be too long with its rank."""
    raw = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", name).encode()
    return raw[-MAX_NAME:].decode(errors="ignore")
