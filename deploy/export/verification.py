"""Verification: each file is loaded as it will be later, compared with the net, and refused where they differ."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from artifacts.metadata import ModelMetadata
from common.errors import UserError
from common.formatting import first_line
from deploy.backends.base import Backend
from deploy.backends.devices import choose_runtime
from deploy.backends.loading import load_backend
from deploy.export import layer_diff
from deploy.export.formats import ExportFormat
from deploy.export.model_wrapper import exact_float32
from deploy.export.parity import compare_outputs, rule_of
from deploy.export.parity_rule import MOST_INT8_DIFFERENCE, ParityResult
from deploy.export.reference import (
    BATCH,
    TOLERANCES,
    Reference,
    other_size,
    repeat_rows,
    run_batch,
    run_images,
)
from deploy.export.sample_images import net_input
from deploy.export.timing import time_in_turn
from deploy.export.writers import Source
from pytorch2json import tensorrt_library

SIZE_IMAGES = 2  # that are compared at another size
OTHER_BATCHES = (1, 3)  # verified too: the batch size is free
INT8_BATCH_TOLERANCE = 0.05  # between an image's outputs in batches of different size, where a step more or less counts
DIFF_IMAGES = 8  # images that the layers of a refused file are compared on


@dataclass
class Verification:
    """A file's result on each runtime; the first is the default one here, and it decides.

    A float file is refused where it computes otherwise on any (`is_float`): on another machine that is the default. An
    int8 file is rounded by each in its own way, and a runtime may lack an operator: both are warnings.
    """

    is_float: bool = False
    runs: list[tuple[str, ParityResult]] = field(default_factory=list)
    diverging_layer: str = ""  # the first, of a refused file

    @property
    def problem(self) -> str:
        """Why the file is refused; empty: it is not."""
        (_, first), *others = self.runs
        differing = (
            f"{run.problem} (on {name})" for name, run in others if self.is_float and run.problem and run.count
        )
        return first.problem or next(differing, "")


def verify_file(
    export_format: ExportFormat, path: Path, source: Source, reference: Reference, device: str
) -> Verification:
    """Compare a file with the net on each installed runtime; find the first diverging layer of a refused one."""
    precision = export_format.precision or source.precision
    metadata = source.metadata_in(precision, has_any_size=export_format.has_any_size)
    verification = Verification(is_float=not export_format.is_quantized)
    for runtime in _runtimes(export_format, device):
        verification.runs.append(_verify_on(runtime, path, metadata, reference, device))
    if verification.problem:
        verification.diverging_layer = _diverging_layer(export_format, path, source)
    return verification


def verify_backend(backend: Backend, reference: Reference, metadata: ModelMetadata) -> ParityResult:
    """Compare a loaded file with the net: all images, batches of 1, 3 and 32; and time it.

    Raises BackendError, SamplesError.
    """
    pixels = repeat_rows(reference.images.pixels[:BATCH], BATCH)
    # Run once before: a runtime may take another program for a size that it meets anew, as batches of 1 and 3 are.
    run_batch(backend, pixels, metadata)
    outputs = run_images(backend, reference.images, metadata)
    result = compare_outputs(outputs, reference, metadata)
    for size in OTHER_BATCHES:
        if not result.problem:
            result.problem = _batch_problem(backend, size, outputs, reference, metadata)
    if metadata.size_step and not result.problem:
        result.problem, result.other_size = _size_problem(backend, reference, metadata), other_size(metadata)
    if not result.problem:
        images = net_input(pixels, metadata.preprocess, metadata.input)
        eager_images = net_input(pixels, metadata.preprocess, reference.metadata.input)
        own, eager = time_in_turn(lambda: backend(images), lambda: reference.backend(eager_images))
        result.batch_ms, result.eager_ms = 1e3 * statistics.median(own), 1e3 * statistics.median(eager)
        result.batch_ms_spread = (1e3 * min(own), 1e3 * max(own))
    return result


def gpu_problem(device: str) -> str:
    """Return why an engine cannot be verified here; "" where it can."""
    return "--device cpu" if device == "cpu" else tensorrt_library.gpu_problem()


def _verify_on(
    runtime: str, path: Path, metadata: ModelMetadata, reference: Reference, device: str
) -> tuple[str, ParityResult]:
    name = runtime
    try:
        backend, own_metadata = load_backend(path, device=device, runtime=runtime or "auto")
        name = backend.name
        if own_metadata != metadata:
            return name, ParityResult(problem="the metadata in it is not what was written")
        with exact_float32():
            return name, verify_backend(backend, reference, metadata)
    except UserError as error:  # the backend's own message
        return name, ParityResult(problem=_without_folder(str(error), path))


def _runtimes(export_format: ExportFormat, device: str) -> list[str]:
    """Return what runs a format here, the default first; [""] where there is no choice."""
    if not export_format.runtimes:
        return [""]
    first = choose_runtime("auto", device)
    others = [name for name in export_format.runtimes if name != first and find_spec(name)]
    return [first, *(name for name in others if name != "openvino" or not device.startswith("cuda"))]


def _batch_problem(
    backend: Backend, size: int, outputs: np.ndarray, reference: Reference, metadata: ModelMetadata
) -> str:
    """Run the first images in a batch of another size; return why their outputs are not those of before, or ""."""
    pixels = repeat_rows(reference.images.pixels[:size], size)
    got = run_batch(backend, pixels, metadata)
    wanted = repeat_rows(outputs[:size], size)
    if got.shape != wanted.shape:
        return f"a batch of {size} returns {got.shape} instead of {wanted.shape}"
    difference = float(np.abs(got - wanted).max()) / reference.scale
    allowed = TOLERANCES.get(metadata.precision, INT8_BATCH_TOLERANCE)
    if not difference <= allowed and metadata.precision in TOLERANCES:
        allowed = reference.batch_tolerance(metadata.precision, pixels)
    if not difference <= allowed:
        values = f"{rule_of(metadata).value}s"
        return f"an image's {values} differ by {difference:.1e} of the largest between batches of {size} and {BATCH}"
    return ""


def _size_problem(backend: Backend, reference: Reference, metadata: ModelMetadata) -> str:
    """Run some images at `other_size`; return why their outputs are not the net's there, or ""."""
    preprocess, (height, width) = metadata.preprocess, other_size(metadata)
    more = ((0, 0), (0, height - preprocess.height), (0, width - preprocess.width), (0, 0))
    pixels = np.pad(reference.images.pixels[:SIZE_IMAGES], more, mode="wrap")
    got, wanted = run_batch(backend, pixels, metadata), run_batch(reference.backend, pixels, reference.metadata)
    if got.shape != wanted.shape:
        return f"at {width}x{height} it returns {got.shape} instead of {wanted.shape}"
    differences = np.abs(got - wanted) / (float(np.abs(wanted).max()) or 1.0)
    is_float = metadata.precision in TOLERANCES
    difference = float(differences.max() if is_float else differences.mean())
    if difference <= TOLERANCES.get(metadata.precision, MOST_INT8_DIFFERENCE):
        return ""
    if is_float and difference <= reference.tolerance(metadata.precision):
        return ""
    of = "" if is_float else " in the mean"
    return f"at {width}x{height} its {rule_of(metadata).value}s differ by {difference:.1e} of the largest{of}"


def _diverging_layer(export_format: ExportFormat, path: Path, source: Source) -> str:
    """Return the first layer of a refused file that diverges from the net; "" where it shows no layers."""
    if export_format.layer_values is None:
        return ""
    pixels, preprocess = source.pixels(DIFF_IMAGES), source.metadata.preprocess
    images = net_input(pixels, preprocess, source.net_input)
    try:
        own_images = torch.from_numpy(net_input(pixels, preprocess, source.metadata.input))
        calls = layer_diff.record_calls(source.net, own_images)
        values = export_format.layer_values(path, images, calls)
        if export_format.is_quantized:
            return layer_diff.first_noisy(calls, values)
        return layer_diff.first_diverging(calls, values, TOLERANCES[source.precision])
    except Exception as error:  # a damaged file may fail in any way; it is refused either way
        return f"not found: {_without_folder(first_line(error), path)}"


def _without_folder(text: str, path: Path) -> str:
    """Return an error's text without the temporary folder that the file lies in."""
    return text.removeprefix(f"{path}: ").replace(f"{path.parent}{os.sep}", "")
