"""The loop over a program's images: lines, results, and how it ended."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from common.cli import EXIT_BROKEN_PIPE, discard_stdout, os_error_text
from common.console import text_columns
from common.errors import UserError
from common.signals import StopRequest
from deploy.inference.prediction import Prediction

if TYPE_CHECKING:
    from tqdm import tqdm

    from deploy.backends.base import Backend

P = TypeVar("P", bound=Prediction)
T = TypeVar("T")


@dataclass
class Tally:
    """How many images were predicted, failed, or have no copy, and why the loop ended early, where it did."""

    predicted: int = 0
    failed: int = 0
    uncopied: int = 0
    before: int = 0  # by an earlier start, of which `failed_before` failed
    failed_before: int = 0
    problem: str = ""
    exit_code: int = 0
    started: float = field(default_factory=time.perf_counter)

    def speed(self, backend: Backend) -> str:
        """Return the images per second until now, and what they ran on."""
        rate = (self.predicted + self.failed) / (time.perf_counter() - self.started)
        return f"{rate:.1f} images/s on {backend.name} {backend.device}"

    def log_uncopied(self, program: str, file: str, error: UserError) -> None:
        """Count an image that has a prediction and no copy, and print why."""
        self.uncopied += 1
        print(f"{program}: {file}: it has a prediction, and is not copied: {error}", file=sys.stderr)


def predict_all(
    predictions: Generator[P, None, None], record: Callable[[P], None], line: Callable[[P], str], tally: Tally
) -> None:
    """Record and print the predictions until they end or a signal asks for the end; `tally` counts them.

    `line` returns what is printed of one, "" for nothing. Raises UserError where the first batch fails.
    """
    from tqdm import tqdm

    # The number of images is not known before the folder has been walked, so the bar counts without a percentage.
    with StopRequest() as stop, closing(predictions), tqdm(unit=" images", disable=None, leave=False) as bar:
        try:
            for prediction in predictions:
                record(prediction)
                tally.failed += bool(prediction.error)
                tally.predicted += not prediction.error
                if text := line(prediction):
                    _log(text, bar)
                bar.update()
                if stop.received:
                    tally.exit_code = 128 + stop.received
                    break
        except BrokenPipeError:  # the reader of the lines has gone
            discard_stdout()
            tally.exit_code = EXIT_BROKEN_PIPE
        except OSError as error:
            tally.problem, tally.exit_code = os_error_text(error), 2
        except UserError as error:  # the net or the disk failed: the results so far are kept
            if not tally.predicted and not tally.failed:
                raise  # there are none: those of an earlier run stay
            tally.problem, tally.exit_code = str(error), 2


def report_end(program: str, tally: Tally, sums: str, places: str) -> int:
    """Print the sums and where the results are, and on stderr why it ended early; return the exit code."""
    if tally.exit_code != EXIT_BROKEN_PIPE:
        print(with_places(sums, places))
    if tally.problem:
        print(f"{program}: {tally.problem}", file=sys.stderr)
    return tally.exit_code or (1 if tally.failed or tally.failed_before or tally.uncopied else 0)


def line_columns() -> int | None:
    """Return the columns that a line may have: a terminal's, or None for any number."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def with_places(sums: str, places: str) -> str:
    """Add where the results are: on a terminal that is too narrow, in a line of its own."""
    line = f"{sums}; results in {places}"
    if not places:
        return sums
    if sys.stdout.isatty() and text_columns(line) >= shutil.get_terminal_size().columns:
        return f"{sums}\nresults in {places}"
    return line


def until_unreadable(images: Iterator[T], tally: Tally) -> Iterator[T]:
    """End at a folder that cannot be read, so that the images before it still get their predictions."""
    try:
        yield from images
    except OSError as error:
        tally.problem, tally.exit_code = f"{error.filename}: cannot read the folder: {error.strerror}", 2


def _log(line: str, bar: tqdm) -> None:
    if bar.disable:
        print(line)
    else:
        bar.write(line, file=sys.stdout)
