"""What people have said of the records: tags or labels, by whom and when; kept by a journal, undone press by press."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from review.errors import RefusedError, ReviewError
from review.journal import Event, Journal
from review.label_task import LabelTask
from review.labels import Labels

UNDO_PRESSES = 200  # of a person, that can be undone


@dataclass(frozen=True)
class Mark:
    """The tags of a record that has been reviewed, or its labels, who gave them, and when (UTC)."""

    tags: tuple[str, ...] = ()
    user: str = ""
    time: str = ""
    labels: Labels | None = None


Change = dict[int, "Mark | None"]  # None: not reviewed


class Marks:
    """The marks of all records that have been reviewed, by the record's index; with a task they hold labels.

    Raises ReviewError for a journal that does not fit, and OSError.
    """

    def __init__(self, journal_path: Path, source: Path, num_records: int, task: LabelTask | None = None) -> None:
        self.of: dict[int, Mark] = {}
        self._presses: dict[str, deque[tuple[Change, Change]]] = defaultdict(lambda: deque(maxlen=UNDO_PRESSES))
        self._num_records, self._task = num_records, task
        self._journal = Journal(journal_path, source, task.head if task else {})
        for number, event in enumerate(self._journal.events, 2):
            try:
                self._apply(event)
            except (KeyError, TypeError, ValueError, AttributeError, IndexError, RefusedError) as error:
                self.close()
                raise ReviewError(
                    f"{journal_path}:{number}: not an event of this review; move the file away"
                ) from error
        self._journal.forget_events()

    def change(self, records: Iterable[int], user: str, tag: str = "", *, is_on: bool = True) -> Change:
        """Give records a tag, or take it away, and count them as reviewed; return their marks. Raises OSError.

        Without a tag they are reviewed as they are, or with `is_on` False not reviewed.
        """
        return self._set({str(record): self._tags(record, tag, is_on) for record in records}, user)

    def label(self, labels: Mapping[int, Labels], user: str) -> Change:
        """Give records their labels, which have been checked; return their marks. Raises OSError."""
        return self._set({str(record): found for record, found in labels.items()}, user)

    def undo(self, user: str, taken: Collection[int] = ()) -> Change:
        """Take back a person's latest press; return the marks of its records, {} where there is none. Raises OSError.

        A record that was changed again since, and one that is `taken` by another person, stays as it is.
        """
        while presses := self._presses[user]:
            before, after = presses[-1]
            restored = {
                str(record): None if mark is None else _kept(mark)
                for record, mark in before.items()
                if self.of.get(record) == after[record] and record not in taken
            }
            event = {"time": now(), "user": user, "restore": restored}
            self._journal.append(event)
            if changed := self._apply(event):
                return changed
        return {}

    def close(self) -> None:
        """Close the journal."""
        self._journal.close()

    def _tags(self, record: int, tag: str, is_on: bool) -> list[str] | None:
        tags = self.of[record].tags if record in self.of else ()
        if not tag:
            return list(tags) if is_on else None
        others = [each for each in tags if each != tag]
        return [*others, tag] if is_on else others

    def _set(self, given: Mapping[str, Any], user: str) -> Change:
        event = {"time": now(), "user": user, "set": given}
        self._journal.append(event)
        return self._apply(event)

    def _apply(self, event: Event) -> Change:
        """Apply an event, new or from the journal; raise KeyError, TypeError and others for what is none."""
        user = event["user"]
        if "restore" in event:
            change = {self._index(key): self._restored(mark) for key, mark in event["restore"].items()}
            self._presses[user].pop()
        else:
            change = {
                self._index(key): None if given is None else self._mark(given, user, event["time"])
                for key, given in event["set"].items()
            }
            before: Change = {record: self.of.get(record) for record in change}
            self._presses[user].append((before, dict(change)))
        for record, mark in change.items():
            if mark is None:
                self.of.pop(record, None)
            else:
                self.of[record] = mark
        return change

    def _mark(self, given: Any, user: str, time: str) -> Mark:
        if self._task is None:
            return Mark(tuple(given), user, time)
        return Mark((), user, time, self._task.checked(given))

    def _restored(self, mark: Any) -> Mark | None:
        return None if mark is None else self._mark(mark["labels" if self._task else "tag"], mark["user"], mark["time"])

    def _index(self, key: str) -> int:
        index = int(key)
        if not 0 <= index < self._num_records:
            raise IndexError(index)
        return index


def result_of(marks: Mapping[int, Mark], titles: Sequence[tuple[str, str]], tags: Sequence[str]) -> dict[str, Any]:
    """Return what `<stem>_browser.json` holds; `titles` are each record's file and what stands for the image.

    A record's tags are in the order of `tags`; others, of an earlier start, follow.
    """
    rank = {tag: number for number, tag in enumerate(tags)}
    return {
        str(index): [
            {
                **{"id": index, "type": "IMAGE", "data": titles[index][1], "title": titles[index][0]},
                "tag": sorted(marks[index].tags, key=lambda tag: (rank.get(tag, len(rank)), tag)),
                **{"user": marks[index].user, "time": marks[index].time},
            }
        ]
        for index in sorted(marks)
    }


def now() -> str:
    """Return the time in UTC, such as 2026-11-29T08:15:00Z."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _kept(mark: Mark) -> dict[str, Any]:
    given = {"tag": mark.tags} if mark.labels is None else {"labels": mark.labels}
    return {**given, "user": mark.user, "time": mark.time}
