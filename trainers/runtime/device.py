"""Device and precision: the one place that asks the hardware."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from common.cpu import multiplies_bf16
from common.errors import UserError
from common.formatting import first_line
from configs.schema import Config
from trainers.errors import BatchTooSmallError, CompileError
from trainers.runtime.distributed import World

SINGLE = World()  # one process alone
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The place of a training: one of several processes, its device, and the precision of the forward pass."""

    device: torch.device
    precision: str = "fp32"
    world: World = SINGLE


class HardwareError(UserError):
    """A device that the config asks for and this machine does not have."""


def choose_device(gpu_ids: list[int], local_rank: int = 0, local_size: int = 1) -> tuple[torch.device, str]:
    """Return the device of one of `local_size` processes on this machine, and one line about it.

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
    return "bf16" if multiplies_bf16() else "fp32"


def memory_layout(config: Config) -> torch.memory_format:
    """Return the memory layout of a config's nets and images."""
    return torch.channels_last if config.channels_last else torch.contiguous_format


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context in which the forward pass runs."""
    return torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "fp32")


def compile_net(net: torch.nn.Module, mode: bool | str) -> None:
    """Have torch compile a net when it is first called, in one of its modes; True: in the usual one."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns of each machine without a GPU
    net.compile(mode=None if mode is True else mode)


@contextmanager
def forward_errors_reported() -> Iterator[None]:
    """Turn what torch raises of a net that cannot be compiled, or of too small a batch, into a TrainingError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        advice = "raise batch_size, or img_height and img_width"
        raise BatchTooSmallError(f"batch norm cannot normalise one value: {advice}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            raise
        advice = '"compile": false trains without it'
        raise CompileError(f'"compile" fails here: {first_line(error)}; {advice}') from error


class DeviceCopy:
    """Copies batches to a device; asynchronously to a GPU on a stream of its own, where no copy waits for a step.

    What is on the device already stays as it is. The gain was not measured: 512 images of 128 px are 25 MB.
    """

    def __init__(self, device: torch.device, *, is_asynchronous: bool) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if is_asynchronous and device.type == "cuda" else None

    def __call__(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the batch on the device, ready for the current stream."""
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
    """Return the name of the hardware for the report."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    names = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    name = next((line.partition(":")[2].strip() for line in names if line.startswith("model name")), "CPU")
    return f"{name}, {torch.get_num_threads()} threads"
