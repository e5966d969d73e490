"""What the server of a review holds: the people, their sessions, the images, and the reviews that are open."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from data_loader.samples import ListError
from datasets.errors import DatasetError
from datasets.records import value
from deploy.service.origins import AllowedOrigins
from review.errors import RefusedError, ReviewError
from review.images import ImageShow
from review.label_task import LabelTask
from review.review import Review, open_review
from review.sessions import Sessions
from review.users import Attempts, Users

MOST_OPEN = 4  # files at once: of a fifth, the one longest unused is closed, which loses nothing


@dataclass(frozen=True)
class Options:
    """How a review was started; `input_root` None: no other file may be named at the page."""

    tags: tuple[str, ...] = ()
    feedback: bool = False
    overwrite: bool = False
    order: str = "file"
    input_root: Path | None = None
    task: LabelTask | None = None  # that is labelled, instead of tagging


class OpenReviews:
    """The reviews that are open, by file. Use it as a context, which closes them."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._open: OrderedDict[Path, tuple[Review, ExitStack]] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> OpenReviews:
        return self

    def __exit__(self, *_: object) -> None:
        for _review, stack in self._open.values():
            stack.close()

    def add(self, source: Path, stack: ExitStack, review: Review) -> None:
        """Add an open review."""
        self._open[source] = review, stack

    def find(self, source: Path) -> Review | None:
        """Return a file's review where it is open; it takes no time."""
        if source not in self._open:
            return None
        self._open.move_to_end(source)
        return self._open[source][0]

    def get(self, source: Path) -> Review:
        """Return a file's review, opened where it is not, in any thread. Raises UserError, OSError."""
        with self._lock:
            if found := self._open.get(source):
                return found[0]
            stack = ExitStack()
            how = self._options
            opened = open_review(source, how.tags, feedback=how.feedback, overwrite=how.overwrite, task=how.task)
            review = stack.enter_context(opened)
            self.add(source, stack, review)
            return review

    def close_oldest(self) -> None:
        """Close what was opened too many, in the thread that changes reviews; the results so far are written.

        Raises OSError.
        """
        while len(self._open) > MOST_OPEN:
            source, (review, stack) = next(iter(self._open.items()))
            try:
                with stack:
                    if self._options.feedback:
                        review.write_result()
            finally:
                del self._open[source]  # not before: `get` would lock it beside this lock, whose end ends both

    def all(self) -> Sequence[Review]:
        """Return the reviews that are open."""
        return [review for review, _ in list(self._open.values())]


@dataclass
class Desk:
    """The parts that the routes share; `finish` ends the server."""

    options: Options
    source: Path | None  # that a new session begins with
    reviews: OpenReviews
    images: ImageShow
    users: Users
    origins: AllowedOrigins
    finish: Callable[[], None]
    cookie: str
    is_finished: bool = False
    sessions: Sessions = field(default_factory=Sessions)
    attempts: Attempts = field(default_factory=Attempts)

    def named_source(self, text: str) -> Path:
        """Return the file that a person names, below the input root. Raises RefusedError."""
        root = self.options.input_root
        if root is None:
            raise RefusedError(403, "another file cannot be opened here: start with --user-input")
        path = Path(text)
        with suppress(OSError, ValueError, RuntimeError):
            found = (root / path).resolve()
            if found.is_relative_to(root.resolve()) and found.suffix == ".json" and found.is_file():
                return found
        raise RefusedError(404, f'there is no "{text[:200]}" below the folder that may be opened')

    def image_path(self, review: Review, index: int) -> Path:
        """Return the file of a record's image; of a JSON that a person named, none outside the input root.

        Raises RefusedError.
        """
        name = value(review.annotations.records[index], "image_file")
        if not name:
            raise RefusedError(404, "the record names no file; its address is not fetched")
        path = review.annotations.folder / name
        root = self.options.input_root
        if root is not None and review.annotations.path != self.source:
            with suppress(OSError, RuntimeError):
                if path.resolve().is_relative_to(root.resolve()):
                    return path
            raise RefusedError(404, "the image is a link to outside the folder that may be opened")
        return path

    def opened(self, source: Path) -> Review:
        """Return a file's review. Raises RefusedError with the reason why it cannot be opened."""
        try:
            return self.reviews.get(source)
        except (ReviewError, ListError, DatasetError) as error:
            raise RefusedError(422, str(error).replace(f"{source.parent}{os.sep}", "")) from error
        except OSError as error:
            raise RefusedError(422, f"{source.name}: {error.strerror or error}") from error
