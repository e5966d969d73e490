"""One export's work: each format is written in the staging folder, verified, and published; then the report."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from artifacts.formats import REPORT
from common.cli import discard_stdout
from common.formatting import first_line
from deploy.backends.base import is_out_of_memory
from deploy.export.console import PROGRAM, log, log_progress
from deploy.export.errors import ExportError
from deploy.export.formats import MISSING, REFUSED, UNVERIFIED, WRITTEN, WTS, ExportFormat
from deploy.export.preparation import Job, prepare
from deploy.export.report import ExportReport, Outcome
from deploy.export.request import ExportRequest
from deploy.export.staging import keep_copies, publish, raise_disk_error
from deploy.export.verification import verify_file
from pytorch2json.wts import write_wts


def run_export(request: ExportRequest, formats: Sequence[ExportFormat], folder: Path) -> list[Outcome]:
    """Make every format in the staging folder, write the report and print it; return the outcomes.

    What ends it early leaves a report of the files that are there. Raises UserError; BrokenPipeError where nobody reads
    stdout.
    """
    job = prepare(request, formats, folder)
    try:
        for outcome in job.outcomes:
            make_and_verify(job, outcome)
        if request.wts:
            write_wts(request.output_dir / WTS, job.source.net.state_dict())
            job.published.append(WTS)
    except BaseException as error:
        _report_early_end(job, error)
        raise
    _print(_write_report(job), request.output_dir / REPORT)  # last: the reader of stdout may have gone
    return job.outcomes


def make_and_verify(job: Job, outcome: Outcome) -> None:
    """Write one format, verify it, and publish it; the outcome says why one cannot be.

    Raises ExportError where the disk takes no more.
    """
    row = outcome.format
    if row.library_problem and (problem := row.library_problem()):
        outcome.reason = problem
        return
    path = job.folder / row.files[0]
    log_progress(f"making {path.name}")
    before = time.perf_counter()
    try:
        row.write(job.source, path)
    except Exception as error:  # each library raises its own
        raise_disk_error(error, job.request.output_dir / path.name)
        reason = "too little memory to make it" if is_out_of_memory(error) else first_line(error)
        outcome.status, outcome.reason = REFUSED, reason.replace(f"{path.parent}{os.sep}", "")
    else:
        outcome.seconds = time.perf_counter() - before
        files = [file for name in (*row.files, f"{path.name}.data") if (file := job.folder / name).exists()]
        outcome.bytes = sum(file.stat().st_size for file in files)
        log_progress(f"verifying {path.name}")
        status = _verify(job, outcome, path)
        if status != REFUSED:
            _publish(job, row, files)
        outcome.status = status
    log(f"{path.name}: {outcome.status_text} ({time.perf_counter() - before:.1f} s)")


def _verify(job: Job, outcome: Outcome, path: Path) -> str:
    """Set the results in the outcome, and return its status."""
    row, device = outcome.format, job.request.device
    if row.device_problem and (problem := row.device_problem(device)):
        outcome.reason = f"no {row.name} runs here ({problem}); verify it where it will run"
        return UNVERIFIED
    reference = job.int8_reference if row.is_quantized else job.reference
    verification = verify_file(row, path, job.source, reference, device)
    outcome.runs, outcome.reason = verification.runs, verification.problem
    outcome.diverging_layer = verification.diverging_layer
    if row.own_check and not outcome.reason:
        outcome.reason = row.own_check(path, job.source, reference)
    return REFUSED if outcome.reason else WRITTEN


def _publish(job: Job, row: ExportFormat, files: Sequence[Path]) -> None:
    if any(other.format.made_from == row.name for other in job.outcomes):
        keep_copies(files, job.folder)
    publish(files, job.request.output_dir)
    job.published.extend(file.name for file in files)


def _report_early_end(job: Job, error: BaseException) -> None:
    """Write the report of an export that ended early, where it has made anything: an earlier one is of other files."""
    if all(outcome.status == MISSING for outcome in job.outcomes):
        return
    for outcome in job.outcomes:
        if outcome.status == MISSING and not outcome.reason:
            outcome.reason = f"the export ended before it: {error or type(error).__name__}"
    try:
        _write_report(job)
    except ExportError as problem:
        log(f"{PROGRAM}: {problem}")


def _write_report(job: Job) -> str:
    """Write the report, and return its text for a terminal. Raises ExportError."""
    path = job.request.output_dir / REPORT
    published = (*job.published, REPORT)
    report = ExportReport(job.request, job.reference, job.outcomes, job.source.calibration, published, job.best)
    try:
        report.write(path)
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # an earlier export's, which is of other files
        raise ExportError(f"{path}: cannot write it: {error.strerror}") from error
    return report.text()


def _print(text: str, report: Path) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise ExportError(f"the table cannot be printed ({error.strerror}); all is written, see {report}") from error
