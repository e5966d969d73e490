"""The checkpoint: a trained net with its config, metadata and training state, as plain tensors and values."""

from __future__ import annotations

import argparse
import errno
import hashlib
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from artifacts.archive import backup_files, is_complete, is_safetensors, verify_archive, write_archive
from artifacts.errors import ArtifactError, CheckpointError, DamagedCheckpointError
from artifacts.hub_folder import class_names_in, hub_class_names, hub_config, weights_file
from artifacts.metadata import ModelMetadata
from common.formatting import first_line

FORMAT = "classic-trainer checkpoint"
FORMAT_VERSION = 1
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")  # as timm takes them: they are what was validated
NETS = (*AVERAGED, "state_dict", "model", "net")  # keys of a foreign file's weights; the first that is there is taken
SAFETENSORS = ".safetensors"


@dataclass
class Checkpoint:
    """What a run needs to resume, and a deployment to predict.

    `net` and `ema` are state dicts; where `ema` is given, it is the one that was validated and is deployed. `companion`
    is one of what is trained beside the net.
    `progress` holds step, epoch, images consumed of the epoch, best metric and history: plain values.
    """

    config: dict[str, Any]
    metadata: ModelMetadata
    net: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)
    companion: dict[str, torch.Tensor] | None = None

    def deployed(self) -> dict[str, torch.Tensor]:
        """Return the weights to predict with."""
        return self.net if self.ema is None else self.ema


def save_checkpoint(checkpoint: Checkpoint, path: str | Path, *, backups: int = 0) -> None:
    """Write a checkpoint complete or not at all, with a digest of all its bytes.

    `backups` is how many of those that stood there before are kept, as net.1.pth, net.2.pth beside net.pth.
    Raises CheckpointError naming the path; the file that stood there before is then untouched.
    """
    path = Path(path)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config,
        "facts": checkpoint.metadata.to_dict() | {"weights_sha256": weights_sha256(checkpoint.deployed())},
        "net": checkpoint.net,
        "ema": checkpoint.ema,
        "companion": checkpoint.companion,
        "optimizer": checkpoint.optimizer,
        "scaler": checkpoint.scaler,
        "progress": checkpoint.progress,
    }
    _write(content, path, backups)


def rewrite_metadata(path: str | Path, metadata: ModelMetadata) -> None:
    """Replace the metadata in a checkpoint, completely or not at all; all else stays, and a link still leads to it.

    Raises CheckpointError where it is damaged, bare weights, or the metadata is of other weights.
    """
    path = Path(path).resolve()
    own = load_checkpoint(path).metadata
    if metadata.weights_sha256 != own.weights_sha256:
        raise CheckpointError(f"{path}: the metadata is of other weights than the checkpoint's")
    _write(_load(path) | {"facts": metadata.to_dict()}, path)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises CheckpointError where it is damaged, foreign or too new."""
    return _checkpoint_of(_load(Path(path)), path)


def newest_complete_checkpoint(path: str | Path, log: Callable[[str], None]) -> Checkpoint:
    """Read a checkpoint, or where it is damaged or gone the newest complete backup, and log which one.

    Raises CheckpointError.
    """
    path = Path(path)
    try:
        return load_checkpoint(path)
    except CheckpointError as error:
        if path.is_file() and not isinstance(error, DamagedCheckpointError):
            raise
        others = ""
        for backup in backup_files(path):
            try:
                checkpoint = load_checkpoint(backup)
            except CheckpointError:
                others += f"; {backup.name} is damaged too"
                continue
            log(f"warning: {error}; going on from {backup.name}, the one before")
            return checkpoint
        raise type(error)(f"{error}{others}") from error


@dataclass(frozen=True)
class WeightsFile:
    """Weights with what their file says of them: the metadata of a checkpoint, a `note` on which weights were taken.

    `class_names` are in the order of the labels; () where the file names none.
    """

    weights: dict[str, torch.Tensor]
    metadata: ModelMetadata | None = None
    note: str = ""
    class_names: tuple[str, ...] = ()


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint, or of a bare state dict; see `load_weights_file`."""
    return load_weights_file(path).weights


