"""What every command-line program shares: number types and exit codes."""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

EXIT_MISTAKE, EXIT_BROKEN_PIPE = 2, 141  # 128 + SIGPIPE


def number(low: float, high: float) -> Callable[[str], float]:
    """Give what reads a number from `low` to `high` off the command line: a whole one where `low` is."""
    is_whole = isinstance(low, int)

    def parse(text: str) -> float:
        try:
            value = int(text) if is_whole else float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            title = "a whole number" if is_whole else "a number"
            raise argparse.ArgumentTypeError(f'must be {title} from {low} to {high}, got "{text}"')
        return value

    return parse


def named_path(text: str) -> Path:
    """Read a path. Raises ArgumentTypeError for an empty text, which would be the present folder."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text")
    return Path(text)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Give what reads a flag's whole number from `low` to `high`."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text[:10]) <= high:
            raise argparse.ArgumentTypeError(f'must be a whole number from {low} to {high}, got "{text}"')
        return int(text)

    return parse


def as_program(name: str, work: Callable[[], int]) -> int:
    """Give the exit code of a program's work: a mistake of the user's becomes a sentence on stderr and 2."""
    if sys.stdout is None:  # closed by whoever started it: the lines go nowhere
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a letter is no reason to stop
    try:
        exit_code = work()
        sys.stdout.flush()
        return exit_code
    except ValueError as error:  # every mistake of the user's is one, and its message the sentence to show
        print(f"{name}: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        print(f"{name}: {_refusal(error)}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:  # before the first image, or pressed twice
        return 128 + signal.SIGINT


def _refusal(error: OSError) -> str:
    """Say what the system refused: a path that may not be entered, or, where it names none, stdout on a full disk."""
    if error.filename is None:
        _forget_stdout()
    return f"{error.filename or 'stdout'}: {error.strerror or error}"


def _forget_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere, so that Python does not complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
