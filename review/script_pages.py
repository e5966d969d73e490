"""The pages that a script fills: records are collected in a folder, then served until people have finished."""

from __future__ import annotations

import filecmp
import json
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from datasets.files import ANNOTATION, read_annotations, write_annotations
from datasets.pictures import place_file
from datasets.records import NO_LABEL, Record, sparse
from review.desk import Options
from review.errors import ReviewError
from review.label_results import label_results
from review.label_task import LabelTask
from review.labels import KINDS
from review.marks import now
from review.recording import IMAGE, Item, id_of, items_of, png_of
from review.review import Review
from review.script_config import ScriptConfig
from review.serving import serve_review

BROWSER_KEYS: dict[str, Any] = {"tags": ["valid", "invalid"]}
FINISHED = "finished"  # an empty file in a folder whose work the script has taken
LABEL_KEYS: dict[str, Any] = {"metas": {"category": []}, "label_type": ""}


class Collected:
    """Records in a folder, each with its id; their images are written at once.

    Where the folder holds people's work on the same records, it goes on. Raises ReviewError for other records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ids: list[int | str] = []
        self.records: list[Record] = []
        self._known: set[int | str] = set()
        self._has_work = any(folder.glob("*.log.jsonl"))

    def place(self, record_id: int | str) -> str:
        """Return the name of a new record's files, without an ending. Raises ReviewError for an id that is there."""
        if record_id in self._known:
            raise ReviewError(f"record {record_id!r} was recorded already")
        self._known.add(record_id)
        self.ids.append(record_id)
        return str(record_id) if isinstance(record_id, int) else f"text_{len(self.ids)}"

    def write(self, name: str, png: bytes) -> str:
        """Write an image; return its path in the folder. Raises OSError."""
        path = self.folder / name
        if not path.is_file() or path.read_bytes() != png:
            self._check_is_new()
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, png)
        return name

    def link(self, source: Path, name: str) -> str:
        """Link or copy an image; return its path in the folder. Raises OSError."""
        path = self.folder / name
        if path.is_file() and not filecmp.cmp(source, path, shallow=False):
            self._check_is_new()
        place_file(source, path, overwrite=True)
        return name

    def source(self, category: Sequence[str] = ()) -> Path:
        """Return the annotations of the records, written. Raises ReviewError where there are none, and OSError."""
        if not self.records:
            raise ReviewError("nothing was recorded, so there is nothing to look at")
        path = self.folder / ANNOTATION
        if self._has_work and read_annotations(path).records != list(map(sparse, self.records)):
            self._check_is_new()
        return write_annotations(self.folder, self.records, category).resolve()

    def _check_is_new(self) -> None:
        if self._has_work:
            what = "it holds people's work on other records, which was not finished"
            raise ReviewError(f'{self.folder}: {what}; move it away, or name another "folder" in the config')


def free_folder(folder: Path) -> Path:
    """Return a folder, or the first of folder_1, folder_2, ... where what it held was finished."""
    number, found = 0, folder
    while (found / FINISHED).exists():
        number += 1
        found = folder.with_name(f"{folder.name}_{number}")
    return found


class TagPage:
    """A page on which people tag what a script records."""

    def __init__(self, config: ScriptConfig) -> None:
        self._config, self._collected = config, Collected(free_folder(config.folder))
        self._items: list[list[dict[str, Any]]] = []
        self._result: dict[str, Any] | None = None
        tags = tuple(config.values["tags"])
        if any(not isinstance(tag, str) or not tag or "," in tag for tag in tags) or len(set(tags)) != len(tags):
            raise ReviewError(f"config: tags must be different texts without a comma, got {list(tags)!r}")
        self._options = Options(tags, feedback=True)

    def record(self, record: Mapping[str, Any]) -> None:
        """Add a record: its first image is looked at. Raises ReviewError, OSError."""
        items = items_of(record, self._config.color)
        stem = self._collected.place(id_of(record))
        views = [self._view(item, f"{stem}_{number}" if number else stem) for number, item in enumerate(items)]
        images = [view["data"] for view in views if view["type"] == IMAGE]
        texts = [f"{view['title']}: {view['data']}" for view in views if view["type"] != IMAGE]
        made = {"image_file": images[0] if images else "", "tag": "; ".join(texts)}
        self._collected.records.append(made)
        self._items.append(views)

    def end(self) -> None:
        """Note that it is finished, where it is: the next start begins anew. Raises OSError."""
        if self._result is not None:
            write_atomic(self._collected.folder / FINISHED, "")

    def waiting(self) -> None:
        """Serve the page until every record has been reviewed and Finish is pressed. Raises UserError, OSError."""
        source = self._collected.source()
        serve(self._config, self._options, source)
        path = source.with_name(f"{source.stem}_browser.json")
        self._result = json.loads(path.read_text(encoding="utf-8"))

    def download(self) -> dict[str, Any]:
        """Return what was said of each record, by its index: an entry for each of its values, with the tags."""
        if self._result is None:
            self.waiting()
        found = self._result or {}
        return {
            index: [{**view, "id": self._collected.ids[int(index)], **_said(entry)} for view in self._items[int(index)]]
            for index, (entry,) in found.items()
        }

    def _view(self, item: Item, stem: str) -> dict[str, Any]:
        data = self._collected.write(f"{stem}.png", item.data) if item.kind == IMAGE else item.data
        return {"type": item.kind, "data": str(data) if isinstance(data, Path) else data, "title": item.title}


