"""What every command-line program shares: the types of its flags, and its exit codes."""

from __future__ import annotations

import argparse
import io
import math
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.console import printable_lines
from common.errors import ProgramError, UserError
from common.formatting import did_you_mean
from common.signals import Stopped, ended_by_second_signal

EXIT_MISTAKE, EXIT_BROKEN_PIPE = 2, 141  # 128 + SIGPIPE


class FlagParser(argparse.ArgumentParser):
    """A parser that names the nearest of its flags for one that it does not know."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the flags; exit with code 2 and a message for a mistake."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            shown = [action for action in self._actions if action.help != argparse.SUPPRESS]
            flags = [flag for action in shown for flag in action.option_strings]
            asked = next((text.partition("=")[0] for text in unknown if text.startswith("-")), "")
            hint = did_you_mean(asked, flags) if asked else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return parsed


def number(low: float, high: float) -> Callable[[str], float]:
    """Return a parser of a flag's number from `low` to `high`: of a whole one, an int, where `low` is an int.

    It raises ArgumentTypeError.
    """
    kind, title = (int, "a whole number") if isinstance(low, int) else (float, "a number")

    def parse(text: str) -> float:
        try:
            value: float = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f'must be {title} from {low} to {high}, got "{text}"')
        return value

    return parse


def named_path(text: str) -> Path:
    """Return a flag's path. Raises ArgumentTypeError for an empty text, which would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("must be a path, got an empty text")
    return Path(text)


def run_program(
    program: str, work: Callable[[], int], *, report: Callable[[str, BaseException], None] | None = None
) -> int:
    """Run a program's work and return its exit code: what ends it becomes one line on stderr.

    2: a UserError or an OSError; a ProgramError's own code; 128 + n: ended by signal n, whose second one ends it
    whatever it waits for; 141: the reader of stdout has gone. Any other exception is a bug and keeps its traceback.
    `report` receives the line and the error instead of stderr.
    """
    if sys.stdout is None:  # closed by the parent process
        sys.stdout = io.StringIO()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a letter is no reason to stop
    report = report or _print_to_stderr
    try:
        with ended_by_second_signal():
            exit_code = work()
            sys.stdout.flush()
            return exit_code
    except (UserError, ProgramError, Stopped) as error:
        report(printable_lines(f"{program}: {error}"), error)
        return error.exit_code
    except BrokenPipeError:
        discard_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        report(printable_lines(f"{program}: {os_error_text(error)}"), error)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def os_error_text(error: OSError) -> str:
    """Return the path and the system's reason; an error without a path is stdout's, whose buffer is then discarded."""
    if error.filename is None:
        discard_stdout()
    return f"{error.filename or 'stdout'}: {error.strerror or error}"


def discard_stdout() -> None:
    """Discard what is still in stdout's buffer, so that Python does not complain about it when it ends."""
    with suppress(OSError):  # stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print_to_stderr(line: str, error: BaseException) -> None:
    print(line, file=sys.stderr)