def load_weights_file(path: str | Path) -> WeightsFile:
    """Read the weights of a checkpoint, a bare state dict (also under a key of NETS), or a folder of the Hub.

    Under another key, a state dict is read if it is the only one. Raises CheckpointError.
    """
    described = hub_config(Path(path))
    path = weights_file(Path(path))
    content = _load(path)
    if content.get("format") == FORMAT:
        checkpoint = _checkpoint_of(content, path)
        metadata = checkpoint.metadata
        return WeightsFile(checkpoint.deployed(), metadata, class_names=metadata.class_names)
    key, weights, others = _weights_in(content, path)
    notes = []
    if is_safetensors(path) and path.suffix.lower() != SAFETENSORS:
        notes.append("it is a safetensors file, whatever its name says")
    if others:
        also = ", ".join(f'"{other}"' for other in others)
        kind = "the averaged ones," if key in AVERAGED else "those of"
        notes.append(f'the weights are {kind} "{key}"; it also has {also}: to start from it, save it alone in a file')
    names = hub_class_names(described) or class_names_in(content.get("class_names"))
    return WeightsFile(weights, None, "; ".join(notes), names)


def is_checkpoint(path: str | Path) -> bool:
    """Return whether a file is a checkpoint of this program, not a bare state dict. Raises CheckpointError."""
    return bool(_load(weights_file(Path(path)), lazily=True).get("format") == FORMAT)


def weights_sha256(state: dict[str, torch.Tensor]) -> str:
    """Return the sha256 of the names, dtypes, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # (bytes,)
    return digest.hexdigest()


def _weights_in(content: dict[str, Any], path: str | Path) -> tuple[str, dict[str, torch.Tensor], list[str]]:
    """Return the key of the weights in a foreign file ("": none), the weights, and the keys of others that it has.

    Raises CheckpointError where there are none, or several under unknown keys.
    """
    found = {str(key): tensors for key, value in content.items() if (tensors := _tensors(value))}
    key = next((key for key in NETS if key in found), "")
    weights = found.pop(key) if key else _tensors(content)
    if weights:
        return key, weights, list(found)
    if len(found) == 1:
        key, weights = found.popitem()
        return key, weights, []
    keys = ", ".join(list(map(str, content))[:5])
    if found:
        raise CheckpointError(f"{path}: weights of several nets in it ({keys}); save the right ones alone in a file")
    raise CheckpointError(f"{path}: no weights in it (its keys: {keys or 'none'})")


def _tensors(value: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a dictionary by their names; {} for anything else."""
    items = value.items() if isinstance(value, dict) else ()
    return {str(name): tensor for name, tensor in items if isinstance(tensor, torch.Tensor)}


def _checkpoint_of(content: dict[str, Any], path: str | Path) -> Checkpoint:
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: bare weights without config and metadata, no checkpoint of train.py")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: the checkpoint is incomplete: 'format_version'")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: written by a newer program (format {version}, this one reads {FORMAT_VERSION})")
    try:
        for part in ("config", "facts", "net", "progress"):
            if not isinstance(content[part], dict):
                raise TypeError(f"'{part}' is no dictionary")
        checkpoint = Checkpoint(
            config=content["config"],
            metadata=ModelMetadata.from_dict(content["facts"]),
            net=content["net"],
            ema=content["ema"],
            optimizer=content["optimizer"],
            scaler=content["scaler"],
            progress=content["progress"],
            companion=content.get("companion"),  # not in older files
        )
        is_intact = weights_sha256(checkpoint.deployed()) == checkpoint.metadata.weights_sha256
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: the checkpoint is incomplete: {error}") from error
    if not is_intact:
        raise DamagedCheckpointError(f"{path}: the weights do not match their sha256: the file is damaged")
    return checkpoint


