"""What this CPU multiplies natively."""

from __future__ import annotations

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def capabilities() -> set[str]:
    """Return the names of what this CPU has, by Linux's list, elsewhere by torch's, which has the same names."""
    if CPU_INFO.is_file():  # a service of ONNX files runs without torch
        return set(CPU_INFO.read_text(encoding="utf-8", errors="replace").split())
    import torch

    return {name for name, value in torch.cpu.get_capabilities().items() if value is True}


def multiplies_bf16() -> bool:
    """Return whether the CPU has bf16 multiplication by Linux's list: AMX or AVX512-BF16 on x86, BF16 on Arm."""
    return CPU_INFO.is_file() and bool(capabilities() & {"amx_bf16", "avx512_bf16", "bf16"})
