"""A model repository of Triton from a file of an export: the file, config.pbtxt, and the class names.

Sources: triton-inference-server/server, docs/user_guide/model_repository.md and model_configuration.md;
triton-inference-server/common, protobuf/model_config.proto.
"""

from __future__ import annotations

import json
import re
import shutil
from importlib.util import find_spec
from pathlib import Path

from artifacts.metadata import ModelMetadata
from artifacts.metadata_reader import read_metadata
from artifacts.outputs import INPUT_NAME, Shape, input_shape, output_name, output_shape
from common.atomic_io import atomic_folder
from deploy.export.errors import ExportError
from pytorch2json.tensorrt_library import LIBRARIES

FORMATS = ("engine", "onnx", "int8")  # that Triton runs; the first that is asked for is taken
CONFIG, LABELS, VERSION = "config.pbtxt", "labels.txt", "1"
BACKENDS = {".onnx": ("onnxruntime", "model.onnx"), ".engine": ("tensorrt", "model.plan")}  # and the file's name there


def model_name(weights: Path) -> str:
    """Return the name of a weights file's model, which is its folder's in the repository."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", weights.stem)


def engine_problem() -> str:
    """Return why Triton could not run an engine that is built here; "" where it could."""
    library = next((name for name in LIBRARIES if find_spec(name)), LIBRARIES[0])
    return f"Triton runs engines of tensorrt, and this one would be of {library}" if library != LIBRARIES[0] else ""


def write_model(file: Path, folder: Path) -> None:
    """Write a model's folder, whose name is the model's, from an ONNX file or an engine, complete or not at all.

    Raises ExportError; ArtifactError where the file's metadata cannot be read; OSError where it cannot be written.
    """
    metadata = read_metadata(file)
    backend, name = BACKENDS[file.suffix]
    if file.suffix == ".engine" and metadata.batch_profile[0] > 1:
        raise ExportError(
            f"{file}: Triton asks for single images, and this engine takes {metadata.batch_profile[0]} at least"
        )
    with atomic_folder(folder) as new:
        version = new / VERSION
        version.mkdir()
        shutil.copyfile(file, version / name)
        weights = file.with_name(f"{file.name}.data")  # of an ONNX file of more than 2 GB, which names it
        if weights.exists():
            shutil.copyfile(weights, version / weights.name)
        if metadata.output == "logits":
            (new / LABELS).write_text("".join(f"{name}\n" for name in metadata.class_names), encoding="utf-8")
        (new / CONFIG).write_text(model_config(metadata, folder.name, backend), encoding="utf-8")


def model_config(metadata: ModelMetadata, name: str, backend: str) -> str:
    """Return a model's config.pbtxt: dynamic batches up to the profile's largest, an engine's best size preferred.

    The parameter "facts" holds the metadata, whose preprocessing a client needs.
    """
    _, best, most = metadata.batch_profile
    labels = f"\n    label_filename: {_text(LABELS)}" if metadata.output == "logits" else ""
    preferred = f" preferred_batch_size: [ {best} ] " if backend == "tensorrt" else " "
    is_float = metadata.input == "float32 NCHW"
    return f"""\
name: {_text(name)}
backend: {_text(backend)}
max_batch_size: {most}
input [
  {{
    name: {_text(INPUT_NAME)}
    data_type: {"TYPE_FP32" if is_float else "TYPE_UINT8"}
    dims: [ {_sizes(input_shape(metadata))} ]
  }}
]
output [
  {{
    name: {_text(output_name(metadata))}
    data_type: TYPE_FP32
    dims: [ {_sizes(output_shape(metadata) or (None, None))} ]{labels}
  }}
]
dynamic_batching {{{preferred}}}
parameters {{
  key: "facts"
  value {{ string_value: {_text(metadata.to_json())} }}
}}
"""


def _sizes(shape: Shape) -> str:
    """Return a shape without its batch."""
    return ", ".join("-1" if size is None else str(size) for size in shape[1:])


def _text(value: str) -> str:
    """Return a text in quotes; what JSON escapes, protobuf's text format reads alike."""
    return json.dumps(value, ensure_ascii=False)
