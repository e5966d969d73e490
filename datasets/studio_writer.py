"""Standard annotations -> Label Studio's tasks and its labelling interface."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from data_loader.decoding import image_size
from data_loader.errors import ImageError
from datasets.files import Annotations
from datasets.objects import ImageObject, objects_of
from datasets.outcome import Outcome
from datasets.records import PER_OBJECT, Record, find_problems, normalized, sparse, value

LOCAL_FILES = "/data/local-files/?d="
SAFE = "/ ~!@$()*,;:'=[]"  # beside letters: what a local file's address holds as it is
POINT_PERCENT = 0.5  # of the width that a key point is drawn with
KINDS = {  # region type: name of the control and its tag in the interface
    "rectanglelabels": ("rect", "RectangleLabels"),
    "polygonlabels": ("polygon", "PolygonLabels"),
    "keypointlabels": ("keypoint", "KeyPointLabels"),
    "choices": ("class", "Choices"),
}
LABEL_KEYS = (*PER_OBJECT, "image_label", "image_label_name", "has_joints2d")


def studio_items(found: Annotations, prefix: str, outcome: Outcome, *, is_ours: bool = False) -> list[dict[str, Any]]:
    """Return a task for each record: its labels under `annotations`, `predictions` under the same.

    What Label Studio has no place for is kept under `record` of a task's data. A record without any label gets no
    annotation, so that it waits to be labelled. Predictions that cannot be used are left out, unless `is_ours`.
    """
    items = []
    for index, record in enumerate(found.records):
        size = _size(found, record)
        if not all(size) and value(record, "bboxes"):
            outcome.leave_out(found.name(index), "width and height are not known, and its image cannot be read")
            continue
        result = list(_regions(index, record, found.category, size))
        kept = {key: item for key, item in sparse(record).items() if key not in LABEL_KEYS}
        item: dict[str, Any] = {"data": {"image": _address(record, prefix), "gt_index": index, "record": kept}}
        if joints := max((len(points) for points in value(record, "joints2d")), default=0):
            item["data"]["joints"] = joints
        if result:
            item["annotations"] = [{"was_cancelled": False, "ground_truth": False, "result": result}]
        if proposals := value(record, "predictions"):
            if not is_ours and (problem := _why_unusable(proposals, found.category, size)):
                outcome.leave_out(f"{found.name(index)}: its predictions", problem)
            else:
                item["predictions"] = [_prediction(index, proposals, found.category, size)]
        items.append(item)
    return items


def predicted_tasks(records: list[Record], category: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Return tasks whose objects are predictions of a net, and the interface, for records with `predictions` alone.

    Addresses start from the folder that the records' paths start from, which Label Studio serves as local files.
    """
    items = studio_items(Annotations(Path(), records, tuple(category)), "", Outcome(), is_ours=True)
    for item in items:
        item["data"]["record"].pop("predictions", None)
    return items, studio_interface(category, 0)


def studio_interface(category: Sequence[str], joints: int) -> str:
    """Return the labelling interface for these classes, with key points where there are joints."""
    root = Element("View")
    SubElement(root, "Image", name="image", value="$image")
    for kind, (name, tag) in KINDS.items():
        texts = [str(joint) for joint in range(joints)] if kind == "keypointlabels" else list(category)
        if not texts:
            continue
        control = SubElement(root, tag, name=name, toName="image")
        for text in texts:
            joint = {"model_index": text} if kind == "keypointlabels" else {}  # the order that Label Studio exports in
            SubElement(control, "Choice" if kind == "choices" else "Label", {"value": text, **joint})
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def _why_unusable(proposals: Record, category: Sequence[str], size: tuple[int, int]) -> str:
    """Return what is wrong with a net's proposals, which are not checked as a record is read; "" where nothing is."""
    if not all(size) and proposals.get("bboxes"):
        return "width and height are not known, and the image cannot be read"
    if not isinstance(proposals.get("scores", []), list):
        return "scores must be a list"
    checked = {**normalized(proposals), "width": size[0], "height": size[1]}
    return next(find_problems(checked, category), "")


