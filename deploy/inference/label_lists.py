"""Found objects of all images in one file: COCO's results, or Label Studio's tasks with predictions."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from artifacts.metadata import ModelMetadata
from data_loader.mask_classes import MaskClass
from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.image_writers import save_copy
from deploy.inference.label_files import LabelFiles
from deploy.inference.mask_prediction import classes_of
from deploy.inference.prediction import Prediction

COCO_NAME = "_annotations.coco.json"  # as Roboflow exports it

StudioMaker = Callable[[list[dict[str, Any]], list[str]], tuple[list[dict[str, Any]], str]]


def label_writer(
    kind: str, folder: Path, root: Path | None, metadata: ModelMetadata, make_tasks: StudioMaker
) -> LabelFiles | LabelList:
    """Return what writes found objects as labels of a kind, voc, yolo, coco or studio, into a folder."""
    if kind == "coco":
        return CocoResults(folder, classes_of(metadata), root)
    if kind == "studio":
        return StudioTasks(folder, classes_of(metadata), metadata.weights_sha256, make_tasks)
    return LabelFiles(folder, kind)


class LabelList(ABC):
    """Gathers the predictions of a run, and writes them into FOLDER when it ends."""

    def __init__(self, folder: Path, classes: Sequence[MaskClass]) -> None:
        self._folder, self._classes = folder, classes

    def add(self, prediction: Prediction, relative: str) -> None:
        """Take a prediction of the image of this path below the image folder."""
        if not prediction.error:
            assert isinstance(prediction, BoxPrediction)
            self._take(prediction, relative)

    def finish(self) -> None:
        """Write the files. Raises ResultsError."""
        for name, text in self._texts().items():
            stem, ending = Path(name).stem, Path(name).suffix
            save_copy(self._folder, stem, ending, lambda path, text=text: path.write_text(text, encoding="utf-8"))  # type: ignore[misc]

    @abstractmethod
    def _take(self, prediction: BoxPrediction, relative: str) -> None: ...

    @abstractmethod
    def _texts(self) -> dict[str, str]: ...


class CocoResults(LabelList):
    """Writes coco_results.json, which COCO's evaluation reads, and the images and categories that its ids name.

    Ids of images are those of the image folder's COCO file, where there is one that names them; else they count on.
    """

    def __init__(self, folder: Path, classes: Sequence[MaskClass], root: Path | None) -> None:
        super().__init__(folder, classes)
        self._known = _image_ids(root)
        self._next = max(self._known.values(), default=0) + 1
        self._images: list[dict[str, Any]] = []
        self._results: list[dict[str, Any]] = []

    def _take(self, prediction: BoxPrediction, relative: str) -> None:
        if (number := self._known.get(relative)) is None:
            number, self._next = self._next, self._next + 1
        width, height = prediction.size
        self._images.append({"id": number, "file_name": relative, "width": width, "height": height})
        for label, score, (left, top, right, bottom) in prediction.objects:
            box = [left, top, round(right - left, 2), round(bottom - top, 2)]
            ids = {"image_id": number, "category_id": self._classes[label].value}
            self._results.append({**ids, "bbox": box, "score": score})

    def _texts(self) -> dict[str, str]:
        categories = [{"id": found.value, "name": found.name} for found in self._classes]
        images = {"images": self._images, "categories": categories}
        return {"coco_results.json": _json(self._results), "coco_images.json": _json(images)}


class StudioTasks(LabelList):
    """Writes studio.json, a task for each image with its objects as a prediction, and studio.xml, the interface."""

    def __init__(self, folder: Path, classes: Sequence[MaskClass], weights_sha256: str, make: StudioMaker) -> None:
        super().__init__(folder, classes)
        self._weights, self._make = weights_sha256, make
        self._records: list[dict[str, Any]] = []

    def _take(self, prediction: BoxPrediction, relative: str) -> None:
        found = prediction.objects
        scores = [one.score for one in found]
        size = {"width": prediction.size[0], "height": prediction.size[1]}
        proposals = {"bboxes": [list(one.box) for one in found], "labels": [one.label for one in found]}
        score = sum(scores) / len(scores) if scores else 0.0
        whole = {**proposals, "scores": scores, "score": score, "weights_sha256": self._weights}
        self._records.append({"image_file": relative, **size, "predictions": whole})

    def _texts(self) -> dict[str, str]:
        tasks, interface = self._make(self._records, [found.name for found in self._classes])
        return {"studio.json": _json(tasks), "studio.xml": interface}


def _image_ids(root: Path | None) -> Mapping[str, int]:
    """Return the ids of the images that a folder's COCO file names; {} where it has none that can be read."""
    if root is None:
        return {}
    try:
        rows = json.loads((root / COCO_NAME).read_text(encoding="utf-8"))["images"]
        return {str(row["file_name"]): int(row["id"]) for row in rows}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _json(values: Any) -> str:
    return json.dumps(values, ensure_ascii=False) + "\n"
