"""Export: one checkpoint, every deployment file, each proved on real pictures before it gets its name.

`python -m deploy.export --weights W --formats jit,onnx --output_dir D`
"""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import Config, process_config

if TYPE_CHECKING:
    from artifacts.facts import Facts
    from deploy.export_report import Outcome
    from deploy.making import Source
    from deploy.parity import Reference
    from deploy.pictures import Pictures

FORMATS = ("jit", "pt2", "onnx", "int8", "json", "engine", "all")  # in the order in which they are made
PRECISIONS = ("fp32", "fp16", "bf16")
REPORT = "export_report.json"
WTS = "model.wts"
MAX_BATCH = 65536
MAX_SAMPLES = 1000  # of which one may change its class
CALIBRATION_SAMPLES = 300
LEAST_TO_SHARE = 16  # pictures: below it int8 is calibrated and proved on the same ones
EXIT_MISTAKE, EXIT_REFUSED = 2, 3
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}
FULL_DISK = re.compile(r"(No space left|Disk quota|File too large|Read-only file system)[^:(]*")
PROGRAM = "python -m deploy.export"
EPILOG = """\
formats:
  jit     model.pt         TorchScript (deprecated by torch in favour of pt2)
  pt2     model.pt2        torch.export
  onnx    model.onnx       ONNX
  int8    model.int8.onnx  ONNX in 8 bits, calibrated on training pictures
  json    model.json       network description for TensorRT, with its weights
                           in model.safetensors
  engine  model.engine     TensorRT engine, with its facts beside it; makes the
                           description too
  all                      all of them
Every file is held against the net on real pictures; export_report.json tells
all that was measured. Exit codes: 0 all written, 2 a mistake in what was
asked, 3 a file did not answer as the net does and was not kept."""


class ExportError(ValueError):
    """A mistake of the user's, or a disk that takes no more; the message is the sentence to show."""


