"""One file of annotations under review: its records, marks and leases, listed by filters and in an order."""

from __future__ import annotations

import gc
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.atomic_io import write_atomic
from common.file_lock import lock_file
from common.formatting import is_utf8
from datasets.files import Annotations, collector_paused, read_annotations
from datasets.records import NO_LABEL, Record, value
from review.answers import SET_ASIDE, Answer, Judgement, answer_of
from review.errors import RefusedError, ReviewError
from review.label_task import LabelTask
from review.labels import Labels, Size
from review.leases import Leases
from review.marks import Change, Marks, result_of
from review.similarity import Similarity

ORDERS = ("file", "doubt", "class", "similarity", "wrong_label")
MOST_AT_ONCE = 100  # records of one request
NO_TAG = "-"  # as a filter: reviewed, but without a tag


@dataclass(frozen=True)
class Choice:
    """Which records to list: those that pass every filter that is set; `label` -1: without a class."""

    label: int | None = None
    tag: str = ""
    reviewed: str = ""  # "yes", or "no": not reviewed, and nobody else has it
    net: str = ""  # "contradicts", "set_aside" or "wrong_label"
    doubt: float | None = None  # at least
    name: str = ""  # a part of the file's name
    order: str = ORDERS[0]
    near: int | None = None  # by similarity: the record that the others are compared with


