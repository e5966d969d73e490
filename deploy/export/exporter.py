"""Export: one checkpoint, every deployment file, each proved on real images before it gets its name.

`python -m deploy.export --weights W --formats jit,onnx --output_dir D`
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts.formats import REPORT
from common.formatting import did_you_mean
from common.signals import Stopped, ended_by_signals
from configs.loading import process_config
from configs.schema import Config
from deploy.export.cli_args import make_parser
from deploy.export.console import PROGRAM, tell
from deploy.export.formats import FORMATS, PRECISIONS, WTS
from deploy.export.staging import ExportError, workshop

if TYPE_CHECKING:
    from deploy.export.pipeline import Job

EXIT_MISTAKE, EXIT_REFUSED, EXIT_BROKEN_PIPE = 2, 3, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and give the exit code.

    0 all written, 2 a mistake of the user, 3 a file refused, 128 + n stopped by signal n (n 13: nobody reads on).
    """
    args = make_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a letter is no reason to stop
    try:
        with ended_by_signals(signal.SIGINT):
            config = process_config(args.config, check_files=False) if args.config else None
            return export_formats(
                args.weights,
                args.formats,
                args.output_dir or args.weights.parent,
                samples=args.samples,
                samples_root=args.samples_root,
                precision=args.precision,
                with_preprocess=args.with_preprocess,
                config=config,
                max_samples=args.max_samples,
                device=args.device,
                batch_profile=args.batch_profile,
                wts=args.wts,
            )
    except ValueError as error:  # every mistake of the user's is one, and its message the sentence to show
        tell(f"{PROGRAM}: {error}")
        return EXIT_MISTAKE
    except BrokenPipeError:  # whoever read the table has gone; all is written by then
        return EXIT_BROKEN_PIPE
    except Stopped as stop:
        tell(f"{PROGRAM}: {stop}; the files already proved are kept")
        return stop.exit_code


def export_formats(
    weights: Path,
    formats: Sequence[str],
    output_dir: Path,
    *,
    samples: Path | None = None,
    samples_root: Path | None = None,
    precision: str = "fp32",
    with_preprocess: str = "",
    config: Config | None = None,
    max_samples: int | None = None,
    device: str = "auto",
    batch_profile: tuple[int, int, int] | None = None,
    wts: bool = False,
) -> int:
    """Write the formats into `output_dir`, print the table, and give 0, or 3 where a file was refused.

    `samples` is a list or a folder of images; by default the checkpoint's own validation data; of them at most
    `max_samples` (None: 1000, or what fits in 2 GB; 0: all). `with_preprocess` is "", "rgb" or "bgr": the file then
    takes uint8 (N, H, W, C). `config` describes bare weights. `batch_profile` (min, best, max) stands for the metadata'
    own; `wts` also writes the state dict as tensorrtx's text. 2 is given where "engine" was asked for by name and no
    TensorRT library is there. Raises ValueError with the sentence to show, BrokenPipeError where nobody reads stdout.
    """
    wanted = check_request(weights, formats, precision, with_preprocess)
    with _system_errors_as_sentences(output_dir):
        _check_places(output_dir, samples, samples_root)
        with workshop(output_dir) as folder:
            with _signals_wait():
                from deploy.export.pipeline import Request, prepare

            request = Request(
                weights,
                wanted,
                output_dir,
                samples,
                samples_root,
                config,
                max_samples,
                device,
                precision,
                f"uint8 NHWC {with_preprocess.upper()}" if with_preprocess else "float32 NCHW",
                batch_profile,
                wts,
            )
            job = prepare(request, folder)
            _run(job)
    statuses = {outcome.format: outcome.status for outcome in job.outcomes}
    if "refused" in statuses.values():
        return EXIT_REFUSED
    return EXIT_MISTAKE if "engine" in formats and statuses["engine"] == "not made" else 0


