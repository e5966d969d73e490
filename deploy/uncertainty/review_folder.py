"""The pictures that were set aside, for whoever labels them: copies by rank, a contact sheet, and a list."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from artifacts.metadata import Facts
from common.atomic_io import ResultsError, check_folder, whole, writing
from data_loader.preprocess import PictureError, decode
from deploy.inference.decision import SET_ASIDE
from deploy.inference.prediction import Answer

SHEET, LIST, CLASSES = "contact_sheet.png", "to_label.txt", "classes.txt"
SHOWN, COLUMNS = 100, 10  # pictures of the contact sheet
OPEN_LABEL = "?"  # the trainer refuses a list as long as one is left
MAX_NAME = 200  # bytes; file systems allow 255, and the rank stands before it


class SetAside:
    """Collects what was set aside; `finish` fills the folder, the most doubtful first.

    DIR/0001_name.jpg and so on; contact_sheet.png of the first 100; to_label.txt, the trainer's list with a "?" for
    each label; classes.txt, which says what label each class has.
    """

    def __init__(self, folder: Path, facts: Facts) -> None:
        self._folder, self._facts = folder, facts
        self._answers: list[Answer] = []

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: Answer) -> None:
        """Note an answer, if it was set aside."""
        if answer.decision == SET_ASIDE:
            self._answers.append(answer)

    def finish(self) -> None:
        """Fill the folder. Raises ResultsError."""
        ranked = sorted(self._answers, key=lambda answer: -answer.uncertainty)  # of equals the earlier first
        digits = max(4, len(str(len(ranked))))
        names = [f"{rank:0{digits}d}_{_listable(Path(answer.file).name)}" for rank, answer in enumerate(ranked, 1)]
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        for answer, name in zip(ranked, names, strict=True):
            with writing(self._folder / name), whole(self._folder / name) as temporary:
                shutil.copyfile(answer.file, temporary)
        self._write(LIST, "".join(f"{name}----{OPEN_LABEL}\n" for name in names))
        self._write(CLASSES, "".join(f"{name}\n" for name in self._facts.class_names))
        if ranked:
            self._draw(ranked[:SHOWN], names)

    def _write(self, name: str, text: str) -> None:
        with writing(self._folder / name), whole(self._folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")

    def _draw(self, answers: list[Answer], names: list[str]) -> None:
        from visualization.raster import image_grid, png_bytes  # late: fonts take a moment

        captions = [
            f"{name}\n{answer.class_name} {answer.score:.3f}\n{' | '.join(answer.conformal_set) or 'no class'}"
            for answer, name in zip(answers, names, strict=False)
        ]
        sheet = png_bytes(image_grid(list(_pixels(answers, self._facts)), captions, COLUMNS))
        with writing(self._folder / SHEET), whole(self._folder / SHEET) as temporary:
            temporary.write_bytes(sheet)


def check_new_folder(folder: Path) -> None:
    """Raise ResultsError unless the folder is empty or can be made: ranks of two runs must not mix."""
    check_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        raise ResultsError(f"{folder}: it is not empty; name a new folder with --set_aside")


def _pixels(answers: list[Answer], facts: Facts) -> Iterator[np.ndarray]:
    for answer in answers:
        try:
            yield np.asarray(decode(answer.file, 3, facts.preprocess.max_pixels))
        except PictureError as error:  # it was there when it was answered
            raise ResultsError(f"{answer.file}: {error}") from error


def _listable(name: str) -> str:
    """Give a name that a line of UTF-8 holds, cut at its beginning where a rank before it would make it too long."""
    raw = re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", name).encode()
    return raw[-MAX_NAME:].decode(errors="ignore")
