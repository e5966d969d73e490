"""Standard annotations on disk: annotation.json with meta.json beside it, read, checked and written.

A file has one record a line, so that a million records are read and written one by one.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import atomic_path, write_atomic
from common.formatting import parse_json, short_json
from data_loader.image_files import natural_sorted
from data_loader.problems import Problems
from data_loader.samples import ListError, current_folder
from datasets.errors import DatasetError
from datasets.records import NO_LABEL, Record, complete, find_problems, normalized, sparse, value

ANNOTATION, META = "annotation.json", "meta.json"
DEFAULT_META: dict[str, Any] = {"info": "", "author": "", "license": "", "extent": {"total": 0}}
DEFAULT_DETAILS: dict[str, Any] = {"skeleton": [], "model": "", "camera": "", "category": []}
SUFFIXES = (".json", ".jsonl")
SHARED, SIZES = ("image_label_name", "tag", "clip_tag"), ("width", "height")


@dataclass
class Annotations:
    """The records of a file, without the keys that have their defaults, and its classes.

    `meta` is the content of meta.json, `masks_dropped` the number of RLE masks, which are not read.
    """

    path: Path
    records: list[Record] = field(repr=False)
    category: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    masks_dropped: int = 0

    @property
    def folder(self) -> Path:
        """Return the folder that the records' paths start from."""
        return self.path.parent

    def name(self, index: int) -> str:
        """Return how messages name a record."""
        record = self.records[index]
        return value(record, "image_file") or value(record, "image_url") or f"record {index}"


def source_files(text: str) -> list[Path]:
    """Return the files of `A,B`; a folder stands for its *.json but meta.json. Raises DatasetError."""
    files: list[Path] = []
    for part in text.split(","):
        path = Path(part)
        if path.is_dir():
            found = natural_sorted(each.name for each in path.iterdir() if _is_annotation(each))
            if not found:
                raise DatasetError(f"{path}: no *.json in it; name the file with the annotations")
            files += [path / name for name in found]
        elif not part or not path.exists():
            raise DatasetError(f'--src "{part}": it is not there{current_folder(part)}')
        else:
            files.append(path)
    return files


def read_annotations(path: Path, wrong: list[str] | None = None) -> Annotations:
    """Return a file's records and classes; JSON and JSON lines are read. Raises ListError with every problem.

    The classes are meta.json's, else those that the records name. With `wrong` the records' problems are put there
    instead, and the records are left out.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DatasetError(f"{path}: expected annotations in a file that ends in {' or '.join(SUFFIXES)}")
    meta = read_meta(path.parent / META)
    category = category_of(meta)
    found = Annotations(path, [], tuple(category), meta)
    problems = Problems()
    with collector_paused():
        for index, record in enumerate(_iter_records(path)):
            if isinstance(record, dict):
                segments = record.get("segments")
                found.masks_dropped += sum(isinstance(e, dict) for e in segments) if isinstance(segments, list) else 0
                record = sparse(normalized(record))
            sentences = [f"record {index}: {problem}" for problem in find_problems(record, category)]
            if wrong is not None:
                wrong += sentences
            else:
                problems.extend((0, sentence) for sentence in sentences)
            if not sentences and not problems.count:
                found.records.append(_with_shared_texts(record))
    problems.raise_any(str(path))
    if not category:
        found.category = _named_classes(found)
    return found


def read_meta(path: Path) -> dict[str, Any]:
    """Return the content of meta.json, the defaults where there is none. Raises DatasetError."""
    if not path.is_file():
        return {**DEFAULT_META, "meta": dict(DEFAULT_DETAILS)}
    try:
        found = parse_json(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not valid JSON: {error}") from error
    details = found.get("meta", {}) if isinstance(found, dict) else None
    if not isinstance(details, dict):
        raise DatasetError(
            f'{path}: expected {{"info": "", ..., "meta": {{"category": [...]}}}}, got {short_json(found)}'
        )
    category = details.get("category", [])
    is_list = isinstance(category, list) and all(isinstance(name, str) and name.strip() for name in category)
    if not is_list or len(set(category)) != len(category):
        raise DatasetError(f"{path}: category must be a list of different names, got {short_json(category)}")
    return {**DEFAULT_META, **found, "meta": {**DEFAULT_DETAILS, **details}}


def category_of(meta: dict[str, Any]) -> list[str]:
    """Return the class names of meta.json's content."""
    names: list[str] = meta["meta"]["category"]
    return names


def check_target(folder: Path, overwrite: bool, name: str = ANNOTATION) -> None:
    """Raise DatasetError for a target that is a file, or holds this file and is not to be overwritten."""
    if folder.exists() and not folder.is_dir():
        raise DatasetError(f"--tgt {folder}: it is a file, not a folder")
    if (folder / name).exists() and not overwrite:
        raise DatasetError(f"--tgt {folder}: it holds {name} already; choose another folder or add --overwrite")


