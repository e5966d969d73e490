"""torch.export's archive, read only where torch would neither unpickle nor evaluate anything in it."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.backends.base import BackendError, reason
from deploy.backends.torch_archive import rewrite_archive

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.export.pt2_archive import PT2ArchiveReader

RECORDS = re.compile(  # what torch.export.save writes for a net of plain tensors
    r"(data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt|models/model\.json|extra/.*"
    r"|archive_format|archive_version|byteorder|\.data/.*)"
)
CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|torchvision)\.(?!(from_file|save)\.)\w+\.\w+"  # those two touch files
    r"|torch\.sym_(float|int|max|min|not|sum)|math\.(ceil|floor|trunc)"
    r"|_operator\.(add|sub|mul|truediv|floordiv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|getitem)"
)
CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict")  # None: a tensor
NAMES = re.compile(r"[\w.-]*", re.ASCII)
SYMBOL = re.compile(r"Symbol\('\w+'(, \w+=(True|False))*\)")
EXPRESSION = re.compile(  # torch hands it to sympy, which evaluates it
    r"(\d|[-+*/(),<>= ]"
    r"|\b(Integer|Add|Mul|Pow|Max|Min|Equality|Unequality|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing"
    r"|(Strict)?(Less|Greater)Than|PowByNatural|true|false|evaluate|True|False)\b)*"
)


def read_program(path: Path) -> ExportedProgram:
    """Read a file of torch.export.save. Raises BackendError where it is damaged, or has more than plain tensors."""
    import torch
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        copy = rewrite_archive(path)
        with PT2ArchiveReader(copy) as archive:
            problem = next(_find_risks(archive), "")
        if not problem:
            copy.seek(0)
            program = torch.export.load(copy)
            num_outputs = len(program.graph_signature.user_outputs)
    except Exception as error:  # on a damaged file torch raises anything
        raise BackendError(f"{path}: it is damaged, or no torch.export file: {reason(error)}") from error
    if problem:
        raise BackendError(f"{path}: it has more than a net of plain tensors, and was not loaded: {problem}")
    if num_outputs != 1:
        raise BackendError(f"{path}: it must return one tensor for a batch, and returns {num_outputs}")
    return program


def _find_risks(archive: PT2ArchiveReader) -> Iterator[str]:
    """Yield what torch would run of an archive: pickles, compiled code, functions by name, expressions as text."""
    import torch

    for name in archive.get_file_names():
        if not RECORDS.fullmatch(name):
            yield f'"{name}"'
    for name in CONFIGS:
        for tensor, entry in json.loads(archive.read_bytes(name))["config"].items():
            if entry["use_pickle"]:
                yield f'"{tensor}" is pickled'
    torch.load(io.BytesIO(archive.read_bytes("data/sample_inputs/model.pt")), weights_only=True)
    for key, value in _texts(json.loads(archive.read_bytes("models/model.json"))):
        if key in ("target", "as_operator") and not OPERATORS.fullmatch(value):
            yield f'the operator "{value}"'
        elif key == "expr_str" and not EXPRESSION.fullmatch(SYMBOL.sub("", value)):
            yield f'the expression "{value}"'
        elif key.endswith("name") and not NAMES.fullmatch(value):  # torch writes Python code with them
            yield f'the name "{value}"'
        elif key == "guards_code":
            yield f'the guard "{value}"'
        elif key in ("in_spec", "out_spec") and not _is_plain_spec(value):
            yield f'the structure "{value[:200]}"'


def _is_plain_spec(text: str) -> bool:
    """Return whether a structure of arguments is one of tuples, lists, and dictionaries with plain keys.

    Those of other types, and keys that are members of an enum, make torch import modules by name.
    """

    def is_plain(spec: dict[str, Any]) -> bool:
        keys = json.loads(spec["context"]) if spec["context"] else None
        are_plain = keys is None or (isinstance(keys, list) and all(isinstance(key, str | int) for key in keys))
        return spec["type"] in CONTAINERS and are_plain and all(map(is_plain, spec["children_spec"]))

    version, spec = json.loads(text)
    return version == 1 and is_plain(spec)


def _texts(values: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a JSON value with the key of it, or of the list that it is in."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, dict):
        for name, value in values.items():
            yield from _texts(value, name)
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, key)
