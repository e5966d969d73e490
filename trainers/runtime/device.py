"""Which device, which precision: one place that asks the hardware."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from common.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HardwareError(UserError):
    """A device that the config asks for and this machine does not have."""


def choose_device(gpu_ids: list[int], local_rank: int = 0, local_size: int = 1) -> tuple[torch.device, str]:
    """Give the device of one of `local_size` processes on this machine, and one line about it.

    Raises HardwareError for a GPU that is not there, and for more processes than GPUs.
    """
    if not gpu_ids:
        return torch.device("cpu"), f"training on the CPU ({torch.get_num_threads()} threads)"
    if not torch.cuda.is_available():
        named = ",".join(map(str, gpu_ids))
        return torch.device("cpu"), f'no CUDA device here: gpu_id "{named}" is ignored, training on the CPU'
    count = torch.cuda.device_count()
    missing = [gpu for gpu in gpu_ids if gpu >= count]
    if missing:
        raise HardwareError(f"gpu_id names GPU {missing[0]}, this machine has {count} (0..{count - 1})")
    if local_size > len(gpu_ids):
        named = ",".join(map(str, gpu_ids))
        every = ",".join(map(str, range(local_size)))
        raise HardwareError(
            f'{local_size} processes on this machine, but gpu_id "{named}" names {len(gpu_ids)} GPU; '
            f"each needs one of its own: --set gpu_id={every}"
        )
    device = torch.device("cuda", gpu_ids[local_rank])
    return device, f"training on {torch.cuda.get_device_name(device)}"


def choose_precision(wanted: str, device: torch.device) -> str:
    """Resolve "auto": bf16 where the hardware multiplies it natively, else fp32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if cpu_multiplies_bf16() else "fp32"


def cpu_multiplies_bf16() -> bool:
    """Say whether the CPU has bf16 multiplication (AMX or AVX512-BF16 on x86, BF16 on Arm), from Linux's own list."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    text = cpuinfo.read_text(errors="replace")
    lines = (line for line in text.splitlines() if line.lower().startswith(("flags", "features")))
    flags = set(next(lines, "").split())
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Give the context in which the forward pass runs."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def compile_net(net: torch.nn.Module, mode: bool | str) -> None:
    """Have torch compile a net when it is first called, in one of its modes; True: in the usual one."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of each machine without a GPU
    net.compile(mode=None if mode is True else mode)


class DeviceCopy:
    """Copies batches to a device; asynchronously to a GPU on a stream of its own, where no copy waits for a step.

    What is on the device already stays as it is. The gain was not measured: 512 images of 128 px are 25 MB.
    """

    def __init__(self, device: torch.device, *, is_asynchronous: bool) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if is_asynchronous and device.type == "cuda" else None

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Give the batch on the device, ready for the current stream."""
        if self.stream is None:
            return {key: value.to(self.device) for key, value in batch.items()}
        with torch.cuda.stream(self.stream):
            moved = {key: value.to(self.device, non_blocking=True) for key, value in batch.items()}
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for value in moved.values():
            value.record_stream(current)  # else its memory could be written to while the step still reads it
        return moved


def describe_device(device: torch.device) -> str:
    """Name the hardware for the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    name = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"
