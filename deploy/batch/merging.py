"""The results of all shards as one run would have written them, each image once."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifacts.metadata import ModelMetadata
from common.formatting import counted
from datasets.studio_writer import predicted_tasks
from deploy.inference.box_prediction import BoxPrediction, FoundObject
from deploy.inference.label_files import LabelFiles
from deploy.inference.label_lists import LabelList, label_writer
from deploy.inference.mask_prediction import classes_of
from deploy.inference.result_writer import check_results_path, open_results
from deploy.inference.shard_file import Record, ShardContent, ShardError, difference, read_shard, rows_of
from deploy.inference.shards import Entry, Shard, add_entry, shard_files, source_of

SHOWN = 5  # images or shards in a message


@dataclass(frozen=True)
class Merged:
    """What was merged: how many images of how many shards, how many of them without a prediction, and on what."""

    images: int
    failed: int
    shards: int
    runs_on: tuple[str, ...]


def merge_shards(output: Path) -> Merged:
    """Write a results file from the shards that lie beside it, in the order of the images, and their label files.

    Raises ShardError unless every shard is there, whole, of one run, and together they have each image once; and
    ResultsError. A file of that name then stays as it was.
    """
    check_results_path(output)
    contents = _read(output)
    _check_complete(contents)
    _check_images(contents)
    head = contents[0].head
    metadata, root = ModelMetadata.from_dict(head["metadata"]), Path(head["flags"]["image_dir"])
    labels = _labels(head, metadata, root)
    rows = [rows_of(content) for content in contents]
    with open_results(output, head["columns"], escape_formulas=not head["flags"]["raw_csv"]) as results:
        for index in range(head["images"]):
            record = next(rows[index % len(rows)])
            results.write_row(record["row"])
            if labels is not None and not record["failed"]:
                entry = contents[index % len(rows)].images[index // len(rows)]
                labels.add(_boxes(record, entry, metadata, root), str(entry[0]))
    if isinstance(labels, LabelList):
        labels.finish()
    runs_on = tuple(sorted({content.head["runs_on"] for content in contents}))
    return Merged(head["images"], sum(content.failed for content in contents), len(contents), runs_on)


def _read(output: Path) -> list[ShardContent]:
    """Return all shards of a run in their order. Raises ShardError where one is missing or of another run."""
    files = shard_files(output)
    counts = sorted({shard.count for shard in files})
    if not files:
        raise ShardError(f"{output}: no shards beside it; inference.py --output {output} --shard 1/N writes the first")
    if len(counts) > 1:
        numbers = " and ".join(str(count) for count in counts)
        raise ShardError(f"{output}: beside it lie shards of {numbers} parts; move those of one run away")
    contents: list[ShardContent] = []
    for shard, path in files.items():
        content = read_shard(path, shard)
        first = contents[0] if contents else content
        if other := difference(first.head, content.head):
            raise ShardError(f"{path}: it is of another run than {first.path.name}: it has {other}")
        contents.append(content)
    missing = [str(shard) for number in range(counts[0]) if (shard := Shard(number + 1, counts[0])) not in files]
    if missing:
        are = "shard is" if len(missing) == 1 else "shards are"
        raise ShardError(f"{output}: {len(missing)} of {counts[0]} {are} missing: {_some(missing)}")
    return contents


def _check_complete(contents: Sequence[ShardContent]) -> None:
    """Raise ShardError where shards are not finished; it names the first of the images without a row."""
    unfinished = [content for content in contents if not content.is_complete]
    if not unfinished:
        return
    shards = _some([content.head["shard"] for content in unfinished])
    images = [str(entry[0]) for content in unfinished for entry in content.images[content.done :]]
    lacking = f": {counted(len(images))} without a prediction, {_some(images)}" if images else ""
    path = unfinished[0].path
    raise ShardError(f"{path}: not finished, of shard {shards}{lacking}; inference.py with the same flags goes on")


def _check_images(contents: Sequence[ShardContent]) -> None:
    """Raise ShardError unless the images of the shards, in turn, are those of the folder."""
    digest, head = hashlib.sha256(), contents[0].head
    total = sum(len(content.images) for content in contents)
    for index in range(min(total, head["images"])):
        images = contents[index % len(contents)].images
        if index // len(contents) < len(images):
            add_entry(digest, images[index // len(contents)])
    if total != head["images"] or digest.hexdigest() != head["images_sha256"]:
        raise ShardError(f"{contents[0].path}: the images of the shards are not those of one folder, each once")


def _labels(head: Record, metadata: ModelMetadata, root: Path) -> LabelFiles | LabelList | None:
    if head["flags"]["labels"] is None:
        return None
    return label_writer(head["flags"]["labels"], Path(head["flags"]["save_images"]), root, metadata, predicted_tasks)


def _boxes(record: Record, entry: Entry, metadata: ModelMetadata, root: Path) -> BoxPrediction:
    objects = tuple(FoundObject(label, score, tuple(box)) for label, score, box in record["objects"])
    width, height = record["size"]
    return BoxPrediction(str(source_of(entry, root)), classes_of(metadata), (width, height), objects)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
