"""Export: one checkpoint to every deployment file, each verified on real images before it gets its name.

`python -m deploy.export --weights W --formats jit,onnx --output_dir D`
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from common.cli import EXIT_MISTAKE
from deploy.export.errors import ExportError
from deploy.export.formats import MISSING, REFUSED
from deploy.export.request import ExportRequest
from deploy.export.staging import staging_folder

EXIT_REFUSED = 3


def export_formats(request: ExportRequest) -> int:
    """Write the formats, print the table, and return 0, or 3 where a file was refused.

    2 is returned where a format was asked for by name whose library is not installed. Raises UserError, and
    BrokenPipeError where nobody reads stdout.
    """
    with _system_errors_named(request):
        formats = request.check()
        with staging_folder(request.output_dir) as folder:
            with _signals_blocked():
                from deploy.export.pipeline import run_export
            outcomes = run_export(request, formats, folder)
    if any(outcome.status == REFUSED for outcome in outcomes):
        return EXIT_REFUSED
    is_missing = any(outcome.status == MISSING and outcome.format.name in request.formats for outcome in outcomes)
    return EXIT_MISTAKE if is_missing else 0


@contextmanager
def _system_errors_named(request: ExportRequest) -> Iterator[None]:
    """Turn what the system refuses, wherever it does, into an ExportError that names the path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ExportError(f"{error.filename or request.output_dir}: {error.strerror or error}") from error


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Hold signals back while torch is imported: an exception of theirs in the start of its C++ aborts the process."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
