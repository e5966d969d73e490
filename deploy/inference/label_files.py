"""Found objects as label files, VOC XML or YOLO txt, which labelling tools open and a training reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from deploy.inference.box_prediction import BoxPrediction
from deploy.inference.image_writers import save_copy
from deploy.inference.prediction import Prediction


class LabelFiles:
    """Writes FOLDER/<path below the image folder>, with the ending of a label file, for each image with a prediction.

    Of two images that differ by their endings alone the second keeps its own before the label file's.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._ending, self._text = KINDS[kind]
        self._written: set[str] = set()

    def add(self, prediction: Prediction, relative: str) -> None:
        """Write the label file of a prediction. Raises ResultsError."""
        if prediction.error:
            return
        assert isinstance(prediction, BoxPrediction)
        stem = str(Path(relative).with_suffix(""))
        name = stem if stem not in self._written else relative
        self._written.add(name)
        text = self._text(prediction)
        save_copy(self._folder, name, self._ending, lambda path: path.write_text(text, encoding="utf-8"))
        if self._ending == ".txt":
            names = "".join(f"{one.name}\n" for one in prediction.classes)
            save_copy(self._folder, "classes", ".txt", lambda path: path.write_text(names, encoding="utf-8"))


def voc_xml(prediction: BoxPrediction) -> str:
    """Return a PASCAL VOC annotation, with the score of each object beside its name."""
    root = Element("annotation")
    SubElement(root, "filename").text = Path(prediction.file).name
    size = SubElement(root, "size")
    for tag, value in zip(("width", "height", "depth"), (*prediction.size, 3), strict=True):
        SubElement(size, tag).text = str(value)
    for found in prediction.objects:
        item = SubElement(root, "object")
        SubElement(item, "name").text = prediction.classes[found.label].name
        SubElement(item, "difficult").text = "0"
        SubElement(item, "score").text = f"{found.score:.4f}"
        box = SubElement(item, "bndbox")
        for tag, place in zip(("xmin", "ymin", "xmax", "ymax"), found.box, strict=True):
            SubElement(box, tag).text = f"{place:.2f}"
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def yolo_txt(prediction: BoxPrediction) -> str:
    """Return YOLO's lines: class index, middle and size as shares of the image's sides."""
    width, height = prediction.size
    lines = []
    for label, _, (left, top, right, bottom) in prediction.objects:
        values = (
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        )
        lines.append(" ".join([str(label), *(f"{value:.6f}" for value in values)]) + "\n")
    return "".join(lines)


KINDS: dict[str, tuple[str, Callable[[BoxPrediction], str]]] = {"voc": (".xml", voc_xml), "yolo": (".txt", yolo_txt)}