def check_request(
    weights: Path, formats: Sequence[str], precision: str = "fp32", with_preprocess: str = ""
) -> list[str]:
    """Check what was asked without torch; give the formats in the order in which they are made. Raises ValueError."""
    from artifacts.formats import TITLES, artifact_kind

    for name in formats:
        if name not in FORMATS:
            hint = did_you_mean(name, FORMATS)
            raise ExportError(f'unknown format "{name}"{hint}; known are {", ".join(FORMATS)}')
    if not formats:
        raise ExportError(f"no format was asked for; known are {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ExportError(f'precision must be {", ".join(PRECISIONS)}, got "{precision}" (int8 is a format)')
    if with_preprocess not in ("", "rgb", "bgr"):
        raise ExportError(f'with_preprocess must be rgb or bgr, got "{with_preprocess}"')
    if (kind := artifact_kind(weights)) != "checkpoint":
        raise ExportError(f"{weights}: an export starts from a checkpoint (got: {TITLES[kind]})")
    asked = set(FORMATS) if "all" in formats else set(formats)
    return [name for name in FORMATS[:-1] if name in asked or (name == "json" and "engine" in asked)]


def _check_places(output_dir: Path, samples: Path | None, samples_root: Path | None) -> None:
    try:
        str(output_dir).encode()
    except UnicodeEncodeError as error:
        hint = "which some of the libraries that write the files cannot open; choose another --output_dir"
        raise ExportError(f"{output_dir}: this path is not UTF-8, {hint}") from error
    if samples_root is not None and (samples is None or samples.is_dir()):
        raise ExportError("--samples_root is what the paths of a list start from; name the list with --samples")
    if samples_root is not None and not samples_root.is_dir():
        raise ExportError(f"{samples_root}: no such folder for --samples_root")


def _run(job: Job) -> None:
    """Make every format, then write the report and print it; what ends it early leaves a report of what there is."""
    from deploy.export.pipeline import make_and_prove
    from pytorch2json.wts import write_wts

    try:
        for outcome in job.outcomes:
            make_and_prove(job, outcome)
        if job.request.wts:
            write_wts(job.request.output_dir / WTS, job.source.net.state_dict())
            job.placed.append(WTS)
    except BaseException as error:
        _report_early_end(job, error)
        raise
    _print(_write_report(job), job.request.output_dir / REPORT)  # last: whoever reads it may have gone


def _print(text: str, report: Path) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        # What is still in the buffer goes nowhere, so that Python does not complain when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise
        raise ExportError(f"the table cannot be printed ({error.strerror}); all is written, see {report}") from error


def _report_early_end(job: Job, error: BaseException) -> None:
    """Write the report of an export that ended early, where it has made anything: an earlier one tells other things."""
    if all(outcome.status == "not made" for outcome in job.outcomes):
        return
    for outcome in job.outcomes:
        if outcome.status == "not made" and not outcome.reason:
            outcome.reason = f"the export ended before it: {error or type(error).__name__}"
    try:
        _write_report(job)
    except ExportError as problem:
        tell(f"{PROGRAM}: {problem}")


def _write_report(job: Job) -> str:
    """Write the report, and give its text for a terminal. Raises ExportError."""
    from deploy.export.report import ExportReport

    path, source = job.request.output_dir / REPORT, job.source
    report = ExportReport(
        str(job.request.weights),
        job.reference,
        job.outcomes,
        source.precision,
        source.net_input,
        source.calibration,
        str(path.parent),
        (*job.placed, REPORT),
    )
    try:
        report.write(path)
    except OSError as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # an earlier export's, which tells of other files
        raise ExportError(f"{path}: cannot write it: {error.strerror}") from error
    return report.text()


@contextmanager
def _system_errors_as_sentences(output_dir: Path) -> Iterator[None]:
    """Turn what the system refuses, wherever it does, into an ExportError that names the path."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise ExportError(f"{error.filename or output_dir}: {error.strerror or error}") from error


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold signals back while torch is imported: an exception of theirs in the start of its C++ aborts the process."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