def _write(content: dict[str, Any], path: Path, backups: int = 0) -> None:
    try:
        write_archive(path, lambda file: torch.save(content, file), backups=backups)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"{path}: cannot write the checkpoint: {_reason(error)}") from error


def _load(path: Path, *, lazily: bool = False) -> dict[str, Any]:
    """Read the content of a file; lazily, its tensors are read from the disk when they are used."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file (relative paths start from {Path.cwd()})")
    try:
        if is_safetensors(path):
            from safetensors.torch import load_file

            return dict(load_file(path))
        is_archive = verify_archive(path)
        plain = torch.serialization.safe_globals([argparse.Namespace])  # timm's and torchvision's "args": values alone
        with warnings.catch_warnings(), plain:
            warnings.simplefilter("ignore")  # torch warns of pickles it did not write itself; they are refused or read
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily and is_archive)
    except ArtifactError as error:
        raise DamagedCheckpointError(f"{error}{_hint(path)}") from error
    except OSError as error:
        failing = error.errno == errno.EIO  # the disk; any other error is not the file's
        kind, hint = (DamagedCheckpointError, _hint(path)) if failing else (CheckpointError, "")
        raise kind(f"{path}: cannot read it: {_reason(error)}{hint}") from error
    except pickle.UnpicklingError as error:
        kind = CheckpointError if is_archive else DamagedCheckpointError  # an archive has been verified
        reason = "it holds more than plain tensors and values (or is damaged), and was not read"
        raise kind(f"{path}: {reason}{'' if is_archive else _hint(path)}") from error
    except Exception as error:  # on a foreign file torch raises anything: IndexError, AssertionError, struct.error
        if "weights_only" in str(error):  # torch's message advises to read it without that, which would run its code
            if not is_archive:  # zeros are an empty archive of torch's first format
                reason = "it is damaged, or of a format before torch 0.1.10"
                raise DamagedCheckpointError(f"{path}: {reason}{_hint(path)}") from error
            foreign = "a TorchScript file (inference.py takes it with the ending .pt)"
            raise CheckpointError(f"{path}: it is {foreign}, not a checkpoint or a state dict") from error
        raise DamagedCheckpointError(f"{path}: cannot read it: {_reason(error)}{_hint(path)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint or a state dict")
    for name, tensor in _every_tensor(content):
        if problem := _unusual(tensor):
            raise CheckpointError(f'{path}: its tensor "{name}" {problem}; it was not read')
    return content


def _every_tensor(value: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of dictionaries and lists, with the keys that lead to it."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, part in items:
        yield from _every_tensor(part, f"{name}.{key}" if name else str(key))


def _unusual(tensor: torch.Tensor) -> str:
    """Return why a tensor is none that a training writes; "" where it is plain values in memory.

    torch fills what has no values, or fewer than its shape, with as much memory as the shape asks for.
    """
    if tensor.layout != torch.strided:
        return f"is stored as {tensor.layout}".replace("torch.", "")
    if tensor.device.type != "cpu":
        return f"has no values (it is on the device {tensor.device.type})"
    if tensor.is_quantized or tensor.is_conj() or tensor.is_neg():
        return "is quantized, or a view that computes its values"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"has the shape {tuple(tensor.shape)}, and fewer values than that"
    return ""


def _hint(path: Path) -> str:
    """Return a hint at a complete checkpoint to use in a damaged one's place: a backup, or the training's last."""
    for other in [*backup_files(path), path.with_name(f"{path.stem}_last{path.suffix}")]:
        if is_complete(other):
            return f"; {other} is complete"
    return ""


def _reason(error: BaseException) -> str:
    cause = error
    while not isinstance(cause, OSError) and cause.__context__ is not None:
        cause = cause.__context__  # the cause that torch met while writing, such as a full disk
    if isinstance(cause, OSError):
        error = cause
    return getattr(error, "strerror", None) or first_line(error)