@dataclass
class Job:
    """One export: what the files are made of, what they are held against, and where they go."""

    source: Source
    reference: Reference
    int8_reference: Reference  # without the pictures that int8 was calibrated on
    folder: Path  # temporary, inside output_dir
    output_dir: Path
    device: str
    outcomes: list[Outcome] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Export, and give the exit code: 0 all written, 2 a mistake of the user, 3 a file refused, 130 Ctrl-C."""
    args = _parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a console that lacks a letter is no reason to stop
    previous = signal.signal(signal.SIGTERM, _stop)  # so that a stopped export leaves no half file either
    try:
        config = process_config(args.config, check_files=False) if args.config else None
        return export_formats(
            args.weights,
            args.formats,
            args.output_dir or args.weights.parent,
            samples=args.samples,
            precision=args.precision,
            with_preprocess=args.with_preprocess,
            config=config,
            max_samples=args.max_samples,
            device=args.device,
            batch_profile=args.batch_profile,
            wts=args.wts,
        )
    except ValueError as error:  # every mistake of the user's is one, and its message the sentence to show
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; the files already proved are kept", file=sys.stderr)
        return 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGTERM, previous)


def export_formats(
    weights: Path,
    formats: Sequence[str],
    output_dir: Path,
    *,
    samples: Path | None = None,
    precision: str = "fp32",
    with_preprocess: str = "",
    config: Config | None = None,
    max_samples: int = MAX_SAMPLES,
    device: str = "auto",
    batch_profile: tuple[int, int, int] | None = None,
    wts: bool = False,
) -> int:
    """Write the formats into `output_dir`, print the table, and give 0, or 3 where a file was refused.

    `samples` is a list or a folder of pictures; by default the checkpoint's own validation data. `with_preprocess` is
    "", "rgb" or "bgr": the file then takes uint8 (N, H, W, C). `config` describes bare weights. `batch_profile` (min,
    best, max) stands for the facts' own; `wts` also writes the state dict as tensorrtx's text. 2 is given where
    "engine" was asked for by name and no TensorRT library is there. Raises ValueError with the sentence to show.
    """
    wanted = check_request(weights, formats, output_dir, precision, with_preprocess)
    _spare_the_checkpoint(weights, wanted, output_dir)
    net_input = f"uint8 NHWC {with_preprocess.upper()}" if with_preprocess else "float32 NCHW"
    with _workshop(output_dir) as folder:
        job = _prepare(weights, samples, config, max_samples, device, "int8" in wanted, folder, output_dir)
        facts = replace(job.source.facts, batch_profile=batch_profile or job.source.facts.batch_profile)
        job.source = replace(job.source, facts=facts, precision=precision, net_input=net_input)
        for file_format in wanted:
            job.outcomes.append(_export(job, file_format))
        if wts:
            _write_wts(job)
        _report(job, weights)
    statuses = {outcome.format: outcome.status for outcome in job.outcomes}
    if "refused" in statuses.values():
        return EXIT_REFUSED
    return EXIT_MISTAKE if "engine" in formats and statuses["engine"] == "not made" else 0


def check_request(
    weights: Path, formats: Sequence[str], output_dir: Path, precision: str = "fp32", with_preprocess: str = ""
) -> list[str]:
    """Check what was asked without torch; give the formats in the order in which they are made. Raises ValueError."""
    from artifacts.reading import TITLES, artifact_kind

    for name in formats:
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            raise ExportError(f'unknown format "{name}"{hint}; known are {", ".join(FORMATS)}')
    if not formats:
        raise ExportError(f"no format was asked for; known are {', '.join(FORMATS)}")
    if precision not in PRECISIONS:
        raise ExportError(f'precision must be {", ".join(PRECISIONS)}, got "{precision}" (int8 is a format)')
    if with_preprocess not in ("", "rgb", "bgr"):
        raise ExportError(f'with_preprocess must be rgb or bgr, got "{with_preprocess}"')
    if (kind := artifact_kind(weights)) != "checkpoint":
        raise ExportError(f"{weights}: an export starts from a checkpoint (got: {TITLES[kind]})")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{output_dir}: cannot make this folder for the files: {error.strerror}") from error
    asked = set(FORMATS) if "all" in formats else set(formats)
    return [name for name in FORMATS[:-1] if name in asked or (name == "json" and "engine" in asked)]


def _spare_the_checkpoint(weights: Path, wanted: Sequence[str], output_dir: Path) -> None:
    """Raise ExportError where a file would be written over the checkpoint that it is made from."""
    from deploy.making import FILES

    for target in (output_dir / file for name in wanted for file in FILES[name]):
        if target.exists() and target.samefile(weights):
            raise ExportError(f"{weights}: the export would be written over its own checkpoint; choose --output_dir")


def _prepare(
    weights: Path,
    samples: Path | None,
    config: Config | None,
    max_samples: int,
    device: str,
    with_int8: bool,
    folder: Path,
    output_dir: Path,
) -> Job:
    """Load the net and the pictures, and ask the net about them. Raises ValueError."""
    import copy

    from artifacts.checkpoint import weights_sha256
    from deploy.backends import load_torch
    from deploy.deployed_net import exact_float32
    from deploy.making import Source
    from deploy.parity import Reference
    from deploy.pictures import find_pictures

    _say("loading the net and the pictures")
    backend, facts = load_torch(weights, device, config)
    net = copy.deepcopy(backend.net).cpu()
    if not facts.weights_sha256:  # bare weights
        facts = replace(facts, weights_sha256=weights_sha256(net.state_dict()))
    own_config = config or _config_of(weights)
    pictures = find_pictures(samples, own_config, facts, max_samples)
    with exact_float32():
        reference = Reference.of(backend, pictures, facts)
    calibration, int8_reference = None, reference
    if with_int8:
        calibration, int8_reference = _share_for_int8(reference, own_config, facts)
    source = Source(net, facts, pictures, calibration, "fp32", facts.input)
    return Job(source, reference, int8_reference, folder, output_dir, device)


def _share_for_int8(reference: Reference, config: Config | None, facts: Facts) -> tuple[Pictures, Reference]:
    """Choose what int8 is calibrated on and what it is proved on.

    Calibrated on training pictures where they are on this machine, else on every second of the others.
    """
    from deploy.pictures import find_calibration

    pictures = reference.pictures
    if (training := find_calibration(config, facts, CALIBRATION_SAMPLES)) is not None:
        return training, reference
    if len(pictures) < LEAST_TO_SHARE:
        return pictures, reference
    kept = replace(reference, pictures=pictures.every_second(0), logits=reference.logits[::2])
    return pictures.every_second(1).at_most(CALIBRATION_SAMPLES), kept


def _export(job: Job, file_format: str) -> Outcome:
    """Make one format, prove it, and give it its name; what cannot be made or proved is told in the outcome."""
    from deploy.deployed_net import first_line
    from deploy.export_report import MISSING, REFUSED, Outcome
    from deploy.making import FILES, MAKERS

    outcome = Outcome(file_format, FILES[file_format])
    outcome.older = (job.output_dir / outcome.files[0]).exists()
    if file_format == "engine" and (missing := _missing_tensorrt()):
        outcome.status, outcome.reason = MISSING, missing
        return outcome
    path = job.folder / outcome.files[0]
    _say(f"making {path.name}")
    before = time.perf_counter()
    try:
        if file_format == "engine":
            _make_engine(job, path)
        else:
            MAKERS[file_format](job.source, path)
    except Exception as error:  # each library raises its own
        _raise_disk_error(error, job.output_dir / path.name)
        outcome.status, outcome.reason = REFUSED, first_line(error)
        return outcome
    outcome.seconds = time.perf_counter() - before
    made = [file for name in (*outcome.files, f"{path.name}.data") if (file := job.folder / name).exists()]
    outcome.bytes = sum(file.stat().st_size for file in made)
    _say(f"proving {path.name}")
    _prove(job, outcome, path)
    if outcome.status != REFUSED:
        _put_in_place(made, job.output_dir)
    return outcome


def _prove(job: Job, outcome: Outcome, path: Path) -> None:
    from deploy.export_report import REFUSED, UNPROVED
    from deploy.proving import prove

    if outcome.format == "engine" and (why := _no_gpu(job.device)):
        outcome.status, outcome.reason = UNPROVED, f"no engine runs here ({why}); hold it to the net where it will run"
        return
    reference = job.int8_reference if outcome.format == "int8" else job.reference
    proof = prove(outcome.format, path, job.source, reference, job.device)
    outcome.runs = proof.runs
    if proof.problem:
        outcome.status, outcome.reason, outcome.departs = REFUSED, proof.problem, proof.departs


def _make_engine(job: Job, path: Path) -> None:
    from pytorch2json.engine import write_engine

    if not any(outcome.format == "json" and outcome.status == "written" for outcome in job.outcomes):
        raise ExportError("it is built from model.json, which was refused")
    write_engine(job.output_dir / "model.json", path)


def _write_wts(job: Job) -> None:
    from pytorch2json.wts import write_wts

    write_wts(job.output_dir / WTS, job.source.net.state_dict())


def _missing_tensorrt() -> str:
    from pytorch2json.network import DescriptionError
    from pytorch2json.tensorrt_library import load_library

    try:
        load_library()
    except DescriptionError as error:
        return str(error)
    return ""


def _no_gpu(device: str) -> str:
    """Say why an engine cannot be proved here; "" where it can."""
    from pytorch2json.tensorrt_library import gpu_problem

    return "--device cpu" if device == "cpu" else gpu_problem()


@contextmanager
def _workshop(output_dir: Path) -> Iterator[Path]:
    """Give a temporary folder inside the output folder: what is proved there is only renamed. Raises ExportError."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=output_dir))
    except OSError as error:
        raise ExportError(f"{output_dir}: cannot write into this folder: {error.strerror}") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _put_in_place(files: Sequence[Path], output_dir: Path) -> None:
    """Give proved files their names, the one that is loaded last; an earlier export's are replaced."""
    for file in reversed(files):
        try:
            with file.open("rb+") as content:
                os.fsync(content.fileno())
            file.replace(output_dir / file.name)
        except OSError as error:
            raise ExportError(f"{output_dir / file.name}: cannot write it: {error.strerror}") from error


