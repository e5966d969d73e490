"""Export: one checkpoint to every deployment file, each verified on real images before it gets its name.

`python -m deploy.export --weights W --formats jit,onnx --output_dir D`
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from common.cli import EXIT_MISTAKE
from deploy.export.console import log
from deploy.export.errors import ExportError
from deploy.export.formats import MISSING, REFUSED, UNVERIFIED, WRITTEN
from deploy.export.request import ExportRequest
from deploy.export.staging import staging_folder
from deploy.export.triton import write_model

if TYPE_CHECKING:
    from deploy.export.report import Outcome

EXIT_REFUSED = 3


def export_formats(request: ExportRequest) -> int:
    """Write the formats, print the table, and return 0, or 3 where a file was refused.

    2 is returned where a format was asked for by name whose library is not installed. Raises UserError, and
    BrokenPipeError where nobody reads stdout.
    """
    with _system_errors_named(request):
        formats = request.check()
        outcomes: list[Outcome] = []
        if formats:
            with staging_folder(request.output_dir) as folder:
                with _signals_blocked():
                    from deploy.export.pipeline import run_export
                outcomes = run_export(request, formats, folder)
        _write_folders(request, outcomes)
    if any(outcome.status == REFUSED for outcome in outcomes):
        return EXIT_REFUSED
    is_missing = any(outcome.status == MISSING and outcome.format.name in request.formats for outcome in outcomes)
    return EXIT_MISTAKE if is_missing else 0


def _write_folders(request: ExportRequest, outcomes: Sequence[Outcome]) -> None:
    """Write the folders for other programs. Raises UserError, OSError."""
    for outcome in outcomes:
        if request.triton_folder is None or outcome.format.name != request.triton_format:
            continue
        if outcome.status in (WRITTEN, UNVERIFIED):
            write_model(request.output_dir / outcome.format.files[0], request.triton_folder)
            log(f"{request.triton_folder}: written for Triton")
        else:
            log(f"{request.triton_folder}: not written, as {outcome.format.files[0]} was not")
    if request.hub is not None:
        with _signals_blocked():
            from deploy.export.hub import write_hub_folder
        write_hub_folder(request.weights, request.training_report, request.hub, request.licence)
        log(f"{request.hub}: written for the Hugging Face Hub")


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
