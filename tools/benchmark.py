"""Measure, side by side in one run: `python -m tools.benchmark infer --weights W --artefacts D`.

Every contender runs a round, then every one the next: what the machine does in the meantime hits all alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tools.contenders import Contenders


@dataclass(frozen=True)
class Figure:
    """One contender: images/s by round, their median and range, and the median of the ratios to the base by round."""

    name: str
    images_per_s: float
    low: float
    high: float
    ratio: float
    rounds: list[float]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; exit code 2 for a mistake of the user's."""
    args = _parser().parse_args(argv)
    try:
        sets = _contender_sets(args)
        figures = {name: measure(c, args.batch, args.rounds, args.seconds, args.seed) for name, c in sets.items()}
        print(heading(args.batch))
        for name, rows in figures.items():
            print(f"\n{table(name, rows)}")
        if args.json:
            told = {name: [asdict(row) for row in rows] for name, rows in figures.items()}
            report = {"batch": args.batch, **surroundings(), "figures": told}
            args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"tools.benchmark: {error}", file=sys.stderr)
        return 2
    return 0


def measure(contenders: Contenders, batch: int, rounds: int, seconds: float, seed: int) -> list[Figure]:
    """Run every contender for `seconds` a round, in turn, after a warm-up of three batches; ratios are to the first."""
    base = next(iter(contenders))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    generator = np.random.default_rng(seed)
    for answer, shape in contenders.values():
        images = generator.standard_normal((batch, *shape), dtype=np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch.compile's about itself
            for _ in range(3):
                answer(images)
    for _ in range(rounds):
        for name, (answer, shape) in contenders.items():
            images = generator.standard_normal((batch, *shape), dtype=np.float32)
            answer(images)  # the caches are the neighbour's
            started, count = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                answer(images)
                count += batch
            rates[name].append(count / (time.perf_counter() - started))
    return [
        Figure(
            name,
            statistics.median(own),
            min(own),
            max(own),
            statistics.median(rate / base for rate, base in zip(own, rates[base], strict=True)),
            own,
        )
        for name, own in rates.items()
    ]


def heading(batch: int) -> str:
    """Say on what the figures were measured."""
    around = surroundings()
    return (
        f"batch {batch}, {around['threads']} threads, {around['cpu']}; {around['versions']}; commit {around['commit']}"
    )


def table(name: str, figures: Sequence[Figure]) -> str:
    """Write one set of contenders as a table of Markdown."""
    lines = [f"| {name} | images/s | lowest | highest | ratio |", "| --- | ---: | ---: | ---: | ---: |"]
    for figure in figures:
        rates = " | ".join(f"{rate:.1f}" for rate in (figure.images_per_s, figure.low, figure.high))
        lines.append(f"| {figure.name} | {rates} | {figure.ratio:.2f} |")
    return "\n".join(lines)


def surroundings() -> dict[str, object]:
    """Give hardware, threads, versions and commit."""
    import onnxruntime
    import openvino
    import torch

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
        flags = next((line.split() for line in lines if line.startswith("flags")), [])
        extras = [flag for flag in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni") if flag in flags]
        cpu = f"{cpu} ({', '.join(extras)})" if extras else cpu
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    versions = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, openvino {openvino.__version__[:8]}"
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "versions": versions,
        "commit": commit or "unknown",
    }


def _contender_sets(args: argparse.Namespace) -> dict[str, Contenders]:
    from tools.contenders import inference_contenders, pim_contenders  # late: they import torch

    if args.command == "infer":
        return {"inference": inference_contenders(args.weights, args.artefacts)}
    return pim_contenders(args.model_type, args.size, args.batch)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    infer = commands.add_parser("infer", help="a checkpoint and its exports on this machine's CPU", allow_abbrev=False)
    infer.add_argument("--weights", metavar="F", type=Path, required=True, help="a checkpoint")
    infer.add_argument("--artefacts", metavar="DIR", type=Path, required=True, help="where its exports are")
    pim = commands.add_parser("pim", help="PIM's selection against one sample after the other", allow_abbrev=False)
    pim.add_argument("--model_type", metavar="NAME", default="resnet18", help="backbone (default resnet18)")
    pim.add_argument("--size", metavar="PX", type=int, default=224, help="input size (default 224)")
    for command, batch in ((infer, 32), (pim, 16)):
        command.add_argument(
            "--batch", metavar="N", type=int, default=batch, help=f"pictures at once (default {batch})"
        )
        command.add_argument("--rounds", metavar="N", type=int, default=7, help="rounds of all in turn (default 7)")
        command.add_argument("--seconds", metavar="S", type=float, default=2.0, help="of a round (default 2)")
        command.add_argument("--seed", metavar="N", type=int, default=0, help="of the input (default 0)")
        command.add_argument("--json", metavar="F", type=Path, help="write the figures, round by round, as well")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
