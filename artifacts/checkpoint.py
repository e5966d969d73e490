"""The checkpoint: a trained net that knows everything about itself, as plain tensors and values."""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from artifacts.facts import Facts

FORMAT = "classic-trainer checkpoint"
FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or written; the message names the file and the reason."""


@dataclass
class Checkpoint:
    """What a run needs to go on, and a deployment to answer.

    `net` and `ema` are state dicts; where `ema` is there, it is the one that was validated and is deployed.
    `progress` holds step, epoch, pictures consumed of the epoch, best metric and history: plain values.
    """

    config: dict[str, Any]
    facts: Facts
    net: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor] | None = None
    optimizer: dict[str, Any] | None = None
    scaler: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)

    def deployed(self) -> dict[str, torch.Tensor]:
        """Give the weights that answer."""
        return self.net if self.ema is None else self.ema


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint whole or not at all: a temporary file in the same folder, fsync, rename, fsync of the folder.

    Raises CheckpointError naming the path; the file that stood there before is then untouched.
    """
    path = Path(path)
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": checkpoint.config,
        "facts": checkpoint.facts.to_dict() | {"weights_sha256": weights_sha256(checkpoint.deployed())},
        "net": checkpoint.net,
        "ema": checkpoint.ema,
        "optimizer": checkpoint.optimizer,
        "scaler": checkpoint.scaler,
        "progress": checkpoint.progress,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise CheckpointError(f"{path}: cannot write the checkpoint: {_reason(error)}") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU. Raises CheckpointError where it is damaged, foreign or too new."""
    content = _load(Path(path))
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path}: bare weights without config and facts; name a config for them with --config")
    version = content.get("format_version")
    if not isinstance(version, int):
        raise CheckpointError(f"{path}: the checkpoint is incomplete: 'format_version'")
    if version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: written by a newer program (format {version}, this one reads {FORMAT_VERSION})")
    try:
        checkpoint = Checkpoint(
            config=content["config"],
            facts=Facts.from_dict(content["facts"]),
            net=content["net"],
            ema=content["ema"],
            optimizer=content["optimizer"],
            scaler=content["scaler"],
            progress=content["progress"],
        )
        is_whole = weights_sha256(checkpoint.deployed()) == checkpoint.facts.weights_sha256
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: the checkpoint is incomplete: {error}") from error
    if not is_whole:
        raise CheckpointError(f"{path}: the weights do not match their sha256: the file is damaged")
    return checkpoint


def load_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the weights of a checkpoint, or of a bare state dict (also under "state_dict", "model" or "net")."""
    content = _load(Path(path))
    if content.get("format") == FORMAT:
        return load_checkpoint(path).deployed()
    for key in ("state_dict", "model", "net"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    weights = {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
    if not weights:
        keys = ", ".join(list(map(str, content))[:5])
        raise CheckpointError(f"{path}: no weights in it (its keys: {keys or 'none'})")
    return weights


def is_checkpoint(path: str | Path) -> bool:
    """Say whether a file is a checkpoint of ours (and not a bare state dict). Raises CheckpointError."""
    return bool(_load(Path(path)).get("format") == FORMAT)


def weights_sha256(state: dict[str, torch.Tensor]) -> str:
    """Digest names, dtypes, shapes and bytes of a state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)  # (bytes,)
    return digest.hexdigest()


def _load(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file (relative paths start from {Path.cwd()})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of pickles it did not write itself; they are refused or read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "it holds more than plain tensors and values (or is damaged), and was not read"
        raise CheckpointError(f"{path}: {reason}") from error
    except Exception as error:  # on a damaged file torch raises anything: IndexError, AssertionError, struct.error
        raise CheckpointError(f"{path}: cannot read it: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint or a state dict")
    return content


def _reason(error: BaseException) -> str:
    cause = error
    while not isinstance(cause, OSError) and cause.__context__ is not None:
        cause = cause.__context__  # what torch met while writing, a full disk say
    if isinstance(cause, OSError):
        error = cause
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0]


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
