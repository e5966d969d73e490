"""Build an engine from a network description with TensorRT; engine_runner.py runs it.

`python -m pytorch2json.engine --description D/model.json --output D/model.engine` builds with the package `tensorrt`
where it is installed, else with `tensorrt_rtx`, which builds on a machine without a GPU. Beside the engine it writes
`model.engine.facts.json`: the description's metadata, and under "engine" the library that built it and its sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.cli import FlagParser, run_program
from pytorch2json.description_checks import find_problems
from pytorch2json.description_file import atomic_file, read_description
from pytorch2json.engine_layers import Definition, define
from pytorch2json.engine_runner import EngineRunner, metadata_file
from pytorch2json.network import DescriptionError, Network
from pytorch2json.tensorrt_library import (
    Messages,
    collect_messages,
    create_builder,
    create_network,
    device_info,
    known_capabilities,
    library_name,
    load_library,
    reason,
    refusals,
)

if TYPE_CHECKING:
    import torch

PROGRAM = "python -m pytorch2json.engine"
COLUMNS, ROW_NAME = 79, 13  # of what --device_info prints, and of the names of its rows


def main(argv: Sequence[str] | None = None) -> int:
    """Build an engine; return the exit code: 0 built, 2 a mistake of the user or a refusal of the builder."""
    args = _parser().parse_args(argv)
    return run_program(PROGRAM, lambda: _run(args))


def write_engine(
    description: str | Path,
    output: str | Path,
    tf32: bool = False,
    compute_capabilities: Sequence[str] = (),
    log: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write NAME.engine and NAME.engine.facts.json, each complete or not at all; return the metadata of the engine.

    The sha256 shows an interruption between the two when the engine is loaded. Raises DescriptionError.
    """
    path, target = Path(description), Path(output)
    if target.suffix != ".engine":
        raise DescriptionError(f'{target}: the name of an engine must end in ".engine"')
    network, weights = read_description(path)
    description_sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        plan = build_engine(network, weights, tf32=tf32, compute_capabilities=compute_capabilities, log=log)
    except DescriptionError as error:
        raise DescriptionError(f"{path}: {error}") from error
    library = load_library()
    info = {
        "library": library.__name__,
        "version": library.__version__,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "bytes": len(plan),
        "description_sha256": description_sha256,
        "tf32": tf32,
        "compute_capabilities": list(compute_capabilities),
    }
    with atomic_file(target) as temporary:
        temporary.write_bytes(plan)
    with atomic_file(metadata_file(target)) as temporary:
        profile = network.profile
        metadata = {**network.facts, "engine": info}
        if "batch_profile" in metadata:
            metadata["batch_profile"] = [profile.min, profile.best, profile.max]
        temporary.write_text(json.dumps(metadata, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return info


def build_engine(
    network: Network,
    weights: Mapping[str, torch.Tensor],
    *,
    tf32: bool = False,
    compute_capabilities: Sequence[str] = (),
    log: Callable[[str], None] | None = None,
) -> bytes:
    """Return the engine of a description; fp32 is computed in fp32 unless `tf32` allows 10 bits of mantissa.

    `compute_capabilities` ("8.9") names the GPUs to build for, and is TensorRT for RTX's alone. `log` gets TensorRT's
    warnings. Raises DescriptionError with TensorRT's own message where it refuses the network.
    """
    if problem := next(find_problems(network, weights), ""):
        raise DescriptionError(problem)
    trt = load_library()
    with collect_messages(trt) as messages:
        builder = create_builder(trt, messages)
        definition = Definition(trt, create_network(trt, builder), weights)
        define(definition, network, messages)
        with refusals("the builder's settings", trt, messages):
            config = _config(trt, builder, network, tf32, compute_capabilities)
        with refusals("the network", trt, messages):
            plan = builder.build_serialized_network(definition.target, config)
        if plan is None:
            raise DescriptionError(f"{_culprit(network, messages)}: {library_name(trt)} refuses it: {reason(messages)}")
        for is_error, text in messages:
            if log is not None and not is_error:
                log(text)
        return bytes(plan)


def verify_parity(engine: str | Path, description: str | Path, device: str = "cuda") -> float:
    """Run the description's parity sample through the engine on a GPU, and return the relative error.

    Raises DescriptionError where it is over the sample's tolerance or the engine is of another description.
    """
    import torch

    from pytorch2json.interpreter import relative_error

    network, weights = read_description(description)
    runner = EngineRunner(engine, device)
    if runner.info.get("description_sha256") != hashlib.sha256(Path(description).read_bytes()).hexdigest():
        raise DescriptionError(f"{engine}: it was not built from {description}; build it again")
    images = weights[network.parity.input]
    got = [runner(part).cpu() for part in images.split(runner.max_batch)]
    error = relative_error(torch.cat(got), weights[network.parity.output])
    if not error <= network.parity.tolerance:  # a NaN is refused too
        tolerance = network.parity.tolerance
        raise DescriptionError(f"{engine}: relative error {error:.2e} on the parity sample, allowed is {tolerance:.0e}")
    return error


def _run(args: argparse.Namespace) -> int:
    builds = bool(args.description and args.output)
    if not builds and not args.device_info:
        raise DescriptionError("name the description with --description and the engine with --output")
    if not builds and args.check:
        raise DescriptionError("--check needs --description and --output")
    if args.device_info:
        for row in device_info().splitlines():
            print(textwrap.fill(row, COLUMNS, subsequent_indent=" " * ROW_NAME, break_on_hyphens=False))
    if builds:
        capabilities = tuple(filter(None, map(str.strip, args.compute_capabilities.split(","))))
        info = write_engine(args.description, args.output, args.tf32, capabilities, log=_print_warning)
        print(f"{args.output}: {info['bytes']} bytes, built by {info['library']} {info['version']}")
    if args.check:
        error = verify_parity(args.output, args.description)
        print(f"{args.output}: the parity sample's relative error is {error:.2e}")
    return 0


def _config(trt: Any, builder: Any, network: Network, tf32: bool, compute_capabilities: Sequence[str]) -> Any:
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # it is set by default
    if compute_capabilities:
        known = known_capabilities(trt)
        wrong = [capability for capability in compute_capabilities if capability not in known]
        if wrong or not known:
            offered = f"it knows {', '.join(known)}" if known else "it builds for the GPU of this machine alone"
            raise DescriptionError(f"compute capability {', '.join(wrong)}: {offered}")
        config.num_compute_capabilities = len(compute_capabilities)
        for number, capability in enumerate(compute_capabilities):
            config.set_compute_capability(known[capability], number)
    for tensor in network.inputs:
        profile, batches = builder.create_optimization_profile(), network.profile
        shapes = [tensor.shape_at(batch) for batch in (batches.min, batches.best, batches.max)]
        profile.set_shape(tensor.name, *shapes)
        if config.add_optimization_profile(profile) < 0:
            raise DescriptionError(f"the profile {shapes} is not valid")
    return config


def _culprit(network: Network, messages: Messages) -> str:
    """Return the layer that TensorRT's errors name, or "the network"."""
    text = reason(messages)
    named = [layer for layer in network.layers if re.search(rf"(?<![\w.]){re.escape(layer.name)}(?![\w.])", text)]
    layer = max(named, key=lambda layer: len(layer.name), default=None)
    return "the network" if layer is None else f'layer "{layer.name}" ({layer.type})'


def _print_warning(text: str) -> None:
    print(f"{PROGRAM}: warning: {text}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = FlagParser(
        prog=PROGRAM,
        description="Build a TensorRT engine from a network description; no GPU is needed with tensorrt_rtx.",
        epilog="exit codes: 0 built, 2 a mistake in what was asked or a network that TensorRT refuses",
    )
    parser.add_argument("--description", metavar="JSON", help="the description, its weights beside it")
    parser.add_argument(
        "--output", metavar="ENGINE", help="the engine to write; its metadata goes to ENGINE.facts.json"
    )
    parser.add_argument("--device_info", action="store_true", help="print the library, the GPU, and what is built for")
    parser.add_argument("--tf32", action="store_true", help="let float32 products be rounded to TF32 (10 bits)")
    parser.add_argument(
        "--compute_capabilities",
        metavar="LIST",
        default="",
        help='GPUs to build for, as "8.9,12.0" (tensorrt_rtx alone; default: all from 8.0 on)',
    )
    parser.add_argument("--check", action="store_true", help="run the parity sample on this machine's CUDA GPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