def _size(found: Annotations, record: Record) -> tuple[int, int]:
    size = (value(record, "width"), value(record, "height"))
    if all(size) or not value(record, "image_file"):
        return size
    try:
        return image_size(str(found.folder / record["image_file"]))[0]
    except ImageError:
        return size


def _address(record: Record, prefix: str) -> str:
    path = value(record, "image_file")
    if not path:
        return str(value(record, "image_url"))
    return LOCAL_FILES + _quoted(f"{prefix}/{path}" if prefix else path)


def _quoted(path: str) -> str:
    """Return a path for an address: letters of all languages stay as they are."""
    return "".join(letter if ord(letter) > 127 else quote(letter, safe=SAFE) for letter in path)


def _prediction(
    index: int, proposals: Mapping[str, Any], category: Sequence[str], size: tuple[int, int]
) -> dict[str, Any]:
    regions = list(_regions(index, dict(proposals), category, size, "p"))
    scores = {f"p{index}_r{number}": score for number, score in enumerate(proposals.get("scores", ()))}
    for region in regions:
        if region["id"] in scores:
            region["score"] = scores[region["id"]]
    made: dict[str, Any] = {"result": regions}
    if isinstance(score := proposals.get("score"), (int, float)):
        made["score"] = score
    if version := proposals.get("weights_sha256"):
        made["model_version"] = str(version)
    return made


def _regions(
    index: int, record: Record, category: Sequence[str], size: tuple[int, int], before: str = ""
) -> Iterator[dict[str, Any]]:
    """Yield the regions of a record: of an object its rectangle, then rings and key points that name it as parent."""
    for number, found in enumerate(objects_of(record, category)):
        parent = f"{before}{index}_r{number}"
        region = _region(parent, "rectanglelabels", size, _rectangle(found, size))
        yield region if found.shown is None else {**region, "meta": {"box_visibility": found.shown}}
        for place, ring in enumerate(found.rings):
            points = [_percent(point, size) for point in ring]
            content = {"points": points, "closed": True, "polygonlabels": _names(found)}
            yield _region(f"{parent}_p{place}", "polygonlabels", size, content, parent)
        for joint, (point, sight) in enumerate(zip(found.joints, found.visibilities, strict=True)):
            if sight:
                x, y = _percent(point, size)
                content = {"x": x, "y": y, "width": POINT_PERCENT, "keypointlabels": [str(joint)]}
                region = _region(f"{parent}_k{joint}", "keypointlabels", size, content, parent)
                yield region if sight == 1 else {**region, "meta": {"visibility": sight}}
    label, name = value(record, "image_label"), value(record, "image_label_name")
    name = name or (category[label] if 0 <= label < len(category) else "")
    if name:
        yield _region(f"{before}{index}_c0", "choices", size, {"choices": name.split(",") if label < 0 else [name]})


def _rectangle(found: ImageObject, size: tuple[int, int]) -> dict[str, Any]:
    x0, y0, x1, y1 = found.box
    x, y = _percent((x0, y0), size)
    width, height = _percent((x1 - x0, y1 - y0), size)
    return {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": _names(found)}


def _names(found: ImageObject) -> list[str]:
    return [found.name] if found.name else []


def _percent(point: Sequence[float], size: tuple[int, int]) -> list[float]:
    return [100 * point[0] / size[0], 100 * point[1] / size[1]]


def _region(name: str, kind: str, size: tuple[int, int], content: dict[str, Any], parent: str = "") -> dict[str, Any]:
    made = {"id": name, "from_name": KINDS[kind][0], "to_name": "image", "type": kind}
    sides = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    return {**made, **({"parentID": parent} if parent else {}), **sides, "value": content}