@dataclass
class Review:
    """A review that is open, with a task a labelling; made by `open_review`."""

    annotations: Annotations
    tags: tuple[str, ...]
    marks: Marks | None  # None: it is only looked at
    result_path: Path
    task: LabelTask | None = None
    leases: Leases = field(default_factory=Leases)
    answers: dict[int, Answer] = field(default_factory=dict)
    judgements: dict[int, Judgement] = field(default_factory=dict)
    similarity: Similarity | None = None
    sizes: dict[int, Size] = field(default_factory=dict)  # that images were asked for; (0, 0): not known
    _of_class: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))
    _names: list[str] = field(default_factory=list)
    _orders: dict[str, list[int]] = field(default_factory=dict)  # all but that of the file

    def __post_init__(self) -> None:
        with collector_paused():
            for index, record in enumerate(self.annotations.records):
                if record.get("predictions") and (answer := answer_of(record, self.annotations.category)):
                    self.answers[index] = answer
                for label in _labels_of(self.record(index)):
                    self._of_class[label].add(index)
                self._names.append(self.annotations.name(index).casefold())
            self._orders["class"] = sorted(range(len(self)), key=self._by_class)
            if self.answers:
                self._orders["doubt"] = sorted(range(len(self)), key=self._by_doubt)
        gc.freeze()  # the records stay: looking for garbage among them takes a second

    def __len__(self) -> int:
        return len(self.annotations.records)

    @property
    def orders(self) -> list[str]:
        """Return the orders that there are."""
        return [order for order in ORDERS if order == ORDERS[0] or order in self._orders]

    def add_similarity(self, similarity: Similarity) -> None:
        """Add the order by similarity; records without features come last."""
        self.similarity = similarity
        self._orders["similarity"] = self._completed(similarity.chained())

    def add_judgements(self, judgements: dict[int, Judgement]) -> None:
        """Add the order by labels that are probably wrong, the most suspicious first; records without one come last."""
        self.judgements = judgements
        self._orders["wrong_label"] = self._completed(sorted(judgements, key=lambda index: judgements[index].own))

    @property
    def num_reviewed(self) -> int:
        """Return how many records have been reviewed."""
        return len(self.marks.of) if self.marks else 0

    def record(self, index: int) -> Record:
        """Return a record, with a person's labels where it has them."""
        record, labels = self.annotations.records[index], self._labels(index)
        return self.task.record(record, labels) if self.task and labels else record

    def size(self, index: int) -> Size:
        """Return an image's (width, height), (0, 0) where it is not known."""
        record = self.annotations.records[index]
        size = value(record, "width"), value(record, "height")
        return size if all(size) else self.sizes.get(index, (0, 0))

    def draft(self, index: int) -> tuple[Labels, str]:
        """Return what is laid before a person, and where it is from: "saved", or as `draft_of` has it."""
        assert self.task is not None
        labels = self._labels(index)
        return (labels, "saved") if labels else self.task.draft(self.annotations.records[index], self.size(index))

    def listed(self, choice: Choice, user: str) -> list[int]:
        """Return the indices of the records that pass the filters, in the order."""
        found: Iterable[int] = range(len(self))  # in the file's order: any other makes the memory slow
        for passes in self._filters(choice, user):
            found = filter(passes, found)
        return list(filter(set(found).__contains__, self._ordered(choice)))

    def change(self, records: Sequence[int], user: str, tag: str, *, is_on: bool) -> Change:
        """Tag records, or with "" as the tag count them as reviewed; return their marks.

        Raises RefusedError, before anything is changed, for records that another person has, and OSError.
        """
        marks = self._open_marks()
        if self.task:
            raise RefusedError(403, "this is a labelling: there are no tags")
        if tag and tag not in self.tags:
            raise RefusedError(400, f'"{tag}" is none of the tags')
        self._take(records, user)
        return marks.change(records, user, tag, is_on=is_on)

    def label(self, records: Sequence[int], user: str, given: Any = None) -> Change:
        """Give records labels, or each its own draft; return their marks.

        Raises RefusedError, before anything is changed, for records that another person has and for labels that
        cannot be kept, and OSError.
        """
        marks = self._open_marks()
        if self.task is None:
            raise RefusedError(403, "this review is only tagged: label/start labels")
        if given is not None and len(records) > 1 and self.task.kind != "CLASS":
            raise RefusedError(400, "objects are of one record")
        self._take(records, user)
        if given is None:
            drafts = {index: self.draft(index)[0] for index in records}
            if without := [index for index, labels in drafts.items() if labels.get("label") == NO_LABEL]:
                raise RefusedError(409, f"{self.annotations.name(without[0])} has no class yet")
        else:
            drafts = dict.fromkeys(records, given)
        found = {index: self._checked(index, labels) for index, labels in drafts.items()}
        return self._reindexed(marks.label(found, user))

    def undo(self, user: str) -> Change:
        """Take back a person's latest press; return the marks that it changed. Raises OSError."""
        return self._reindexed(self._open_marks().undo(user, self.leases.held_from(user)))

    def write_result(self) -> None:
        """Write what has been reviewed to `result_path`, of a task its labels. Raises OSError."""
        if self.task:
            kept = {index: mark.labels for index, mark in self._open_marks().of.items() if mark.labels}
            self.result_path = self.task.write(self.annotations, kept, self.sizes)
            return
        records = self.annotations.records
        titles = [(name := value(record, "image_file"), name or value(record, "image_url")) for record in records]
        result = result_of(self._open_marks().of, titles, self.tags)
        write_atomic(self.result_path, json.dumps(result, ensure_ascii=False) + "\n")

    def _take(self, records: Sequence[int], user: str) -> None:
        if others := self.leases.take(records, user):
            raise RefusedError(409, f"{next(iter(others.values()))} is working on this")

    def _checked(self, index: int, labels: Any) -> Labels:
        """Return labels that may be kept; of an image that cannot be read its draft as it is. Raises RefusedError."""
        assert self.task is not None
        size = self.size(index)
        is_draft = not any(size) and labels == self.draft(index)[0]
        return self.task.checked(labels, None if is_draft else size)

    def _labels(self, index: int) -> Labels | None:
        mark = self.marks.of.get(index) if self.marks else None
        return mark.labels if mark else None

    def _reindexed(self, change: Change) -> Change:
        """List records whose labels have changed under their classes."""
        for index in change if self.task else ():
            for listed in self._of_class.values():
                listed.discard(index)
            for label in _labels_of(self.record(index)):
                self._of_class[label].add(index)
        return change

    def _open_marks(self) -> Marks:
        if self.marks is None:
            raise RefusedError(403, "this review is only looked at: start it with --feedback or --tags")
        return self.marks

    def _filters(self, choice: Choice, user: str) -> Iterator[Callable[[int], bool]]:
        """Yield the tests of a record, almost all of them look-ups in sets: a hundred thousand take no time."""
        marks = self.marks.of if self.marks else {}
        if choice.label is not None:
            yield self._of_class.get(choice.label, set()).__contains__
        if choice.reviewed == "yes":
            yield marks.__contains__
        elif choice.reviewed == "no":
            closed = {*marks, *self.leases.held_from(user)}
            yield lambda index: index not in closed
        if choice.tag == NO_TAG:
            yield {index for index, mark in marks.items() if not mark.tags}.__contains__
        elif choice.tag:
            yield {index for index, mark in marks.items() if choice.tag in mark.tags}.__contains__
        if choice.net == "contradicts":
            yield {index for index, answer in self.answers.items() if answer.contradicts}.__contains__
        elif choice.net == SET_ASIDE:
            yield {index for index, answer in self.answers.items() if answer.decision == SET_ASIDE}.__contains__
        elif choice.net == "wrong_label":
            yield {index for index, found in self.judgements.items() if found.is_wrong}.__contains__
        if choice.doubt is not None:
            least = choice.doubt
            yield {index for index, answer in self.answers.items() if answer.doubt >= least}.__contains__
        if choice.name:
            part = choice.name.casefold()
            yield lambda index: part in self._names[index]

    def _ordered(self, choice: Choice) -> Sequence[int]:
        if choice.order == "similarity" and choice.near is not None and self.similarity:
            return self._completed(self.similarity.nearest(choice.near))
        return self._orders.get(choice.order, range(len(self)))

    def _completed(self, order: list[int]) -> list[int]:
        first = set(order)
        return [*order, *(index for index in range(len(self)) if index not in first)]

    def _by_doubt(self, index: int) -> tuple[bool, float]:
        return self.answers[index].order if index in self.answers else (True, 1.0)  # those without an answer last

    def _by_class(self, index: int) -> float:
        record = self.annotations.records[index]
        labels = [value(record, "image_label"), *value(record, "labels")]
        return next((label for label in labels if label != NO_LABEL), float("inf"))


