"""The two files of a network description: NAME.json and its weights, NAME.safetensors."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from common.atomic_io import atomic_path
from common.checksums import file_sha256
from pytorch2json.description_checks import find_problems
from pytorch2json.network import FORMAT, FORMAT_VERSIONS, TYPES, DescriptionError, Network, WeightsFile

if TYPE_CHECKING:
    import torch

MAX_DESCRIPTION_BYTES = 256 * 2**20


def read_description(path: str | Path) -> tuple[Network, dict[str, torch.Tensor]]:
    """Read a description and its weights, and check that they fit together. Raises DescriptionError."""
    path = Path(path)
    network = read_network(path)
    file = path.parent / network.weights.file
    if not file.is_file():
        raise DescriptionError(f"{path}: its weights file {network.weights.file} is not beside it")
    if (sha256 := file_sha256(file)) != network.weights.sha256:
        expected = network.weights.sha256
        raise DescriptionError(f"{file}: not the weights of {path}: sha256 {sha256[:12]}..., not {expected[:12]}...")
    weights = _read_weights(file)
    if problem := next(find_problems(network, weights), ""):
        raise DescriptionError(f"{path}: {problem}")
    return network, weights


def read_network(path: str | Path) -> Network:
    """Read a description without its weights. Raises DescriptionError."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_DESCRIPTION_BYTES:
            raise DescriptionError(f"{path}: it is too large for a description ({path.stat().st_size} bytes)")
        text = path.read_bytes()
    except OSError as error:
        raise DescriptionError(f"{path}: cannot read it: {error.strerror}") from error
    _check_version(path, text)
    try:
        return Network.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part not in TYPES)
        if first["type"] == "union_tag_invalid":
            known = ", ".join(TYPES)
            raise DescriptionError(f'{path}: {where}: unknown type "{first["ctx"]["tag"]}"; known: {known}') from error
        raise DescriptionError(f"{path}: {where or 'it'}: {first['msg']}{_got(first)}") from error


def write_description(path: str | Path, network: Network, weights: Mapping[str, torch.Tensor]) -> Network:
    """Write NAME.json and NAME.safetensors, each complete or not at all; return the network with its weights' sha256.

    The weights come first: the sha256 shows an interruption between the two when the files are read.
    Raises DescriptionError.
    """
    from safetensors.torch import save

    path = Path(path)
    if problem := next(find_problems(network, weights), ""):
        raise DescriptionError(f"{path}: {problem}")
    file = path.with_suffix(".safetensors")
    try:
        weights_file = WeightsFile(file=file.name, sha256="0" * 64)
    except ValidationError as error:
        raise DescriptionError(f"{path}: name the description with letters, digits, _, - and . alone") from error
    with atomic_file(file) as temporary:
        # Not save_file: its files are readable by their owner alone, whatever the umask says.
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in weights.items()}))
        weights_file = weights_file.model_copy(update={"sha256": file_sha256(temporary)})
    network = network.model_copy(update={"weights": weights_file})
    with atomic_file(path) as temporary:
        temporary.write_text(to_json(network), encoding="utf-8")
    return network


def to_json(network: Network) -> str:
    """Return the description's text: one line a layer."""
    values = network.model_dump(mode="json")
    layers = values.pop("layers")
    lines = [f"  {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in values.items()]
    rows = ",\n".join(f"    {json.dumps(layer, ensure_ascii=False)}" for layer in layers)
    return "\n".join(["{", *lines, '  "layers": [', rows, "  ]", "}", ""])


@contextmanager
def atomic_file(target: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `target` when the block ends; make its folder. Raises DescriptionError."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(target) as temporary:
            yield temporary
    except OSError as error:
        raise DescriptionError(f"{target}: cannot write it: {error.strerror or error}") from error


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DescriptionError(f"{file}: damaged: {error}") from error


def _check_version(path: Path, text: bytes) -> None:
    """Raise DescriptionError for JSON that is no description, or a newer one."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DescriptionError(f"{path}: it is not JSON: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise DescriptionError(f'{path}: it is not a network description (its "format" must be "{FORMAT}")')
    if (version := values.get("format_version")) not in FORMAT_VERSIONS:
        known = " and ".join(map(str, FORMAT_VERSIONS))
        raise DescriptionError(f"{path}: format_version {reprlib.repr(version)}; this program reads {known}")


def _got(error: Mapping[str, Any]) -> str:
    value = repr(error["input"])
    return "" if error["type"] == "missing" or len(value) > 80 else f", got {value}"