def write_annotations(
    folder: Path,
    records: Sequence[Record],
    category: Sequence[str],
    meta: dict[str, Any] | None = None,
    *,
    name: str = ANNOTATION,
) -> Path:
    """Write a file of records, and meta.json before it; return its path. The same records are the same bytes.

    Raises OSError, and DatasetError for a number that JSON does not have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = meta or {}
    details = {**DEFAULT_DETAILS, **given.get("meta", {}), "category": list(category)}
    content = {**DEFAULT_META, **given, "extent": {"total": len(records)}, "meta": details}
    write_atomic(folder / META, json.dumps(content, ensure_ascii=False) + "\n")
    write_records(folder / name, records)
    return folder / name


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write a file of records alone, whole or not at all. Raises OSError, DatasetError."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(_lines(records))


def free_name(folder: Path, stem: str) -> str:
    """Return the first of stem.json, stem_0.json, stem_1.json, ... that is not in a folder."""
    name, number = f"{stem}.json", 0
    while (folder / name).exists():
        name, number = f"{stem}_{number}.json", number + 1
    return name


def _with_shared_texts(record: Record) -> Record:
    """Return a record whose names, tags and sizes are the same objects as in others: a third of a record's memory."""
    for key in SHARED:
        if key in record:
            record[key] = sys.intern(record[key])
    for key in SIZES:
        if key in record:
            record[key] = _shared_number(record[key])
    if names := record.get("label_names"):
        record["label_names"] = list(map(sys.intern, names))
    return record


@functools.lru_cache(maxsize=4096)
def _shared_number(number: int) -> int:
    return number


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the search for circular references, of which JSON has none: it took half the time of many records."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _is_annotation(path: Path) -> bool:
    return path.suffix == ".json" and path.name != META and not path.name.startswith(".") and path.is_file()


def _lines(records: Iterable[Record]) -> Iterator[str]:
    yield "[\n"
    before = ""
    for record in records:
        try:
            text = json.dumps(complete(record), ensure_ascii=False, allow_nan=False)
        except ValueError as error:
            raise DatasetError(f"{value(record, 'image_file')}: a value is NaN or infinite") from error
        yield before + text
        before = ",\n"
    yield "\n]\n" if before else "]\n"


def _iter_records(path: Path) -> Iterator[Any]:
    """Yield a file's records; one that is written line by line is never held whole. Raises ListError."""
    try:
        with path.open("rb") as file:
            head = file.readline().strip().removeprefix(b"\xef\xbb\xbf")
        if head == b"[" and _is_by_line(path):
            yield from _by_line(path, 1)
        elif head.startswith(b"{") and (path.suffix.lower() == ".jsonl" or _is_object(head)):
            yield from _by_line(path, 0)
        else:
            yield from _whole(path)
    except UnicodeDecodeError as error:
        raise ListError([f"{path}: it is not UTF-8 (byte {error.start})"]) from error
    except OSError as error:
        raise ListError([f"{path}: cannot be read: {error.strerror}"]) from error


def _is_by_line(path: Path) -> bool:
    """Return whether the second line of a list is a whole record."""
    with path.open("rb") as file:
        file.readline()
        second = file.readline().strip().rstrip(b",")
    return second == b"]" or _is_object(second)


def _is_object(line: bytes) -> bool:
    try:
        return "image_file" in json.loads(line)
    except (ValueError, RecursionError, TypeError):
        return False


def _by_line(path: Path, skipped: int) -> Iterator[Any]:
    last = ""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            last = text or last
            if number <= skipped or not text or (skipped and text == "]"):
                continue
            yield _parsed(text.removesuffix(",") if skipped else text, path, number)
    if skipped and last != "]":
        raise ListError([f"{path}: not valid JSON: it ends before its last ]; the file is cut off"])


def _whole(path: Path) -> Iterator[Any]:
    content = _parsed(path.read_text(encoding="utf-8-sig"), path, 1)
    if not isinstance(content, list):
        raise ListError([f"{path}: {_other_form(content)}"])
    yield from content


def _parsed(text: str, path: Path, line: int) -> Any:
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        raise ListError([f"{path}:{line + error.lineno - 1}:{error.colno}: not valid JSON: {error.msg}"]) from error
    except (ValueError, RecursionError) as error:
        raise ListError([f"{path}: not valid JSON: {error}"]) from error


def _other_form(content: Any) -> str:
    expected = 'expected standard annotations, [{"image_file": ...}, ...]'
    if isinstance(content, dict) and {"images", "annotations"} <= content.keys():
        return f"{expected}, got COCO's form; read it with extract/coco"
    return f"{expected}, got {short_json(content)}"


def _named_classes(found: Annotations) -> tuple[str, ...]:
    """Return the classes that records name where meta.json names none: by their indices. Raises ListError."""
    names: dict[int, str] = {}
    most = NO_LABEL
    for index, record in enumerate(found.records):
        labels = [*value(record, "labels"), value(record, "image_label")]
        texts = [*(value(record, "label_names") or [""] * (len(labels) - 1)), value(record, "image_label_name")]
        for label, name in zip(labels, texts, strict=True):
            most = max(most, label)
            if label != NO_LABEL and name and names.setdefault(label, name) != name:
                both = f'"{names[label]}" and "{name}"'
                text = f"class {label} is called {both}; name the classes under category in {META}"
                raise ListError([f"{found.path}: record {index}: {text}"])
    listed = tuple(names.get(label, str(label)) for label in range(most + 1))
    if len(set(listed)) != len(listed):
        raise ListError([f"{found.path}: two classes have the same name; name them under category in {META}"])
    return listed