@contextmanager
def open_review(
    source: Path,
    tags: Sequence[str],
    *,
    feedback: bool = False,
    overwrite: bool = False,
    task: LabelTask | None = None,
    ask: Callable[[Annotations], None] = lambda found: None,
) -> Iterator[Review]:
    """Open a file's review, that of an earlier start with what it holds; with tags or feedback its journal is locked.

    With a task it is a labelling, whose journal lies in the task's folder. `ask` may add predictions to the records.
    Raises ReviewError for a result that is there without a journal, unless it may be overwritten, for a journal that
    another program writes or that belongs to other annotations or another task, ListError and OSError.
    """
    stem = (task.target if task else source.parent) / f"{source.stem}_{'label' if task else 'browser'}"
    result_path, journal_path = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.log.jsonl")
    if feedback and not task and result_path.exists() and not journal_path.exists() and not overwrite:
        raise ReviewError(f"{result_path}: it is there already, without its journal; move it away or add --overwrite")
    if not is_utf8(source.name):
        raise ReviewError(f"{source}: the name is not UTF-8; rename the file")
    before = _stamp(source)
    found = read_annotations(source)
    if not found.records:
        raise ReviewError(f"{source}: no record in it")
    if task:
        found = task.with_classes(found)
    ask(found)
    with ExitStack() as stack:
        marks = None
        if feedback or tags:
            if _stamp(source) != before:
                raise ReviewError(f"{source}: it changed while it was read; start again")
            stem.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(stem, source))
            marks = Marks(journal_path, source, len(found.records), task)
            stack.callback(marks.close)
        yield Review(found, tuple(tags), marks, result_path, task)


def _labels_of(record: Record) -> set[int]:
    labels = {*value(record, "labels"), value(record, "image_label")} - {NO_LABEL}
    return labels or {NO_LABEL}


def _stamp(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


@contextmanager
def _locked(stem: Path, source: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(lock_file(stem.with_name(f".{stem.name}.lock")))
        except BlockingIOError as error:
            raise ReviewError(f"{source}: another program is reviewing it; open that one's page instead") from error
        yield