class LabelPage:
    """A page on which people label what a script records, in rounds."""

    def __init__(self, config: ScriptConfig) -> None:
        self._config, self._folder = config, free_folder(config.folder)
        self._kind = config.values["label_type"].upper() or KINDS[0]
        if self._kind not in KINDS:
            raise ReviewError(f"config: label_type must be one of {', '.join(KINDS)}, got {self._kind!r}")
        self._category = _category(config.values["metas"])
        self._collected: Collected | None = None
        self._files: list[str] = []
        self._times: list[str] = []
        self._review: Review | None = None
        self._round, self._is_finished = 0, False

    def labeling(self) -> None:
        """Begin a round."""
        self._round += 1
        self._collected = Collected(self._folder / f"round_{self._round}")
        self._files, self._times, self._review, self._is_finished = [], [], None, False

    def record(self, record: Mapping[str, Any]) -> None:
        """Add what is to be labelled: an array under "image", or a path under "image_file".

        Raises ReviewError, OSError.
        """
        collected = self._open_round()
        record_id = id_of(record)
        where = f"record {record_id}"
        if ("image" in record) == ("image_file" in record):
            raise ReviewError(f'{where} must have an image or an image_file: {{"id": 0, "image": array}}')
        size = {}
        if "image" in record:
            png = png_of(record["image"], f'{where}: "image"', self._config.color)
            name = collected.write(f"{collected.place(record_id)}.png", png)
            size = dict(zip(("height", "width"), map(int, record["image"].shape[:2]), strict=True))
            self._files.append(name)
        else:
            source = Path(str(record["image_file"]))
            if not source.is_file():
                raise ReviewError(f"{where}: there is no file {str(source)[:200]!r}")
            name = collected.link(source, f"{collected.place(record_id)}{source.suffix}")
            self._files.append(source.as_posix())
        collected.records.append({"image_file": name, "image_label": NO_LABEL, **size})
        self._times.append(now())

    def download(self) -> list[dict[str, Any]]:
        """Serve the page until Finish is pressed; return what people drew. Raises UserError, OSError."""
        collected = self._open_round()
        source = collected.source(self._category)
        task = LabelTask(self._kind, self._category, collected.folder)
        options = Options(feedback=True, task=task)
        if not self._is_finished:
            serve(self._config, options, source, self._keep)
            self._is_finished = True
        assert self._review is not None
        return label_results(self._review, task, collected.ids, self._files, self._times, self._config.name)

    def waiting(self) -> None:
        """End the round, and empty it."""
        self._collected = None

    def end(self) -> None:
        """End the rounds: the next start begins anew where the last one is finished. Raises OSError."""
        if self._is_finished:
            write_atomic(self._folder / FINISHED, "")
        self.waiting()

    def state(self) -> dict[str, Any]:
        """Return where the labelling is: "stage" is collect, label or finish."""
        stage = "finish" if self._is_finished else "label" if self._review else "collect"
        return {
            "state": "labeling" if self._collected else "waiting",
            "stage": stage if self._collected else "",
            "round": self._round,
            "sample_num": len(self._collected.records) if self._collected else 0,
            "sample_num_completed": self._review.num_reviewed if self._collected and self._review else 0,
        }

    def _keep(self, review: Review) -> None:
        self._review = review

    def _open_round(self) -> Collected:
        if self._collected is None:
            raise ReviewError("no round has begun: call labeling() first")
        return self._collected


def serve(
    config: ScriptConfig, options: Options, source: Path, prepare: Callable[[Review], None] = lambda review: None
) -> None:
    """Serve a page until it is finished; a signal ends the script. Raises UserError, OSError."""
    code = serve_review(config.place, options, source, config.users, prepare=prepare)
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def _said(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("tag", "user", "time")}


def _category(metas: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the classes of {"category": [{"class_name": "A", "class_index": 0}]}. Raises ReviewError."""
    form = '{"category": [{"class_name": "A", "class_index": 0}, ...]}'
    try:
        names = {entry["class_index"]: entry["class_name"] for entry in metas["category"]}
    except (KeyError, TypeError) as error:
        raise ReviewError(f"config: metas must be {form}") from error
    indices = sorted(index for index in names if type(index) is int)
    texts = [name for name in names.values() if isinstance(name, str) and name.strip()]
    if not names or indices != list(range(len(metas["category"]))) or len(set(texts)) != len(names):
        raise ReviewError(f"config: metas must be {form}, with different names and indices that count from 0")
    return tuple(names[index] for index in indices)
