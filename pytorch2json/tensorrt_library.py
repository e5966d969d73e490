"""The library of the engines, tensorrt or tensorrt_rtx: its messages, and what it can do on this machine.

Of two packages with the same Python names the first that imports is taken. TensorRT reports a refusal twice: its logger
gets the reason, and its Python raises or returns None; here the two become one DescriptionError.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from common.formatting import first_line
from pytorch2json.network import DescriptionError

LIBRARIES = ("tensorrt", "tensorrt_rtx")  # the first that is installed builds and runs
DTYPES = {  # a dtype of the description: TensorRT's name for it
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int64": "INT64",
    "int32": "INT32",
    "int8": "INT8",
    "uint8": "UINT8",
    "bool": "BOOL",
}
# What TensorRT's Python raises for a refusal; the last is for what an older version lacks.
REFUSALS = (RuntimeError, TypeError, ValueError, IndexError, OverflowError, AttributeError)
RTX_DEFAULT = "compute capability 8.0, 8.6, 8.9, 12.0 and later"  # NVIDIA, "CPU-Only AOT and TensorRT-RTX Engines"
Messages = list[tuple[bool, str]]  # TensorRT's messages: whether an error (else a warning), and the text


def load_library() -> Any:
    """Return tensorrt, else tensorrt_rtx. Raises DescriptionError where neither can be imported."""
    broken = []
    for name in LIBRARIES:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            if getattr(error, "name", None) != name:  # installed, but something that it needs is not
                broken.append(f"{name} fails with: {first_line(error)}")
    raise DescriptionError(
        "neither tensorrt nor tensorrt_rtx can be imported; install tensorrt-rtx-cu13, which builds engines without a "
        f"GPU, or tensorrt{''.join(f' ({reason})' for reason in broken)}"
    )


def library_problem() -> str:
    """Return why no engine can be built here; "" where the library can be imported."""
    try:
        load_library()
    except DescriptionError as error:
        return str(error)
    return ""


def gpu_problem() -> str:
    """Return why no engine can run here, in the library's own terms; "" where one can. Raises DescriptionError."""
    import torch

    trt = load_library()
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA GPU"
    if not hasattr(trt.Runtime, "get_engine_validity"):
        return ""
    with collect_messages(trt) as messages:
        builder = create_builder(trt, messages)
        network = create_network(trt, builder)
        x = network.add_input("x", trt.DataType.FLOAT, (1, 1))
        network.mark_output(network.add_activation(x, trt.ActivationType.RELU).get_output(0))
        plan = builder.build_serialized_network(network, builder.create_builder_config())
        validity, bits = trt.Runtime(logger(trt)).get_engine_validity(plan)
    if validity != trt.EngineValidity.INVALID:
        return ""
    reasons = [name for name, bit in trt.EngineInvalidityDiagnostics.__members__.items() if bits & int(bit)]
    return f"{library_name(trt)} reports {', '.join(reasons) or 'INVALID'} for {torch.cuda.get_device_name()}"


def device_info() -> str:
    """Return as text the library, the CUDA device, for which GPUs an engine is built, and whether one can run here.

    Raises DescriptionError where there is no library.
    """
    import torch

    trt = load_library()
    device = "none"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        device = f"{torch.cuda.get_device_name()} (compute capability {major}.{minor})"
    known = known_capabilities(trt)
    targets = "GPUs like this one alone"
    if known:
        targets = f"GPUs of {RTX_DEFAULT}; --compute_capabilities chooses among {', '.join(known)}"
    problem = gpu_problem()
    rows = {
        "library": library_name(trt),
        "CUDA device": device,
        "builds for": targets,
        "runs here": f"no: {problem}" if problem else "yes",
    }
    return "\n".join(f"{key:<12} {value}" for key, value in rows.items())


def create_builder(trt: Any, messages: Messages) -> Any:
    """Return a builder. Raises DescriptionError where the library needs a GPU to build and has none."""
    try:
        return trt.Builder(logger(trt))
    except REFUSALS as error:
        advice = "" if trt.__name__ == "tensorrt_rtx" else "; tensorrt-rtx-cu13 builds without a GPU"
        why = f"{reason(messages, error)}{advice}"
        raise DescriptionError(f"{library_name(trt)} cannot build on this machine: {why}") from error


@functools.cache
def logger(trt: Any) -> Any:
    """Return the only logger of this process: TensorRT keeps the first that it gets."""

    class Logger(trt.ILogger):  # a base that is imported late
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: Messages = []

        def log(self, severity: Any, text: str) -> None:
            if severity <= trt.ILogger.WARNING:
                self.messages.append((severity <= trt.ILogger.ERROR, " ".join(text.split())))

    return Logger()


@contextmanager
def collect_messages(trt: Any) -> Iterator[Messages]:
    """Yield a list that collects TensorRT's errors and warnings within the block."""
    own = logger(trt)
    before, own.messages = own.messages, []
    try:
        yield own.messages
    finally:
        own.messages = before


@contextmanager
def refusals(where: str, trt: Any, messages: Messages) -> Iterator[None]:
    """Turn what TensorRT raises into a DescriptionError with the place and TensorRT's own reason."""
    try:
        yield
    except REFUSALS as error:
        raise DescriptionError(f"{where}: {library_name(trt)} refuses it: {reason(messages, error)}") from error


def reason(messages: Messages, error: BaseException | None = None) -> str:
    """Return TensorRT's errors, else what Python raised; without a GPU every failure reports that too."""
    errors = list(dict.fromkeys(text for is_error, text in messages if is_error))
    about_network = [text for text in errors if "cudaError" not in text]
    raised = first_line(error) if error is not None and str(error) else ""
    return "; ".join(about_network or errors) or raised or "no reason given"


def library_name(trt: Any) -> str:
    """Return the library's name and version, for messages."""
    return f"{trt.__name__} {trt.__version__}"


def known_capabilities(trt: Any) -> dict[str, Any]:
    """Return by name ("8.9") the compute capabilities that the library can build for."""
    members = getattr(trt, "ComputeCapability", None)
    names = members.__members__ if members is not None else {}
    numbers = {name.removeprefix("SM"): member for name, member in names.items() if re.fullmatch(r"SM\d+", name)}
    return {f"{number[:-1]}.{number[-1]}": numbers[number] for number in sorted(numbers, key=int)}


def create_network(trt: Any, builder: Any) -> Any:
    """Return an empty network that is strongly typed, as every network is from TensorRT 11 on."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))
