"""Backends: a weights file becomes a call from float32 NCHW to logits, whatever made the file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from artifacts.facts import Facts, class_names_of, facts_of
from configs.schema import Config

if TYPE_CHECKING:
    import torch
    from torch import nn


class BackendError(ValueError):
    """A backend that cannot be loaded or run; the message is one sentence for the user."""


class Backend(Protocol):
    """A net that answers: float32 (N, C, H, W) -> logits float32 (N, K)."""

    name: str
    device: str

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give the logits of a batch. Raises BackendError."""


def load_backend(weights: str | Path, *, device: str = "auto", config: Config | None = None) -> tuple[Backend, Facts]:
    """Load what the file's ending asks for, with its facts.

    `device` is auto (CUDA where there is one), cpu, cuda or cuda:N. `config` describes weights that carry no facts.
    Raises BackendError, CheckpointError, NetError, ListError.
    """
    return loader_of(weights)(Path(weights), device, config)


def loader_of(weights: str | Path) -> Callable[[Path, str, Config | None], tuple[Backend, Facts]]:
    """Find what loads this file. Raises BackendError where it is missing or nothing does; needs no torch."""
    path = Path(weights)
    if not path.is_file():
        kind = "it is a folder, not a weights file" if path.is_dir() else "no such file"
        raise BackendError(f"{path}: {kind} (relative paths start from {Path.cwd()})")
    loader = LOADERS.get(path.suffix.lower())
    if loader is None and _is_saved_by_torch(path):
        return load_torch  # a checkpoint under whatever save_name the config gave it
    if loader is None:
        ending = f'the ending "{path.suffix}"' if path.suffix else "a file without an ending"
        raise BackendError(f"{path}: no backend answers from {ending}; known are {', '.join(LOADERS)}")
    return loader


def load_torch(path: Path, device: str, config: Config | None) -> tuple[Backend, Facts]:
    """Load a checkpoint, or bare weights with the config that describes them.

    Raises BackendError, CheckpointError, NetError, ListError.
    """
    from artifacts.checkpoint import CheckpointError, is_checkpoint, load_checkpoint, load_weights
    from nets.net_interface import NetError, build_net
    from nets.start_weights import load_start_weights

    target = choose_device(device)
    if is_checkpoint(path):
        checkpoint = load_checkpoint(path)
        facts, weights = checkpoint.facts, checkpoint.deployed()
    elif config is not None:
        names = class_names_of(config) or tuple(map(str, range(config.num_classes)))
        facts, weights = facts_of(config, names), load_weights(path)
    else:
        raise CheckpointError(f"{path}: bare weights do not say which net they are of; name their config with --config")
    try:
        net = build_net(
            facts.net["module"],
            facts.net["name"],
            num_classes=facts.num_classes,
            num_channels=facts.preprocess.channels,
            img_height=facts.preprocess.height,
            img_width=facts.preprocess.width,
            model_args=facts.net["args"],
        )
        load_start_weights(net, weights, new_head=False)
    except NetError as error:
        sentence = str(error).partition('. train_mode "update"')[0]  # what follows is advice for training
        raise BackendError(f"{path}: {sentence}") from error
    return TorchBackend(net, target), facts


class TorchBackend:
    """A torch net in eval mode, without gradients, in channels_last."""

    name = "torch"

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        import torch

        self.device = str(device)
        self._device = device
        self._net = net.eval().to(device).to(memory_format=torch.channels_last)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Give the logits, float32 (N, K), of float32 (N, C, H, W). Raises BackendError."""
        import torch

        try:
            with torch.inference_mode():
                batch = torch.from_numpy(images).to(self._device, memory_format=torch.channels_last)
                logits: torch.Tensor = self._net(batch)
                return logits.float().cpu().numpy()
        except torch.OutOfMemoryError as error:
            count = len(images)
            raise BackendError(
                f"{self.device} has too little memory for {count} pictures at once; lower --batch_size"
            ) from error
        except RuntimeError as error:  # torch's one kind for all that goes wrong on a device
            raise BackendError(f"the net failed on {self.device}: {str(error).splitlines()[0]}") from error


def choose_device(name: str) -> torch.device:
    """Give the device that auto, cpu, cuda or cuda:N names. Raises BackendError where it is not there."""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (name == "cuda" or index.isdecimal()):
        raise BackendError(f'device must be auto, cpu, cuda or cuda:N, got "{name}"')
    if count == 0:
        raise BackendError(f'device "{name}" asks for a CUDA GPU, and torch {torch.__version__} sees none; use cpu')
    if index and int(index) >= count:
        raise BackendError(f'device "{name}" is not there; torch sees cuda:0 to cuda:{count - 1}')
    return torch.device(name)


def _is_saved_by_torch(path: Path) -> bool:
    """Say whether a file is an archive of torch.save, and not of torch.jit.save, which holds code."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile):
        return False
    return "data.pkl" in names and "constants.pkl" not in names


LOADERS: dict[str, Callable[[Path, str, Config | None], tuple[Backend, Facts]]] = {".pth": load_torch}
