"""Loading what an export needs: the net, the images, and the net's own outputs for them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from artifacts.checkpoint import is_checkpoint, load_checkpoint, weights_sha256
from artifacts.metadata import ModelMetadata
from artifacts.sample_sources import SamplesError
from common.formatting import first_line
from configs.schema import Config
from data_loader.samples import ListError
from deploy.backends.loading import load_torch
from deploy.export.console import PROGRAM, log, log_progress
from deploy.export.errors import ExportError
from deploy.export.formats import MISSING, ExportFormat
from deploy.export.model_wrapper import exact_float32
from deploy.export.reference import BATCH, Reference, repeat_rows
from deploy.export.report import Outcome
from deploy.export.request import ExportRequest
from deploy.export.sample_images import SampleImages, find_calibration, find_images, net_input
from deploy.export.timing import BestPrecision, best_precision
from deploy.export.writers import Source

CALIBRATION_SAMPLES = 300
LEAST_TO_SHARE = 16  # images: below it int8 is calibrated and verified on the same ones


@dataclass(frozen=True)
class Job:
    """One export: what the files are made of, what they are compared with, and the outcomes."""

    request: ExportRequest
    source: Source
    reference: Reference
    int8_reference: Reference  # without the images that int8 was calibrated on
    best: BestPrecision  # of the checkpoint itself
    folder: Path  # the staging folder
    outcomes: list[Outcome]
    published: list[str] = field(default_factory=list)  # names of the files in output_dir


def prepare(request: ExportRequest, formats: Sequence[ExportFormat], folder: Path) -> Job:
    """Load the net and the images, and run the net on them. Raises UserError."""
    _spare_the_checkpoint(request.weights, request.output_dir, formats)
    log_progress("loading the net and the images")
    backend, metadata = load_torch(request.weights, request.device, request.config)
    if request.with_preprocess == "bgr" and metadata.preprocess.image_channels not in (1, 3):
        raise ExportError(f"{request.weights}: bands have no order like BGR; use --with_preprocess rgb, the file's own")
    if start := metadata.start_weights:
        log(f"{PROGRAM}: the start weights were those of {start['package']}: {start['licence']}, {start['source']}")
    formats = _formats_of(metadata, formats, request)
    net = copy.deepcopy(backend.net).cpu()
    if not metadata.weights_sha256:  # bare weights
        metadata = replace(metadata, weights_sha256=weights_sha256(net.state_dict()))
    config = request.config or _config_of(request.weights)
    images = find_images(request.samples, config, metadata, request.max_samples, request.samples_root)
    with exact_float32():
        reference = Reference.of(backend, images, metadata)
    calibration, int8_reference = None, reference
    if any(row.is_quantized for row in formats):
        calibration, int8_reference = share_for_int8(reference, config, metadata)
    made_metadata = replace(
        metadata,
        batch_profile=request.batch_profile or metadata.batch_profile,
        size_step=_size_step(net, request) if request.any_size else 0,
    )
    source = Source(
        net, made_metadata, images, calibration, request.precision, request.net_input, request.opset,
        request.int8_symmetric,
    )  # fmt: skip
    outcomes = [Outcome(row, MISSING, older=(request.output_dir / row.files[0]).exists()) for row in formats]
    with exact_float32():
        batch = net_input(repeat_rows(images.pixels[:BATCH], BATCH), metadata.preprocess, metadata.input)
        best = best_precision(backend, batch)
    return Job(request, source, reference, int8_reference, best, folder, outcomes)


def share_for_int8(
    reference: Reference, config: Config | None, metadata: ModelMetadata
) -> tuple[SampleImages, Reference]:
    """Return the images that int8 is calibrated on, and the reference that it is verified with.

    It is calibrated on training images where they are on this machine, else on every second of the others.
    """
    images = reference.images
    try:
        training = find_calibration(config, metadata, CALIBRATION_SAMPLES)
    except (ListError, SamplesError) as error:  # the list may have changed since the training
        training = None
        log(f"{PROGRAM}: warning: int8 cannot be calibrated on the training images: {first_line(error)}")
    if training is not None:
        return training, reference
    if len(images) < LEAST_TO_SHARE:
        return images, reference
    return images.every_second(1).at_most(CALIBRATION_SAMPLES), reference.every_second(0)


def _size_step(net: nn.Module, request: ExportRequest) -> int:
    """Return the step of the heights and widths that a net takes. Raises ExportError for a net of one size."""
    step: int = getattr(net, "size_step", 0)
    if not step:
        raise ExportError(f"{request.weights}: --any_size is of nets of masks, and this net takes one size")
    return step


def _formats_of(
    metadata: ModelMetadata, formats: Sequence[ExportFormat], request: ExportRequest
) -> Sequence[ExportFormat]:
    """Return the formats that nets with this output have. Raises ExportError for another that was asked for by name."""
    wrong = [row for row in formats if row.only_of not in ("", metadata.output)]
    if named := [row.name for row in wrong if row.name in request.formats]:
        raise ExportError(
            f"{request.weights}: format {named[0]} is of nets that give {wrong[0].only_of}, and this one "
            f"gives {metadata.output}"
        )
    return [row for row in formats if row not in wrong]


def _spare_the_checkpoint(weights: Path, output_dir: Path, formats: Sequence[ExportFormat]) -> None:
    """Raise ExportError where a file would be written over the checkpoint that it is made from."""
    for target in (output_dir / file for row in formats for file in row.files):
        if target.exists() and target.samefile(weights):
            raise ExportError(f"{weights}: the export would be written over its own checkpoint; choose --output_dir")


def _config_of(weights: Path) -> Config | None:
    """Return the config inside a checkpoint; None where there is none, or, with a warning, another version's."""
    values = load_checkpoint(weights).config if is_checkpoint(weights) else {}
    if not values:
        return None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        hint = "its lists and folders are not known; name their config with --config"
        log(f"{PROGRAM}: warning: {weights}: the config in it is not of this version ({what}): {hint}")
        return None
