"""The request for an export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts.formats import TITLES, artifact_kind
from common.atomic_io import check_folder
from common.formatting import did_you_mean, is_utf8
from configs.schema import Config
from deploy.export.errors import ExportError
from deploy.export.formats import (
    ALL,
    EXPORT_FORMATS,
    FORMAT_NAMES,
    INT8_FORMATS,
    OPSETS,
    PRECISIONS,
    UNKNOWN_LICENCE,
    ExportFormat,
    default_opset,
)
from deploy.export.triton import FORMATS as TRITON_FORMATS
from deploy.export.triton import engine_problem, model_name

TRAINING_REPORT = "report.json"


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """One export: which weights, to which formats, where, verified on what."""

    weights: Path  # a checkpoint, or bare weights, which `config` describes
    formats: Sequence[str]  # names of EXPORT_FORMATS, or "all"
    output_dir: Path
    samples: Path | None = None  # a list or a folder of images; None: the checkpoint's own validation data
    samples_root: Path | None = None  # where the list's paths start
    config: Config | None = None
    max_samples: int | None = None  # None: 1000, or what fits in 2 GB; 0: all
    device: str = "auto"
    precision: str = "fp32"  # one of PRECISIONS
    with_preprocess: str = ""  # "rgb" or "bgr": the files then take uint8 (N, H, W, C)
    batch_profile: tuple[int, int, int] | None = None  # min, best, max; None: the metadata's own
    opset: int | None = None  # of ONNX; None: OPSET, or OPSET_BF16
    int8_symmetric: bool = False  # the int8 file with zero points of 0, which TensorRT takes
    any_size: bool = False  # heights and widths of the input are free
    wts: bool = False  # also write the state dict as tensorrtx's text
    triton: Path | None = None  # a model repository of Triton, which one of the files goes to
    hub: Path | None = None  # a new folder for the Hugging Face Hub
    report: Path | None = None  # of the training, for that folder's card; None: the one beside the weights
    licence: str = UNKNOWN_LICENCE  # of the weights, for that card

    @property
    def net_input(self) -> str:
        """The files' input, one of metadata.INPUTS."""
        return f"uint8 NHWC {self.with_preprocess.upper()}" if self.with_preprocess else "float32 NCHW"

    @property
    def onnx_opset(self) -> int:
        """The opset of the ONNX files."""
        return self.opset or default_opset(self.precision)

    @property
    def training_report(self) -> Path:
        """The report.json that a model card is made from."""
        return self.report or self.weights.with_name(TRAINING_REPORT)

    @property
    def triton_format(self) -> str:
        """The format whose file goes to Triton: an engine where one is asked for by name, else ONNX; "" for none."""
        wanted = {"onnx"} if ALL in self.formats else set(self.formats)
        return next((name for name in TRITON_FORMATS if name in wanted | set(self.formats)), "")

    @property
    def triton_folder(self) -> Path | None:
        """The folder of the net's model in Triton's repository."""
        return self.triton and self.triton / model_name(self.weights)

    def check(self) -> list[ExportFormat]:
        """Return the formats to make, in their order. Raises UserError; needs no torch."""
        known = f"known are {', '.join(FORMAT_NAMES)}"
        for name in self.formats:
            if name not in FORMAT_NAMES:
                raise ExportError(f'unknown format "{name}"{did_you_mean(name, FORMAT_NAMES)}; {known}')
        if not self.formats and self.hub is None:
            raise ExportError(f"no format was requested; {known}")
        if self.precision not in PRECISIONS:
            raise ExportError(f'precision must be {", ".join(PRECISIONS)}, got "{self.precision}"')
        least = default_opset(self.precision)
        if not least <= self.onnx_opset <= OPSETS[1]:
            raise ExportError(f"opset must be {least} to {OPSETS[1]} for {self.precision}, got {self.onnx_opset}")
        if self.with_preprocess not in ("", "rgb", "bgr"):
            raise ExportError(f'with_preprocess must be rgb or bgr, got "{self.with_preprocess}"')
        if (kind := artifact_kind(self.weights)) != "checkpoint":
            raise ExportError(f"{self.weights}: an export starts from a checkpoint (got: {TITLES[kind]})")
        self._check_places()
        self._check_folders()
        wanted = set(EXPORT_FORMATS) if ALL in self.formats else set(self.formats)
        if self.int8_symmetric and "int8" not in wanted:
            raise ExportError("--int8_symmetric is of the int8 file; add int8 to --formats")
        wanted |= {EXPORT_FORMATS[name].made_from for name in wanted}
        rows = [row for name, row in EXPORT_FORMATS.items() if name in wanted]
        return self._in_int8(rows) if self.precision == "int8" else rows

    def _in_int8(self, rows: Sequence[ExportFormat]) -> list[ExportFormat]:
        """Return the formats with int8 as their precision. Raises ExportError for one that has no int8."""
        if wrong := [row.name for row in rows if not row.precision and row.name not in INT8_FORMATS]:
            known = " and ".join(INT8_FORMATS)
            raise ExportError(f"precision int8 is of {known}, and --formats int8 is ONNX; got {', '.join(wrong)}")
        return [replace(row, precision="int8") for row in rows]

    def _check_folders(self) -> None:
        """Raise ExportError, ResultsError for folders beside the files that cannot be made."""
        if self.triton is not None and not self.triton_format:
            raise ExportError(f"--triton takes one of {', '.join(TRITON_FORMATS)}; add it to --formats")
        if self.triton is not None and self.triton_format == "engine" and (problem := engine_problem()):
            raise ExportError(f"--triton: {problem}; ask for onnx instead")
        if self.hub is None and (self.report is not None or self.licence != UNKNOWN_LICENCE):
            raise ExportError("--report and --licence are of the folder that --hub writes")
        for flag, folder in (("--triton", self.triton_folder), ("--hub", self.hub)):
            if folder is None:
                continue
            check_folder(folder)
            if folder.exists() and any(folder.iterdir()):
                raise ExportError(f"{folder}: it is there already; remove it, or choose another folder for {flag}")

    def _check_places(self) -> None:
        if not is_utf8(str(self.output_dir)):
            hint = "which some of the libraries that write the files cannot open; choose another --output_dir"
            raise ExportError(f"{self.output_dir}: this path is not UTF-8, {hint}")
        if self.samples_root is None:
            return
        if self.samples is None or self.samples.is_dir():
            raise ExportError("--samples_root is what the paths of a list start from; name the list with --samples")
        if not self.samples_root.is_dir():
            raise ExportError(f"{self.samples_root}: no such folder for --samples_root")
