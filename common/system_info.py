"""The machine that an export is measured on, and the versions of its packages."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")


def machine_info() -> dict[str, Any]:
    """Return processor, instructions, GPU, threads and system, as plain values."""
    import torch

    capabilities = torch.cpu.get_capabilities()
    return {
        "cpu": capabilities.get("cpu_name", platform.processor()),
        "cores": os.cpu_count(),
        "instructions": sorted(
            name
            for name in ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
            if capabilities.get(name)
        ),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch_threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of those of PACKAGES that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
