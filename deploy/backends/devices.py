"""The device and the runtime that a file runs on."""

from __future__ import annotations

import platform
from importlib.util import find_spec
from typing import TYPE_CHECKING

from common.cpu import capabilities
from deploy.backends.base import RUNTIMES, BackendError

if TYPE_CHECKING:
    import torch


def choose_runtime(name: str, device: str) -> str:
    """Return the runtime for an ONNX file: the named one, or the best of those installed where `name` is auto.

    The rule: onnxruntime where a GPU is asked for, or where its CUDA provider is installed and the device is auto;
    else OpenVINO where it is installed; else onnxruntime. Raises BackendError.
    """
    if name not in RUNTIMES:
        raise BackendError(f'runtime must be {", ".join(RUNTIMES)}, got "{name}"')
    if name != "auto":
        if find_spec(name) is None:
            raise BackendError(f"{name} is not installed: pip install {name}")
        return name
    if device != "cpu" and (device != "auto" or _has_cuda_provider()):
        return "onnxruntime"
    return "openvino" if find_spec("openvino") else "onnxruntime"


def has_int8_dot_product() -> bool:
    """Return whether this CPU adds products of 8 bits in 32 (VNNI, AMX, and what is no x86)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    return any(name in capabilities() for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def choose_device(name: str) -> torch.device:
    """Return the torch device that auto, cpu, cuda or cuda:N names. Raises BackendError where it is missing."""
    import torch

    kind, index = parse_device(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        return torch.device("cuda" if count else "cpu")
    if kind == "cpu":
        return torch.device("cpu")
    if count == 0:
        raise BackendError(f'device "{name}" asks for a CUDA GPU, and torch {torch.__version__} sees none; use cpu')
    if index is not None and index >= count:
        raise BackendError(f'device "{name}" is not there; torch sees cuda:0 to cuda:{count - 1}')
    return torch.device(name)


def parse_device(name: str) -> tuple[str, int | None]:
    """Return auto, cpu or cuda, and N of cuda:N. Raises BackendError for any other name."""
    kind, _, index = name.partition(":")
    if name not in ("auto", "cpu", "cuda") and not (kind == "cuda" and index.isdecimal()):
        raise BackendError(f'device must be auto, cpu, cuda or cuda:N, got "{name}"')
    return kind, int(index) if index else None


def choose_provider(device: str, available: list[str], version: str) -> tuple[tuple[str, dict[str, str]], str]:
    """Return onnxruntime's provider with its options, and the device's name. Raises BackendError."""
    kind, index = parse_device(device)
    if kind == "cpu" or (kind == "auto" and not _has_cuda_provider()):
        return ("CPUExecutionProvider", {}), "cpu"
    if "CUDAExecutionProvider" not in available:
        hint = "pip install onnxruntime-gpu, or use --device cpu"
        raise BackendError(f'device "{device}" asks for CUDA, and this onnxruntime {version} has none; {hint}')
    return ("CUDAExecutionProvider", {"device_id": str(index or 0)}), "cuda" if index is None else f"cuda:{index}"


def _has_cuda_provider() -> bool:
    """Return whether onnxruntime can use CUDA, and there is a GPU for it."""
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        return False
    import torch  # only here: an ONNX file runs on a CPU without it

    return torch.cuda.is_available()
