"""Exit codes and messages of `run_program`, and the types of flags."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.cli import EXIT_BROKEN_PIPE, EXIT_MISTAKE, named_path, number, run_program
from common.errors import ProgramError, UserError
from common.paths import ROOT
from common.signals import Stopped


class OwnError(UserError):
    """One of the many kinds."""


class EndedError(ProgramError):
    exit_code = 7


def raising(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


def run_code(code: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    head = "import os, sys\nfrom common.cli import run_program\n"
    return subprocess.run([sys.executable, "-c", head + code], cwd=ROOT, capture_output=True, text=True, env=env)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a.json: no such key"), EXIT_MISTAKE, "prog: a.json: no such key"),
        (OwnError("a\nb"), EXIT_MISTAKE, "prog: a\nb"),
        (ProgramError("the net is lost"), 1, "prog: the net is lost"),
        (EndedError("the port is taken"), 7, "prog: the port is taken"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), EXIT_MISTAKE, "prog: a.txt: No such file or "),
        (OSError(28, "No space left on device"), EXIT_MISTAKE, "prog: stdout: No space left on device"),
        (OSError("odd"), EXIT_MISTAKE, "prog: stdout: odd"),
        (Stopped(signal.SIGTERM), 143, "prog: stopped by SIGTERM"),
    ],
)
def test_what_ends_a_program_is_one_line(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_program("prog", raising(error)) == code
    captured = capsys.readouterr()
    assert captured.err.startswith(line) and captured.err.endswith("\n")
    assert captured.out == ""


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (BrokenPipeError(), EXIT_BROKEN_PIPE)])
def test_what_ends_a_program_in_silence(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("prog", raising(error)) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), RuntimeError("a bug")])
def test_a_bug_is_raised(error: Exception) -> None:
    with pytest.raises(type(error), match="a bug"):
        run_program("prog", raising(error))


def test_the_exit_code_is_the_works() -> None:
    assert [run_program("prog", lambda code=code: code) for code in (0, 1, 2)] == [0, 1, 2]


def test_report_takes_the_line_instead_of_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[tuple[str, BaseException]] = []
    error = OwnError("wrong")
    assert run_program("prog", raising(error), report=lambda *given: lines.append(given)) == EXIT_MISTAKE
    assert lines == [("prog: wrong", error)]
    assert capsys.readouterr() == ("", "")


def test_numpys_value_error_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="operands could not be broadcast"):
        run_program("prog", lambda: int((np.zeros(2) + np.zeros(3)).sum()))
    done = run_code("import numpy as np\nsys.exit(run_program('prog', lambda: np.zeros(2) + np.zeros(3)))")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "operands could not be broadcast" in done.stderr


@pytest.mark.skipif(os.name != "posix", reason="pipes as POSIX has them")
def test_a_reader_that_has_gone_ends_the_program() -> None:
    """Nothing on stderr, also when Python closes stdout at its end."""
    read, write = os.pipe()
    os.close(read)
    code = "sys.exit(run_program('prog', lambda: print('x' * 100_000) or 0))"
    command = [sys.executable, "-c", f"import sys\nfrom common.cli import run_program\n{code}"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (EXIT_BROKEN_PIPE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("size", [1, 100_000])  # less than stdout's buffer, and more
def test_a_full_disk_below_stdout(size: int) -> None:
    code = (
        f"import sys\nfrom common.cli import run_program\nsys.exit(run_program('p', lambda: print('x' * {size}) or 0))"
    )
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (EXIT_MISTAKE, "p: stdout: No space left on device\n")


def test_a_program_without_stdout() -> None:
    for work, code in (("print('x') or 0", 0), ("open('none.txt')", 2), ("os.write(99, b'')", 2)):
        done = run_code(f"sys.stdout = None\nsys.exit(run_program('p', lambda: {work}))")
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_letters_that_the_console_lacks_are_escaped() -> None:
    done = run_code(
        "sys.exit(run_program('p', lambda: print('花') or 0))", env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stdout) == (0, "\\u82b1\n")


# --- types of flags


@pytest.mark.parametrize(
    ("low", "text", "value"), [(1, "1", 1), (1, "65536", 65536), (0.5, "1e3", 1000.0), (0.5, "2", 2)]
)
def test_numbers(low: float, text: str, value: float) -> None:
    read = number(low, 65536)(text)
    assert (read, type(read)) == (value, type(low))


@pytest.mark.parametrize(
    ("low", "text"),
    [(1, "0"), (1, "65537"), (1, "-1"), (1, "1.0"), (1, ""), (1, "many"), (1, "9" * 5000), (0.5, "nan"), (0.5, "inf")],
)
def test_numbers_outside_the_range(low: float, text: str) -> None:
    title = "a whole number" if type(low) is int else "a number"
    with pytest.raises(argparse.ArgumentTypeError) as caught:
        number(low, 65536)(text)
    assert str(caught.value) == f'must be {title} from {low} to 65536, got "{text}"'


def test_paths() -> None:
    assert named_path("a/b") == Path("a/b")
    with pytest.raises(argparse.ArgumentTypeError, match="must be a path, got an empty text"):
        named_path("")