def _report(job: Job, weights: Path) -> None:
    from deploy.export_report import ExportReport

    source = job.source
    report = ExportReport(
        str(weights), job.reference, job.outcomes, source.precision, source.net_input, source.calibration
    )
    try:
        report.write(job.output_dir / REPORT)
    except OSError as error:
        raise ExportError(f"{job.output_dir / REPORT}: cannot write it: {error.strerror}") from error
    print(report.text())  # last: whoever reads it may have gone


def _raise_disk_error(error: BaseException, path: Path) -> None:
    """Raise ExportError where an error, or what caused it, is the disk's and not the net's."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
            raise ExportError(f"{path}: cannot write it: {cause.strerror}") from error
        if found := FULL_DISK.search(str(cause)):  # safetensors and torch say it in their own kinds
            raise ExportError(f"{path}: cannot write it: {found[0].strip()}") from error
        cause = cause.__cause__ or cause.__context__


def _config_of(weights: Path) -> Config | None:
    """Give the config inside a checkpoint; None for bare weights, and where another version wrote another config."""
    from pydantic import ValidationError

    from artifacts.checkpoint import is_checkpoint, load_checkpoint

    if not is_checkpoint(weights):
        return None
    try:
        return Config.model_validate(load_checkpoint(weights).config)
    except ValidationError:
        return None


def _say(text: str) -> None:
    """Tell someone who waits at a terminal what is being done."""
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _formats(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _profile(text: str) -> tuple[int, int, int]:
    sizes = [int(size) for size in text.split(",") if size.isdecimal()]
    if len(sizes) != 3 or not 1 <= sizes[0] <= sizes[1] <= sizes[2] <= MAX_BATCH:
        raise argparse.ArgumentTypeError(f'must be three rising batch sizes such as 1,8,64, got "{text}"')
    return sizes[0], sizes[1], sizes[2]


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise argparse.ArgumentTypeError(f'must be a whole number from 0, got "{text}"')
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Write a trained net in other formats, each file proved on real pictures.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--weights", metavar="F", type=Path, required=True, help="a checkpoint, or bare weights with --config")
    add("--formats", metavar="A,B", type=_formats, required=True, help=f"of {', '.join(FORMATS)}")
    add("--output_dir", metavar="DIR", type=Path, help="where the files go (default: beside the weights)")
    add("--precision", choices=PRECISIONS, default="fp32", help="of jit, pt2, onnx, json and engine (default fp32)")
    add(
        "--with_preprocess",
        nargs="?",
        const="rgb",
        default="",
        choices=("rgb", "bgr"),
        help="put scale, mean and std into the graph: it takes uint8 (N, H, W, C), RGB or BGR (default rgb)",
    )
    add(
        "--samples",
        metavar="F",
        type=Path,
        help="a list (path, separator, label a line) or a folder of pictures (default: the net's validation data)",
    )
    add(
        "--max_samples",
        metavar="N",
        type=_count,
        default=MAX_SAMPLES,
        help=f"pictures of it, evenly spread; 0: all (default {MAX_SAMPLES})",
    )
    add(
        "--batch_profile",
        metavar="A,B,C",
        type=_profile,
        help="least, best and most pictures at once, for engines (default 1,8,64)",
    )
    add("--wts", action="store_true", help=f"also write {WTS}, the state dict as tensorrtx's text weights")
    add("--config", metavar="F", type=Path, help="describes bare weights")
    add("--device", metavar="D", default="auto", help="where it is proved: auto (default), cpu, cuda or cuda:N")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
