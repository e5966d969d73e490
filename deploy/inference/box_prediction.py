"""The prediction of a net that gives boxes: the objects in one image, in its own pixels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from artifacts.detections import objects_of
from artifacts.metadata import ModelMetadata
from common.console import elide
from data_loader.box_geometry import unfitted
from data_loader.mask_classes import MaskClass, default_classes
from deploy.inference.mask_prediction import classes_of
from deploy.inference.prediction import NOT_FINITE, Prediction, csv_text
from visualization.boxes import draw_boxes
from visualization.raster import annotated

SHOWN = 3  # classes of a terminal line
MAX_CLASS_COLUMNS, COUNT_COLUMNS = 16, 4


class FoundObject(NamedTuple):
    """One object: class index, score, and left, top, right, bottom in pixels of the image."""

    label: int
    score: float
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class BoxPrediction(Prediction):
    """The objects in one image, the highest score first."""

    classes: tuple[MaskClass, ...] = ()
    size: tuple[int, int] = (0, 0)  # width, height of the image
    objects: tuple[FoundObject, ...] = field(default=(), repr=False)

    @classmethod
    def decode(
        cls, outputs: np.ndarray, metadata: ModelMetadata, topk: int, sizes: Sequence[tuple[int, int]]
    ) -> Iterator[BoxPrediction]:
        """Yield the objects of each image of outputs (N, A, 4 + K), by the net's own thresholds."""
        for rows, size in zip(outputs, sizes, strict=True):
            if not np.isfinite(rows).all():
                yield cls("", error=NOT_FINITE)
                continue
            (found,) = objects_of(rows[None], metadata)
            boxes = unfitted(metadata.preprocess, found.boxes, size)
            objects = (
                FoundObject(label, score, tuple(round(value, 2) for value in box))
                for label, score, box in zip(found.labels.tolist(), found.scores.tolist(), boxes.tolist(), strict=True)
                if box[2] > box[0] and box[3] > box[1]
            )
            yield cls("", classes_of(metadata), size, tuple(objects))

    @classmethod
    def example(cls, class_names: Sequence[str]) -> BoxPrediction:
        """Return one object."""
        found = FoundObject(0, 0.9, (4.0, 8.0, 60.5, 44.0))
        return cls("", default_classes(class_names), (64, 48), (found,))

    def values(self) -> dict[str, Any]:
        """Return {"width", "height", "objects": [{"class", "label", "score", "box": [left, top, right, bottom]}]}."""
        objects = [
            {"class": self.classes[label].name, "label": label, "score": score, "box": list(box)}
            for label, score, box in self.objects
        ]
        return {"width": self.size[0], "height": self.size[1], "objects": objects}

    def response(self) -> dict[str, Any]:
        """Return `values`, and the classes with their titles and colours."""
        classes = [{"name": one.name, "title": one.title, "color": list(one.color)} for one in self.classes]
        return super().response() | {"classes": classes}

    @classmethod
    def csv_columns(cls, metadata: ModelMetadata, topk: int) -> tuple[str, ...]:
        """Return width, height, count, and the objects as JSON."""
        return ("width", "height", "count", "objects")

    def csv_row(self) -> list[str | int]:
        """Return what stands in `csv_columns`."""
        return [*self.size, len(self.objects), csv_text(self.values()["objects"])]

    @classmethod
    def text_widths(cls, metadata: ModelMetadata) -> tuple[int, ...]:
        """Return the columns of SHOWN classes with their counts."""
        return (SHOWN * (MAX_CLASS_COLUMNS + COUNT_COLUMNS),)

    def texts(self) -> tuple[str, ...]:
        """Return how many there are of the most frequent classes: "12 RBC  1 WBC", or "nothing"."""
        counts = self._counts()
        shown = [f"{count} {elide(name, MAX_CLASS_COLUMNS)}" for name, count in counts[:SHOWN]]
        more = [f"+{sum(count for _, count in counts[SHOWN:])}"] if len(counts) > SHOWN else []
        return ("  ".join([*shown, *more]) or "nothing",)

    def caption(self) -> list[str]:
        """Return how many there are of each class."""
        return [", ".join(f"{count} {name}" for name, count in self._counts()) or "nothing found"]

    def annotate(self, image: Image.Image) -> Image.Image:
        """Return the image, or a smaller copy of it, with its boxes and their scores, and a line of counts below."""
        scale = np.array(image.size * 2) / (self.size * 2)
        boxes = np.array([found.box for found in self.objects], np.float32).reshape(-1, 4) * scale
        texts = [f"{self._title(found.label)} {found.score:.2f}" for found in self.objects]
        colours = [_visible(self.classes[found.label].color) for found in self.objects]
        order = range(len(boxes) - 1, -1, -1)  # the surest on top
        drawn = draw_boxes(
            np.asarray(image.convert("RGB")), boxes[list(order)], [texts[i] for i in order], [colours[i] for i in order]
        )
        return annotated(Image.fromarray(drawn), self.caption())

    def _title(self, label: int) -> str:
        return self.classes[label].title or self.classes[label].name

    def _counts(self) -> list[tuple[str, int]]:
        return Counter(self._title(found.label) for found in self.objects).most_common()


def _visible(color: Sequence[int]) -> tuple[int, int, int]:
    """Return a class's colour, or red where that is black, as the first of PASCAL VOC's is."""
    return (color[0], color[1], color[2]) if any(color) else (220, 30, 30)
