"""One export's work: the net and the images are loaded, then each format is made, proved and put in its place."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError

from artifacts.checkpoint import is_checkpoint, load_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata
from artifacts.sample_sources import SamplesError
from common.formatting import first_line
from configs.schema import Config
from data_loader.samples import ListError
from deploy.backends.loading import load_torch
from deploy.export.console import PROGRAM, progress, tell
from deploy.export.formats import FILES
from deploy.export.model_wrapper import exact_float32
from deploy.export.parity import Reference
from deploy.export.report import MISSING, REFUSED, UNPROVED, WRITTEN, Outcome
from deploy.export.sample_images import SampleImages, find_calibration, find_images, has_no_memory
from deploy.export.staging import ExportError, keep_copies, put_in_place, raise_disk_error
from deploy.export.verification import prove
from deploy.export.writers import MAKERS, Source

CALIBRATION_SAMPLES = 300
LEAST_TO_SHARE = 16  # images: below it int8 is calibrated and proved on the same ones
DESCRIPTION = "description"  # the folder of what an engine is built from: this export's own model.json


@dataclass(frozen=True)
class Request:
    """What was asked for; see deploy.export.export_formats."""

    weights: Path
    wanted: Sequence[str]  # formats, in the order in which they are made
    output_dir: Path
    samples: Path | None
    samples_root: Path | None
    config: Config | None
    max_samples: int | None
    device: str
    precision: str
    net_input: str  # one of metadata.INPUTS
    batch_profile: tuple[int, int, int] | None
    wts: bool


@dataclass(frozen=True)
class Job:
    """One export: what the files are made of, what they are held against, and what has become of them."""

    request: Request

    source: Source
    reference: Reference
    int8_reference: Reference  # without the images that int8 was calibrated on
    folder: Path  # temporary, inside output_dir
    outcomes: list[Outcome]
    placed: list[str] = field(default_factory=list)  # names of the files that lie in output_dir


def prepare(request: Request, folder: Path) -> Job:
    """Load the net and the images, and ask the net about them. Raises ValueError."""
    weights, wanted, output_dir = request.weights, request.wanted, request.output_dir
    _spare_the_checkpoint(weights, wanted, output_dir)
    progress("loading the net and the images")
    backend, metadata = load_torch(weights, request.device, request.config)
    net = copy.deepcopy(backend.net).cpu()
    if not metadata.weights_sha256:  # bare weights
        metadata = replace(metadata, weights_sha256=weights_sha256(net.state_dict()))
    config = request.config or _config_of(weights)
    images = find_images(request.samples, config, metadata, request.max_samples, request.samples_root)
    with exact_float32():
        reference = Reference.of(backend, images, metadata)
    calibration, int8_reference = None, reference
    if "int8" in wanted:
        calibration, int8_reference = share_for_int8(reference, config, metadata)
    made_metadata = replace(metadata, batch_profile=request.batch_profile or metadata.batch_profile)
    source = Source(net, made_metadata, images, calibration, request.precision, request.net_input)
    outcomes = [Outcome(name, FILES[name], MISSING, older=(output_dir / FILES[name][0]).exists()) for name in wanted]
    return Job(request, source, reference, int8_reference, folder, outcomes)


def share_for_int8(
    reference: Reference, config: Config | None, metadata: ModelMetadata
) -> tuple[SampleImages, Reference]:
    """Choose what int8 is calibrated on and what it is proved on.

    Calibrated on training images where they are on this machine, else on every second of the others.
    """
    images = reference.images
    try:
        training = find_calibration(config, metadata, CALIBRATION_SAMPLES)
    except (ListError, SamplesError) as error:  # the list may have changed since the training
        training = None
        tell(f"{PROGRAM}: warning: int8 cannot be calibrated on the training images: {first_line(error)}")
    if training is not None:
        return training, reference
    if len(images) < LEAST_TO_SHARE:
        return images, reference
    kept = replace(reference, images=images.every_second(0), logits=reference.logits[::2])
    return images.every_second(1).at_most(CALIBRATION_SAMPLES), kept


def make_and_prove(job: Job, outcome: Outcome) -> None:
    """Make one format, prove it, and give it its name; what cannot be made or proved is told in the outcome.

    Raises ExportError where the disk takes no more.
    """
    if outcome.format == "engine" and (missing := _missing_tensorrt()):
        outcome.reason = missing
        return
    path = job.folder / outcome.files[0]
    progress(f"making {path.name}")
    before = time.perf_counter()
    try:
        _make(job, outcome.format, path)
    except Exception as error:  # each library raises its own
        raise_disk_error(error, job.request.output_dir / path.name)
        reason = "too little memory to make it" if has_no_memory(error) else first_line(error)
        outcome.status, outcome.reason = REFUSED, reason.replace(f"{path.parent}{os.sep}", "")
    else:
        outcome.seconds = time.perf_counter() - before
        made = [file for name in (*outcome.files, f"{path.name}.data") if (file := job.folder / name).exists()]
        outcome.bytes = sum(file.stat().st_size for file in made)
        progress(f"proving {path.name}")
        status = _prove(job, outcome, path)
        if status != REFUSED:
            _put_in_place(job, outcome, made)
        outcome.status = status
    tell(f"{path.name}: {outcome.status} ({time.perf_counter() - before:.1f} s)")


def _spare_the_checkpoint(weights: Path, wanted: Sequence[str], output_dir: Path) -> None:
    """Raise ExportError where a file would be written over the checkpoint that it is made from."""
    for target in (output_dir / file for name in wanted for file in FILES[name]):
        if target.exists() and target.samefile(weights):
            raise ExportError(f"{weights}: the export would be written over its own checkpoint; choose --output_dir")


def _config_of(weights: Path) -> Config | None:
    """Give the config inside a checkpoint; None where there is none, or another version's, which is told."""
    values = load_checkpoint(weights).config if is_checkpoint(weights) else {}
    if not values:
        return None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        hint = "its lists and folders are not known; name their config with --config"
        tell(f"{PROGRAM}: warning: {weights}: the config in it is not of this version ({what}): {hint}")
        return None


def _make(job: Job, file_format: str, path: Path) -> None:
    if file_format != "engine":
        return MAKERS[file_format](job.source, path)
    from pytorch2json.engine import write_engine

    description = job.folder / DESCRIPTION / FILES["json"][0]
    if not description.exists():
        raise ExportError("it is built from model.json, which was refused")
    write_engine(description, path)


def _prove(job: Job, outcome: Outcome, path: Path) -> str:
    """Fill in how a file did, and give its status."""
    if outcome.format == "engine" and (why := _no_gpu(job.request.device)):
        outcome.reason = f"no engine runs here ({why}); hold it to the net where it will run"
        return UNPROVED
    reference = job.int8_reference if outcome.format == "int8" else job.reference
    proof = prove(outcome.format, path, job.source, reference, job.request.device)
    outcome.runs, outcome.reason, outcome.departs = proof.runs, proof.problem, proof.departs
    return REFUSED if proof.problem else WRITTEN


def _put_in_place(job: Job, outcome: Outcome, made: Sequence[Path]) -> None:
    if outcome.format == "json" and any(other.format == "engine" for other in job.outcomes):
        keep_copies(made, job.folder / DESCRIPTION)  # what lies in output_dir may be replaced by then
    put_in_place(made, job.request.output_dir)
    job.placed.extend(file.name for file in made)


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
