"""The formats of an export: one row each holds all that the program knows of it.

A new format is a row here and its writer in writers.py. The functions of a row are named, and imported when they are
called: `--help` and mistakes in a request are answered without torch.
"""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass
from typing import Any

ALL = "all"  # of --formats
PRECISIONS = ("fp32", "fp16", "bf16", "int8")  # of the formats without one of their own
INT8_FORMATS = ("json", "engine")  # of those the ones that int8 is a precision of
WTS = "model.wts"
OPSETS = (18, 23)  # of ONNX, lowest and highest
OPSET, OPSET_BF16 = 18, 22  # what every runtime of the last years has; the first whose convolution takes bf16
WRITTEN, REFUSED, UNVERIFIED, MISSING = "written", "refused", "not proved", "not made"  # in export_report.json
MAX_BATCH = 65536
UNKNOWN_LICENCE = "unknown"  # as the Hugging Face Hub calls it
MAX_SAMPLES = 1000  # of which one may change its class
FLOAT_ONNX = "float.onnx"  # the file that int8 is made from, beside it


def default_opset(precision: str) -> int:
    """Return the lowest opset that holds a net of this precision."""
    return OPSET_BF16 if precision == "bf16" else OPSET


@dataclass(frozen=True)
class LateFunction:
    """A function by its name, "package.module:function", imported when it is called."""

    name: str

    def __call__(self, *arguments: Any) -> Any:
        """Import the function and call it."""
        return pkgutil.resolve_name(self.name)(*arguments)


@dataclass(frozen=True)
class ExportFormat:
    """One format, and how it is written, verified and searched for a fault."""

    name: str
    files: tuple[str, ...]  # the first is the one that is loaded
    title: str  # in --help
    write: LateFunction  # (Source, path of the first file), which raises where the net cannot be written
    layer_values: LateFunction | None = None  # (path, images, the net's calls) -> a refused file's output of each call
    runtimes: tuple[str, ...] = ()  # what runs it, where there is a choice; the backend's default decides
    precision: str = ""  # where it has its own; else that of the request
    made_from: str = ""  # the format whose files it is made from
    has_any_size: bool = False  # whether its heights and widths may be free
    only_of: str = ""  # the output that a net must have
    own_check: LateFunction | None = None  # (path, Source, Reference) -> why it is refused besides, or ""
    library_problem: LateFunction | None = None  # () -> why it cannot be made here, or ""
    device_problem: LateFunction | None = None  # (device) -> why it cannot be verified here, or ""

    @property
    def is_quantized(self) -> bool:
        """Whether it is calibrated on images and verified by int8's rules."""
        return self.precision == "int8"


def _late(function: str) -> LateFunction:
    return LateFunction(f"deploy.export.{function}")


_ROWS = (  # in the order in which they are made
    ExportFormat(
        "jit", ("model.pt",), "TorchScript (deprecated by torch in favour of pt2)",
        has_any_size=True, write=_late("writers:write_jit"), layer_values=_late("layer_values:jit_values"),
    ),
    ExportFormat(
        "pt2", ("model.pt2",), "torch.export",
        has_any_size=True, write=_late("writers:write_pt2"), layer_values=_late("layer_values:pt2_values"),
    ),
    ExportFormat(
        "onnx", ("model.onnx",), "ONNX",
        has_any_size=True, write=_late("writers:write_onnx"), layer_values=_late("layer_values:onnx_values"),
        runtimes=("onnxruntime", "openvino"),
    ),
    ExportFormat(
        "nms", ("model.nms.onnx",), "of a detector: ONNX with non-maximum suppression; makes onnx too",
        write=_late("nms_graph:write_nms"), runtimes=("onnxruntime", "openvino"), made_from="onnx", only_of="boxes",
        own_check=_late("nms_graph:suppression_problem"),
    ),
    ExportFormat(
        "int8", ("model.int8.onnx",), "ONNX in 8 bits, calibrated on training images",
        has_any_size=True, write=_late("writers:write_int8"), layer_values=_late("layer_values:int8_values"),
        runtimes=("onnxruntime", "openvino"), precision="int8",
    ),
    ExportFormat(
        "json", ("model.json", "model.safetensors"),
        "network description for TensorRT, with its weights in model.safetensors",
        write=_late("writers:write_json"), layer_values=_late("layer_values:json_values"),
    ),
    ExportFormat(
        "engine", ("model.engine", "model.engine.facts.json"),
        "TensorRT engine, with its metadata beside it; makes the description too",
        write=_late("writers:write_engine"), made_from="json",
        library_problem=LateFunction("pytorch2json.tensorrt_library:library_problem"),
        device_problem=_late("verification:gpu_problem"),
    ),
)  # fmt: skip
EXPORT_FORMATS = {row.name: row for row in _ROWS}
FORMAT_NAMES = (*EXPORT_FORMATS, ALL)
