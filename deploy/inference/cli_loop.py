"""Answering for one image after the other: lines, results, copies, and how it ended."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.cli import EXIT_BROKEN_PIPE, _forget_stdout, _refusal
from common.console import text_columns
from deploy.inference.prediction import Prediction

if TYPE_CHECKING:
    from tqdm import tqdm


@dataclass
class Tally:
    """What has become of the images so far, and why it ended before the last one, where it did."""

    answered: int = 0
    failed: int = 0
    problem: str = ""
    exit_code: int = 0


def predict_all(
    predictions: Generator[Prediction, None, None],
    record: Callable[[Prediction], None],
    line: Callable[[Prediction], str],
    tally: Tally,
    stopped_by: Callable[[], int | None],
    is_shown: Callable[[Prediction], bool],
) -> None:
    """Record and print the answers until they, or the patience of whoever started it, end; `tally` tells how it went.

    `stopped_by` gives the number of the signal that asks for the end; an answer gets a line where it `is_shown`.
    Raises ValueError where nothing was answered.
    """
    from tqdm import tqdm

    # The number of images is not known before the folder has been walked, so the bar counts without a percentage.
    with closing(predictions), tqdm(unit=" images", disable=None, leave=False) as bar:
        try:
            for prediction in predictions:
                record(prediction)
                tally.failed += bool(prediction.error)
                tally.answered += not prediction.error
                if prediction.error or is_shown(prediction):
                    _log(line(prediction), bar)
                bar.update()
                if number := stopped_by():
                    tally.exit_code = 128 + number
                    break
        except BrokenPipeError:  # whoever read the lines has gone
            _forget_stdout()
            tally.exit_code = EXIT_BROKEN_PIPE
        except OSError as error:
            tally.problem, tally.exit_code = _refusal(error), 2
        except ValueError as error:  # the net or the disk failed: the results so far are kept
            if not tally.answered and not tally.failed:
                raise  # there are none: those of an earlier run stay
            tally.problem, tally.exit_code = str(error), 2


def report_end(program: str, tally: Tally, sums: str, places: str) -> int:
    """Print the sums and where the results are, and on stderr why it ended early; give the exit code."""
    if tally.exit_code != EXIT_BROKEN_PIPE:
        print(with_places(sums, places))
    if tally.problem:
        print(f"{program}: {tally.problem}", file=sys.stderr)
    return tally.exit_code or (1 if tally.failed else 0)


def line_columns() -> int | None:
    """Give the columns that a line may have: a terminal's, or any number (None)."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def with_places(sums: str, places: str) -> str:
    """Add where the results are: on a terminal that is too narrow, in a line of its own."""
    line = f"{sums}; results in {places}"
    if not places:
        return sums
    if sys.stdout.isatty() and text_columns(line) >= shutil.get_terminal_size().columns:
        return f"{sums}\nresults in {places}"
    return line


def until_unreadable(images: Iterator[str], tally: Tally) -> Iterator[str]:
    """End at a folder that cannot be read, so that the images before it are still answered."""
    try:
        yield from images
    except OSError as error:
        tally.problem, tally.exit_code = f"{error.filename}: cannot read the folder: {error.strerror}", 2


def _log(line: str, bar: tqdm) -> None:
    if bar.disable:
        print(line)
    else:
        bar.write(line, file=sys.stdout)
