"""How the platform's programs end: sentences on stderr, exit codes, signals, and a metric file that is always true."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.signals import Stopped
from platforms.tianji.files import PlatformError, write_json

EXIT_MISTAKE = 2
UNFINISHED = "not finished: it is still running, or it was ended without a word"


class Ended(RuntimeError):
    """A program that did not do its work, for no mistake of the user's; the message is the sentence to show."""

    def __init__(self, sentence: str, exit_code: int = 1) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def told(program: str, work: Callable[[], int]) -> int:
    """Do the work and give its exit code; what ends it early becomes a sentence on stderr and a code of its own."""
    try:
        return work()
    except (Ended, Stopped) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:  # before the training, or pressed twice
        return 128 + signal.SIGINT
    except OSError as error:
        print(f"{program}: {error.filename or 'stdout'}: {error.strerror or error}", file=sys.stderr)
        return EXIT_MISTAKE
    except ValueError as error:
        # Every mistake of the user's is a ValueError of a kind of ours, and its message the sentence to show.
        if type(error) is ValueError or isinstance(error, UnicodeError):
            raise
        print(f"{program}: {error}", file=sys.stderr)
        return EXIT_MISTAKE


@contextmanager
def recorded(metric: Path, failed: Callable[[str], Mapping[str, Any]]) -> Iterator[None]:
    """Have the metric file say "not finished" while this lasts, and what went wrong where it ends in an error.

    `failed` gives the file of a failed run from a sentence. Raises PlatformError where it cannot be written at all.
    """
    write_json(metric, failed(UNFINISHED))
    try:
        yield
    except BaseException as error:
        try:
            write_json(metric, failed(_sentence(error)))
        except PlatformError as problem:  # "not finished" stands there, which is as true
            warn(str(problem))
        raise


def log(text: str) -> None:
    """Write a line to stdout."""
    print(text, flush=True)


def warn(text: str) -> None:
    """Write a warning to stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _sentence(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "stopped by SIGINT"
    if isinstance(error, (ValueError, Ended, OSError)):
        return str(error)
    return f"{type(error).__name__}: {error}"
