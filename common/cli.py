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

from common.errors import ProgramError, UserError
from common.signals import Stopped

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


def run_program(
    program: str, work: Callable[[], int], *, report: Callable[[str, BaseException], None] | None = None
) -> int:
    """Run a program's work and return its exit code: what ends it becomes one line on stderr.

    2: a UserError, or a file that the system refuses (OSError); a ProgramError's own code; 128 + n: ended by signal n;
    141: whoever read stdout has gone. Any other exception is a bug and keeps its traceback. `report` takes the line and
    the error instead of stderr.
    """
    if sys.stdout is None:  # closed by the parent process: the lines go nowhere
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a letter is no reason to stop
    report = report or _print_to_stderr
    try:
        exit_code = work()
        sys.stdout.flush()
        return exit_code
    except UserError as error:
        report(f"{program}: {error}", error)
        return EXIT_MISTAKE
    except ProgramError as error:
        report(f"{program}: {error}", error)
        return error.exit_code
    except BrokenPipeError:
        _forget_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        report(f"{program}: {_refusal(error)}", error)
        return EXIT_MISTAKE
    except Stopped as error:
        report(f"{program}: {error}", error)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _print_to_stderr(line: str, error: BaseException) -> None:
    print(line, file=sys.stderr)


def _refusal(error: OSError) -> str:
    """Return what the system refused: a path, or, where it names none, stdout on a full disk."""
    if error.filename is None:
        _forget_stdout()
    return f"{error.filename or 'stdout'}: {error.strerror or error}"


def _forget_stdout() -> None:
    """Let what is still in stdout's buffer go nowhere, so that Python does not complain when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
